"""Feedback with azure-iot-hub, which offers REST only: feedback.py DEVICE MESSAGE_ID.

Abandons the first batch that it gets, so that the hub must hand it out again, and completes it then.
"""
import os
import sys
import time

from azure.iot.hub import IoTHubHttpRuntimeManager

device, message_id = sys.argv[1:3]
manager = IoTHubHttpRuntimeManager.from_connection_string(os.environ["SERVICE_CONNECTION_STRING"])
feedback = manager.protocol.cloud_to_device_messages


def receive():
    """The next batch and its lock token."""
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        raw = feedback.receive_feedback_notification(raw=True).response
        if raw.status_code == 200:
            return raw.json(), raw.headers["ETag"].strip('"')
        assert raw.status_code == 204, raw.status_code
        time.sleep(0.25)
    sys.exit("no feedback within 40 s")


records, token = receive()
print("received", records)
manager.abandon_feedback_notification(token)
again, token = receive()
assert again == records, again
manager.complete_feedback_notification(token)
(record,) = [r for r in records if r["originalMessageId"] == message_id]
assert record["deviceId"] == device and record["deviceGenerationId"], record
assert record["statusCode"] == "Success" and record["description"] == "Success", record
assert record["enqueuedTimeUtc"].endswith("Z"), record
empty = feedback.receive_feedback_notification(raw=True).response.status_code
assert empty == 204, empty
