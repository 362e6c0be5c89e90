"""Sends one C2D message with azure-iot-hub over AMQP: send.py DEVICE BODY MESSAGE_ID.

The message carries every property that the SDK lets a caller set. An outcome
other than accepted is printed as `refused` and exits 3.
"""
import os
import sys
import time

from azure.iot.hub import IoTHubRegistryManager

device, body, message_id = sys.argv[1:4]
manager = IoTHubRegistryManager.from_connection_string(os.environ["SERVICE_CONNECTION_STRING"])
try:
    manager.send_c2d_message(
        device,
        body,
        {
            "messageId": message_id,
            "correlationId": "cor-" + message_id,
            "contentType": "application/json",
            "contentEncoding": "utf-8",
            "expiryTimeUtc": int((time.time() + 600) * 1000),
            "iothub-ack": "full",
            "verb": "reboot",
            "odd": "a=b&c d/e%f+g",
            "unicode": "grün",
            "empty": "",
        },
    )
except Exception as e:  # the SDK raises a bare Exception for every refusal
    print("refused", e)
    sys.exit(3)
print("accepted", message_id)
