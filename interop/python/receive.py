"""Receives C2D messages with azure-iot-device and checks them: receive.py mqtt|ws handler|call|connect.

By handler, or by receive_message; `connect` only connects. Prints `connected` once it can receive.
"""
import base64
import os
import sys
import threading

from azure.iot.device import IoTHubDeviceClient

from message import Inbox, milliseconds, refused

transport, way = sys.argv[1:3]
with open(os.environ["CA_FILE"], encoding="ascii") as f:
    client = IoTHubDeviceClient.create_from_connection_string(
        os.environ["DEVICE_CONNECTION_STRING"], server_verification_cert=f.read(), websockets=transport == "ws"
    )
inbox = Inbox(ordered=way == "call")  # the SDK calls handlers from several threads at once


def on_message(m):
    inbox.put(
        {
            "id": m.message_id,
            "body": base64.b64encode(m.data).decode(),
            "correlation_id": m.correlation_id,
            "user_id": m.user_id,
            "content_type": m.content_type,
            "content_encoding": m.content_encoding,
            "expires": milliseconds(m.expiry_time_utc),
            "ack": m.ack,
            "properties": m.custom_properties,
        }
    )


def call():
    while len(inbox.got) < len(inbox.want):
        m = client.receive_message(timeout=30)
        if m is None:
            return
        on_message(m)


# Either connects and subscribes, and returns when that is done. Not after connect(): what waits in the queue
# comes at once, and the SDK acknowledges it and puts it where no handler looks.
try:
    if way == "connect":
        client.connect()
    elif way == "handler":
        client.on_message_received = on_message
    else:
        first = client.receive_message(block=False)
        if first is not None:
            on_message(first)
        threading.Thread(target=call, daemon=True).start()
except Exception as e:
    refused(e)
assert client.connected
print("connected", flush=True)
inbox.check()
client.shutdown()
