"""What samples of azure-iot-device do besides receiving: device.py mqtt|ws.

Sends telemetry with properties, gets the twin, reports a property, registers
handlers for methods and desired properties. The driver then asks the hub what it saw.
"""
import json
import os
import sys

from azure.iot.device import IoTHubDeviceClient, Message

with open(os.environ["CA_FILE"], encoding="ascii") as f:
    client = IoTHubDeviceClient.create_from_connection_string(
        os.environ["DEVICE_CONNECTION_STRING"], server_verification_cert=f.read(), websockets=sys.argv[1] == "ws"
    )
client.connect()
client.on_method_request_received = lambda request: print("method", request.name)
client.on_twin_desired_properties_patch_received = lambda patch: print("desired", patch)
client.on_message_received = lambda m: print("received", m.message_id)

message = Message(json.dumps({"temperature": 21.5, "place": "Köln"}), content_encoding="utf-8", content_type="application/json")
message.message_id = os.environ["TELEMETRY_ID"]
message.correlation_id = "c-1"
message.custom_properties["alert"] = "a=b&c d/e"
client.send_message(message)
print("sent", message.message_id)

twin = client.get_twin()
print("twin", json.dumps(twin))
assert twin["desired"]["$version"] >= 1, twin
assert "$version" in twin["reported"], twin
client.patch_twin_reported_properties({"firmware": "1.2.3"})
reported = client.get_twin()["reported"]
print("reported", json.dumps(reported))
assert reported["firmware"] == "1.2.3", reported
assert reported["$version"] > twin["reported"]["$version"], reported
assert client.connected
client.shutdown()
