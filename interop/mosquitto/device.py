"""Sends telemetry with mosquitto_pub. The driver then asks the hub what it saw."""
import json
import os
import subprocess

from signing import login

host, device, user, password = login(os.environ["DEVICE_CONNECTION_STRING"])
bag = f"%24.mid={os.environ['TELEMETRY_ID']}&%24.cid=c-1&%24.ct=application%2Fjson&%24.ce=utf-8&alert=a%3Db%26c%20d%2Fe"
subprocess.run(
    ["mosquitto_pub", "-V", "mqttv311", "-h", host, "-p", "8883", "--cafile", os.environ["CA_FILE"], "-i", device, "-u", user, "-P", password,
     "-q", "1", "-t", f"devices/{device}/messages/events/{bag}", "-m", json.dumps({"temperature": 21.5, "place": "Köln"})],
    check=True, timeout=30,
)
print("sent")
