"""Changes a device's twin and calls a method on it with azure-iot-hub: call.py DEVICE."""
import sys
import os

from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod, Twin, TwinProperties
from msrest.exceptions import HttpOperationError

device = sys.argv[1]
manager = IoTHubRegistryManager.from_connection_string(os.environ["OWNER_CONNECTION_STRING"])
twin = manager.get_twin(device)
updated = manager.update_twin(device, Twin(properties=TwinProperties(desired={"interval": 5})), twin.etag)
print("twin", updated.properties.desired)
assert updated.properties.desired["interval"] == 5, updated
result = manager.invoke_device_method(device, CloudToDeviceMethod(method_name="reboot", payload={"in": 3}, response_timeout_in_seconds=10, connect_timeout_in_seconds=10))
print("method", result.status, result.payload)
assert result.status == 207, result.status
assert result.payload == {"echo": {"in": 3}, "name": "reboot"}, result.payload
try:
    manager.invoke_device_method("empty", CloudToDeviceMethod(method_name="reboot", payload=None))
except HttpOperationError as e:
    print("refused", e.response.status_code, e.response.text)
    assert e.response.status_code == 404, e.response.status_code
else:
    raise AssertionError("a device that is not there answered")
