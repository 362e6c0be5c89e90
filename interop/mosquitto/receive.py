"""Receives C2D messages with mosquitto_sub and checks them: receive.py. Prints `connected` once it can receive."""
import os
import subprocess
import sys

from bag import arrived
from message import Inbox
from signing import login

inbox = Inbox()
host, device, user, password = login(os.environ["DEVICE_CONNECTION_STRING"])
command = ["stdbuf", "-oL", "mosquitto_sub", "-V", "mqttv311", "-h", host, "-p", "8883", "--cafile", os.environ["CA_FILE"], "-i", device, "-c",
           "-u", user, "-P", password, "-q", "1", "-t", f"devices/{device}/messages/devicebound/#",
           "-d", "-C", str(max(1, len(inbox.want))), "-W", "30", "-F", "%t %x"]
with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as sub:
    for line in sub.stdout:
        words = line.rstrip("\n").split(" ")
        if line.startswith("Subscribed"):
            print("connected", flush=True)
        elif words[0].startswith("devices/"):
            inbox.put(arrived(words[0], bytes.fromhex(words[1]), device))
        elif "refused" in line.lower():
            print("refused", line.strip())
            sys.exit(3)
inbox.check()
