"""The cases: what is run, and what must come of it. A case's name stands in docs/sdks.md."""
import base64
import time
import uuid

# What sends. A sender's command takes the device before its own words.
SENDERS = {
    "python-amqp": (["python", "python/send.py"], ["amqp"]),
    "python-ws": (["python", "python/send.py"], ["ws"]),
    "node-amqp": (["node", "node/send.js"], ["amqp"]),
    "node-ws": (["node", "node/send.js"], ["ws"]),
    "rhea-amqp": (["node", "rhea/send.js"], ["amqp"]),
    "rhea-ws": (["node", "rhea/send.js"], ["ws"]),
    "proton-amqp": (["independent", "proton/send.py"], []),
}

# The SDKs for sending have no user ID (Python) or take it and do not send it (Node).
WITH_USER_ID = ("rhea", "proton")

RECEIVERS = {
    "python-mqtt": ["python", "python/receive.py", "mqtt", "handler"],
    "python-mqtt-call": ["python", "python/receive.py", "mqtt", "call"],
    "python-ws": ["python", "python/receive.py", "ws", "handler"],
    "python-ws-call": ["python", "python/receive.py", "ws", "call"],
    "node-mqtt": ["node", "node/receive.js", "mqtt"],
    "node-ws": ["node", "node/receive.js", "ws"],
    "paho-mqtt": ["independent", "paho/receive.py", "mqtt"],
    "paho-ws": ["independent", "paho/receive.py", "ws"],
    "mosquitto-mqtt": ["mosquitto", "mosquitto/receive.py"],
}

DEVICES = {
    "python-mqtt": ["python", "python/device.py", "mqtt"],
    "python-ws": ["python", "python/device.py", "ws"],
    "node-mqtt": ["node", "node/device.js", "mqtt"],
    "node-ws": ["node", "node/device.js", "ws"],
    "paho-mqtt": ["independent", "paho/device.py", "mqtt"],
    "paho-ws": ["independent", "paho/device.py", "ws"],
    "mosquitto-mqtt": ["mosquitto", "mosquitto/device.py"],
}

FEEDBACK = {
    "python-rest": (["python", "python/feedback.py"], []),
    "node-amqp": (["node", "node/feedback.js"], ["amqp"]),
    "node-ws": (["node", "node/feedback.js"], ["ws"]),
    "rhea-amqp": (["node", "rhea/feedback.js"], []),
    "proton-amqp": (["independent", "proton/feedback.py"], []),
}

# A device that answers methods and takes desired properties, and the service that asks.
CALLS = {
    ("python", "python-mqtt"): (["python", "python/call.py"], ["python", "python/serve.py", "mqtt"]),
    ("node", "python-ws"): (["node", "node/call.js"], ["python", "python/serve.py", "ws"]),
    ("node", "node-mqtt"): (["node", "node/call.js"], ["node", "node/serve.js", "mqtt"]),
    ("python", "node-ws"): (["python", "python/call.py"], ["node", "node/serve.js", "ws"]),
}

PAIRS = [
    ("python-amqp", "python-mqtt"), ("python-amqp", "python-mqtt-call"), ("python-amqp", "node-mqtt"), ("python-amqp", "mosquitto-mqtt"),
    ("python-ws", "python-ws"), ("python-ws", "python-ws-call"), ("python-ws", "node-ws"),
    ("node-amqp", "node-mqtt"), ("node-amqp", "python-mqtt"), ("node-amqp", "paho-mqtt"),
    ("node-ws", "node-ws"), ("node-ws", "paho-ws"),
    ("rhea-amqp", "paho-mqtt"), ("rhea-amqp", "node-mqtt"), ("rhea-ws", "paho-ws"),
    ("proton-amqp", "mosquitto-mqtt"), ("proton-amqp", "python-mqtt"),
]
OFFLINE = [("python-amqp", "python-mqtt"), ("node-amqp", "node-mqtt"), ("rhea-amqp", "paho-mqtt"), ("proton-amqp", "mosquitto-mqtt")]

# What each sender says when the hub refuses: the class of the SDK's error, or the condition.
# azure-iot-hub raises a bare Exception for every refused message.
REFUSALS = {
    "unknown-device": {"python-amqp": "Exception", "node-amqp": "DeviceNotFoundError", "node-ws": "DeviceNotFoundError", "rhea-amqp": "amqp:not-found", "proton-amqp": "amqp:not-found"},
    "full-queue": {
        "python-amqp": "Exception", "python-ws": "Exception", "node-amqp": "DeviceMaximumQueueDepthExceededError", "node-ws": "DeviceMaximumQueueDepthExceededError",
        "rhea-amqp": "amqp:resource-limit-exceeded", "proton-amqp": "amqp:resource-limit-exceeded",
    },
    "too-large": {"python-amqp": "Exception", "node-amqp": "MessageTooLargeError", "rhea-amqp": "amqp:link:message-size-exceeded", "proton-amqp": "amqp:link:message-size-exceeded"},
    "already-expired": {"python-amqp": "Exception", "node-amqp": "ArgumentError", "rhea-amqp": "com.microsoft:argument-error", "proton-amqp": "com.microsoft:argument-error"},
    # uamqp asks again for a token; when that comes to its end it says TokenAuthFailure, which is an AuthenticationException too.
    "wrong-key": {"python-amqp": ("AuthenticationException", "TokenAuthFailure"), "node-amqp": "UnauthorizedError", "rhea-amqp": "cbs:401", "proton-amqp": "cbs:401"},
    "throttled": {"node-amqp": "ThrottlingError", "rhea-amqp": "com.microsoft:device-container-throttled", "proton-amqp": "com.microsoft:device-container-throttled"},
    "no-right": {"python-amqp": "LinkDetach", "node-amqp": "UnauthorizedError", "rhea-amqp": "amqp:unauthorized-access", "proton-amqp": "amqp:unauthorized-access"},
}
LOGIN_REFUSALS = {"python-mqtt": "CredentialError", "python-ws": "CredentialError", "node-mqtt": "UnauthorizedError", "node-ws": "UnauthorizedError", "paho-mqtt": "Not authorized", "mosquitto-mqtt": "not authorised"}


def _text(body):
    return base64.b64encode(body).decode()


def _message(**given):
    blank = {"id": None, "body": _text(b""), "correlation_id": None, "user_id": None, "content_type": None, "content_encoding": None, "expires": None, "ack": None, "properties": {}}
    return blank | given


def messages(sender):
    """The messages that a case sends: all properties, bytes of every value, an ID that looks like a UUID, and next to nothing."""
    unique = uuid.uuid4().hex[:8]
    return [
        _message(
            id=f"full-{unique}", body=_text('{"text": "grün"}'.encode()), correlation_id="cor:" + unique, user_id="operator 1" if sender.startswith(WITH_USER_ID) else None,
            content_type="application/json", content_encoding="utf-8", expires=int(time.time() + 600) * 1000 + 250, ack="negative",
            properties={"verb": "reboot", "odd": "a=b&c d/e%f+g#h?", "unicode": "grün €", "empty": ""},
        ),
        _message(id="-:.+%_#*?!(),=@;$'" + unique, body=_text(bytes(range(256))), properties={"only": "one"}),
        _message(id=str(uuid.uuid4()), body=_text(b"a UUID")),
        _message(),
    ]


def refused_messages(what):
    """What is sent to be refused."""
    if what == "too-large":
        return [_message(id="large", body=_text(b"x" * (64 * 1024 + 1)))]
    if what == "already-expired":
        return [_message(id="old", expires=int(time.time() - 60) * 1000)]
    return [_message(id="m-1")]


def feedback_messages(message_id):
    """One message whose fate the sender wants to know."""
    return [_message(id=message_id, body=_text(b"tell me"), ack="full")]


def filling():
    """As many messages as a device's queue takes."""
    return [_message(id=f"fill-{n}") for n in range(50)]
