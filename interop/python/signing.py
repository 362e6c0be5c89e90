"""Connection strings and SAS tokens, for the clients that know nothing of IoT Hub (IoT Hub developer guide, "Control access with SAS")."""
import base64
import hashlib
import hmac
import time
import urllib.parse


def parse(connection_string):
    """The parts of a connection string."""
    return dict(part.split("=", 1) for part in connection_string.split(";"))


def token(resource, key, policy=None, seconds=3600):
    """A token for a resource, signed with a base64 key; policy is the key's name unless it is a device's."""
    resource = urllib.parse.quote(resource, safe="")
    expiry = int(time.time()) + seconds
    digest = hmac.new(base64.b64decode(key), f"{resource}\n{expiry}".encode(), hashlib.sha256).digest()
    text = f"SharedAccessSignature sr={resource}&sig={urllib.parse.quote(base64.b64encode(digest), safe='')}&se={expiry}"
    return text + (f"&skn={policy}" if policy else "")


def login(connection_string):
    """A device's MQTT login: host, client ID, user name, password."""
    c = parse(connection_string)
    host, device = c["HostName"], c["DeviceId"]
    return host, device, f"{host}/{device}/?api-version=2021-04-12", token(f"{host}/devices/{device}", c["SharedAccessKey"])
