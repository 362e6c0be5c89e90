"""Receives one C2D message with azure-iot-device over MQTT and checks it: receive.py MESSAGE_ID BODY [ws].

Prints `connected` once it can receive.
"""
import os
import sys
import threading

from azure.iot.device import IoTHubDeviceClient

message_id, body = sys.argv[1:3]
with open(os.environ["CA_FILE"], encoding="ascii") as f:
    client = IoTHubDeviceClient.create_from_connection_string(
        os.environ["DEVICE_CONNECTION_STRING"], server_verification_cert=f.read(), websockets="ws" in sys.argv[3:]
    )
got = threading.Event()
seen = []


def on_message(message):
    seen.append(message)
    got.set()


client.on_message_received = on_message
client.connect()
print("connected", flush=True)
if not got.wait(30):
    sys.exit("no message within 30 s")
m = seen[0]
print("received", m.message_id, m.data, m.custom_properties)
assert m.data == body.encode(), m.data
assert m.message_id == message_id, m.message_id
assert m.correlation_id == "cor-" + message_id, m.correlation_id
assert m.content_type == "application/json", m.content_type
assert m.content_encoding == "utf-8", m.content_encoding
assert m.ack == "full", m.ack
assert m.custom_properties["verb"] == "reboot"
assert m.custom_properties["odd"] == "a=b&c d/e%f+g", m.custom_properties["odd"]
assert m.custom_properties["unicode"] == "grün", m.custom_properties["unicode"]
client.shutdown()
