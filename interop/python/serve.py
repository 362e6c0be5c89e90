"""A device with azure-iot-device that answers a method and takes a desired property: serve.py mqtt|ws. Prints `connected` once it can."""
import os
import sys
import threading

from azure.iot.device import IoTHubDeviceClient, MethodResponse

with open(os.environ["CA_FILE"], encoding="ascii") as f:
    client = IoTHubDeviceClient.create_from_connection_string(
        os.environ["DEVICE_CONNECTION_STRING"], server_verification_cert=f.read(), websockets=sys.argv[1] == "ws"
    )
answered, patched = threading.Event(), threading.Event()
patches = []


def on_method(request):
    print("method", request.name, request.payload)
    client.send_method_response(MethodResponse.create_from_method_request(request, 207, {"echo": request.payload, "name": request.name}))
    answered.set()


def on_patch(patch):
    print("desired", patch)
    patches.append(patch)
    patched.set()


client.on_method_request_received = on_method
client.on_twin_desired_properties_patch_received = on_patch
print("connected", flush=True)
assert patched.wait(30), "no desired property within 30 s"
assert patches[0]["interval"] == 5, patches
assert answered.wait(30), "no method call within 30 s"
client.shutdown()
