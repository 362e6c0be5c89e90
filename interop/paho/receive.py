"""Receives C2D messages with paho-mqtt and checks them: receive.py mqtt|ws. Prints `connected` once it can receive."""
import sys

from bag import arrived
from client import Device
from message import Inbox

inbox = Inbox()
device = Device(sys.argv[1], lambda topic, payload: inbox.put(arrived(topic, payload, device.id)))
if not device.open():
    print("refused", device.refusal)
    sys.exit(3)
device.subscribe(f"devices/{device.id}/messages/devicebound/#")
print("connected", flush=True)
inbox.check()
device.close()
