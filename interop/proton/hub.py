"""Qpid Proton against the hub's service endpoint: CBS by put-token, then links. It knows nothing of IoT Hub."""
import os

from proton import Message, SSLDomain
from proton.utils import BlockingConnection

from signing import parse, token


class Refused(Exception):
    """A token that CBS refused."""

    def __init__(self, status, text):
        super().__init__(text)
        self.condition = f"cbs:{status}"


def connect(connection_string):
    """Connects and authorizes."""
    c = parse(connection_string)
    tls = SSLDomain(SSLDomain.MODE_CLIENT)
    tls.set_trusted_ca_db(os.environ["CA_FILE"])
    tls.set_peer_authentication(SSLDomain.VERIFY_PEER_NAME)
    connection = BlockingConnection(f"amqps://{c['HostName']}:5671", timeout=20, ssl_domain=tls, allowed_mechs="ANONYMOUS")
    replies = connection.create_receiver("$cbs")
    requests = connection.create_sender("$cbs")
    text = token(c["HostName"], c["SharedAccessKey"], c["SharedAccessKeyName"])
    requests.send(
        Message(
            id="put-1", address="$cbs", reply_to="cbs", body=text,
            properties={"operation": "put-token", "type": "servicebus.windows.net:sastoken", "name": c["HostName"]},
        )
    )
    reply = replies.receive(timeout=20)  # comes settled
    assert reply.correlation_id == "put-1", reply.correlation_id
    status = int(reply.properties["status-code"])
    if status != 200:
        raise Refused(status, reply.properties["status-description"])
    return connection
