"""What the programs here send and expect, as the driver gives it in the environment.

MESSAGES is a JSON list; each message has id, body (base64), correlation_id,
user_id, content_type, content_encoding, expires (ms), ack and properties. What
is absent is null. No SDK is imported: the independent clients use it as well.
"""
import base64
import datetime
import json
import os
import sys
import threading


def messages():
    """The messages to send, or those that must arrive, in order."""
    return json.loads(os.environ["MESSAGES"])


def body(m):
    return base64.b64decode(m["body"])


def milliseconds(text):
    """A time such as 2025-01-02T03:04:05.6780000Z as milliseconds since 1970."""
    if not text:
        return None
    whole, fraction = text.rstrip("Z").split(".")
    moment = datetime.datetime.strptime(whole + "+0000", "%Y-%m-%dT%H:%M:%S%z")
    return int(moment.timestamp()) * 1000 + int(fraction[:3])


def same(want, got):
    """Asserts that one message arrived as it was sent. A message sent without an ID may have been given one by its sender."""
    want = dict(want)
    print("received", json.dumps(got, ensure_ascii=False), flush=True)
    if want["id"] is None:
        got = dict(got, id=None)
    for key, value in want.items():
        if key in got and got[key] != value:
            sys.exit(f"{key}: got {got[key]!r}, want {value!r}")


class Inbox:
    """Gathers what a client's callbacks hand over, and compares it with what must come."""

    def __init__(self, ordered=True):
        self.ordered = ordered
        self.want = messages()
        self.got = []
        self.full = threading.Event()

    def put(self, message):
        self.got.append(message)
        if len(self.got) >= len(self.want):
            self.full.set()

    def check(self):
        """Waits for all messages, and asserts that they are the right ones, in the right order if that can be told."""
        complete = self.full.wait(30)
        if not self.ordered:
            place = {m["id"]: n for n, m in enumerate(self.want)}
            self.got.sort(key=lambda m: place.get(m["id"], len(place)))
        for want, got in zip(self.want, self.got):
            same(want, got)
        if not complete:
            sys.exit(f"{len(self.got)} of {len(self.want)} messages within 30 s")


def refused(error):
    """Prints a refusal by the class of the SDK's error and ends the program: the driver compares the line."""
    print("refused", type(error).__name__, error, flush=True)
    sys.exit(3)
