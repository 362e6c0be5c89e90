"""The property bag of an MQTT topic (IoT Hub developer guide, "MQTT support"), taken apart without any SDK."""
import base64
import sys
import urllib.parse

from message import milliseconds


def arrived(topic, payload, device):
    """A C2D message as message.same compares it."""
    prefix = f"devices/{device}/messages/devicebound/"
    if not topic.startswith(prefix):
        sys.exit(f"unexpected topic {topic}")
    pairs = [pair.split("=", 1) for pair in topic[len(prefix) :].split("&")]
    if not all(name.startswith("%24") for name, _ in pairs if "$" in urllib.parse.unquote(name)):
        sys.exit(f"a system property's $ is not percent-encoded: {topic}")
    p = {urllib.parse.unquote(name): urllib.parse.unquote(value) for name, value in pairs}
    assert len(p) == len(pairs), topic
    to = p.pop("$.to")
    assert to == f"/devices/{device}/messages/devicebound", to
    return {
        "id": p.pop("$.mid", None),
        "body": base64.b64encode(payload).decode(),
        "correlation_id": p.pop("$.cid", None),
        "user_id": p.pop("$.uid", None),
        "content_type": p.pop("$.ct", None),
        "content_encoding": p.pop("$.ce", None),
        "expires": milliseconds(p.pop("$.exp", None)),
        "ack": p.pop("iothub-ack", None),
        "properties": p,
    }
