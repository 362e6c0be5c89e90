"""Sends C2D messages with azure-iot-hub: send.py DEVICE amqp|ws.

Each message carries every property that the SDK lets a caller set.
"""
import os
import sys

from azure.iot.hub import IoTHubRegistryManager
from uamqp import TransportType

from message import body, messages, refused

device, transport = sys.argv[1:3]
over = {"amqp": TransportType.Amqp, "ws": TransportType.AmqpOverWebsocket}[transport]
manager = IoTHubRegistryManager.from_connection_string(os.environ["SERVICE_CONNECTION_STRING"], transport_type=over)
for m in messages():
    properties = {
        "messageId": m["id"],
        "correlationId": m["correlation_id"],
        "contentType": m["content_type"],
        "contentEncoding": m["content_encoding"],
        "expiryTimeUtc": m["expires"],
        "iothub-ack": m["ack"],
    }
    properties = {k: v for k, v in properties.items() if v is not None} | m["properties"]
    try:
        manager.send_c2d_message(device, body(m), properties)
    except Exception as e:  # the SDK raises a bare Exception for every refusal
        refused(e)
    print("accepted", m["id"])
