"""Telemetry, twin and method subscription with paho-mqtt: device.py mqtt|ws."""
import json
import os
import queue
import sys

from client import Device

answers = queue.Queue()
device = Device(sys.argv[1], lambda topic, payload: answers.put((topic, payload)))
assert device.open(), device.refusal
for topic in ("$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#", "$iothub/methods/POST/#"):
    device.subscribe(topic)

bag = f"%24.mid={os.environ['TELEMETRY_ID']}&%24.cid=c-1&%24.ct=application%2Fjson&%24.ce=utf-8&alert=a%3Db%26c%20d%2Fe"
device.publish(f"devices/{device.id}/messages/events/{bag}", json.dumps({"temperature": 21.5, "place": "Köln"}))
print("sent")


def ask(topic, payload=""):
    device.client.publish(topic, payload, qos=0)
    topic, payload = answers.get(timeout=20)
    print("answer", topic, payload.decode())
    return topic, json.loads(payload) if payload else None


topic, twin = ask("$iothub/twin/GET/?$rid=1")
assert topic == "$iothub/twin/res/200/?$rid=1", topic
topic, _ = ask("$iothub/twin/PATCH/properties/reported/?$rid=2", json.dumps({"firmware": "1.2.3"}))
assert topic == f"$iothub/twin/res/204/?$rid=2&$version={twin['reported']['$version'] + 1}", topic
topic, twin = ask("$iothub/twin/GET/?$rid=3")
assert twin["reported"]["firmware"] == "1.2.3", twin
device.close()
