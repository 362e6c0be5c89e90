"""Feedback with Qpid Proton: feedback.py DEVICE MESSAGE_ID. Releases the first batch, so that the hub must hand it out again, and accepts it then."""
import json
import os
import sys

from hub import connect

device, message_id = sys.argv[1:3]
connection = connect(os.environ["SERVICE_CONNECTION_STRING"])
receiver = connection.create_receiver("/messages/serviceBound/feedback", credit=1)
print("connected", flush=True)


def text(message):
    return bytes(message.body).decode()


first = receiver.receive(timeout=40)
print("received", text(first), first.content_type, bytes(first.user_id))
assert first.content_type == "application/vnd.microsoft.iothub.feedback.json", first.content_type
assert "iothub-enqueuedtime" in {str(k) for k in first.annotations}, first.annotations
receiver.release(delivered=False)
again = receiver.receive(timeout=40)
assert text(again) == text(first), text(again)
receiver.accept()
(record,) = [r for r in json.loads(text(first)) if r["originalMessageId"] == message_id]
assert record["deviceId"] == device and record["statusCode"] == "Success", record
connection.close()
