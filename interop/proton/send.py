"""Sends C2D messages with Qpid Proton: send.py DEVICE."""
import os
import sys
import urllib.parse

from proton import Message, symbol
from proton.utils import LinkDetached

from hub import Refused, connect
from message import body, messages

device = sys.argv[1]


def refused(condition, text):
    print("refused", condition, text)
    sys.exit(3)


try:
    connection = connect(os.environ["SERVICE_CONNECTION_STRING"])
    sender = connection.create_sender("/messages/devicebound")
    for m in messages():
        properties = dict(m["properties"])
        if m["ack"] is not None:
            properties["iothub-ack"] = m["ack"]
        message = Message(address=f"/devices/{urllib.parse.quote(device, safe='')}/messages/devicebound", body=body(m), inferred=True, properties=properties)
        if m["id"] is not None:
            message.id = m["id"]
        if m["correlation_id"] is not None:
            message.correlation_id = m["correlation_id"]
        if m["user_id"] is not None:
            message.user_id = m["user_id"].encode()
        if m["content_type"] is not None:
            message.content_type = symbol(m["content_type"])
        if m["content_encoding"] is not None:
            message.content_encoding = symbol(m["content_encoding"])
        if m["expires"] is not None:
            message.expiry_time = m["expires"] / 1000
        delivery = sender.link.send(message)
        connection.wait(lambda: delivery.settled, timeout=20)
        state, condition = delivery.remote_state, delivery.remote.condition
        delivery.settle()
        if state != delivery.ACCEPTED:
            refused(condition.name if condition else state, condition.description if condition else "")
        print("accepted", m["id"])
    connection.close()
except Refused as e:
    refused(e.condition, e)
except LinkDetached as e:
    refused(e.condition, e)
