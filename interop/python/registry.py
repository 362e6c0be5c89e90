"""The registry through azure-iot-hub's REST client: create, get, list, update, delete, statistics, purge."""
import base64
import os

from azure.iot.hub import IoTHubRegistryManager
from msrest.exceptions import HttpOperationError

device = "registry-python"
keys = [base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2, 3)]
manager = IoTHubRegistryManager.from_connection_string(os.environ["OWNER_CONNECTION_STRING"])
before = manager.get_device_registry_statistics()

d = manager.create_device_with_sas(device, keys[0], keys[1], "enabled")
print("created", d.device_id, d.status, d.generation_id, d.etag)
assert (d.device_id, d.status, d.connection_state) == (device, "enabled", "Disconnected"), d
assert d.authentication.type == "sas" and d.authentication.symmetric_key.primary_key == keys[0], d.authentication
assert d.generation_id and d.etag and d.cloud_to_device_message_count == 0, d

got = manager.get_device(device)
print("got", got.device_id, got.etag)
assert (got.device_id, got.generation_id, got.etag) == (device, d.generation_id, d.etag), got
assert got.authentication.symmetric_key.secondary_key == keys[1], got.authentication

listed = [x.device_id for x in manager.get_devices(1000)]
print("listed", listed)
assert device in listed, listed
assert len(manager.get_devices(1)) == 1

updated = manager.update_device_with_sas(device, got.etag, keys[2], keys[1], "disabled", status_reason="maintenance")
print("updated", updated.status, updated.status_reason, updated.etag)
assert (updated.status, updated.status_reason) == ("disabled", "maintenance"), updated
assert updated.etag != got.etag and updated.generation_id == got.generation_id, updated
assert updated.authentication.symmetric_key.primary_key == keys[2], updated.authentication


def refused(status, call, *args):
    try:
        call(*args)
    except HttpOperationError as e:
        print("refused", type(e).__name__, e.response.status_code, e.response.json())
        assert e.response.status_code == status, e.response.status_code
        assert e.response.json()["Message"].startswith("ErrorCode:"), e.response.text
    else:
        raise AssertionError(f"{call.__name__} was not refused")


refused(412, manager.update_device_with_sas, device, got.etag, keys[0], keys[1], "enabled")
refused(409, manager.create_device_with_sas, device, keys[0], keys[1], "enabled")

now = manager.get_device_registry_statistics()
print("statistics", now.total_device_count, now.enabled_device_count, now.disabled_device_count)
assert now.total_device_count == before.total_device_count + 1
assert now.disabled_device_count == before.disabled_device_count + 1
assert manager.get_service_statistics().connected_device_count >= 0

for n in range(3):
    manager.send_c2d_message(device, str(n))
assert manager.get_device(device).cloud_to_device_message_count == 3
purged = manager.protocol.cloud_to_device_messages.purge_cloud_to_device_message_queue(device)
print("purged", purged.device_id, purged.total_messages_purged)
assert (purged.device_id, purged.total_messages_purged) == (device, 3), purged

manager.delete_device(device)
refused(404, manager.get_device, device)
refused(404, manager.delete_device, device)
print("deleted", device)

for policy, status in (("REGISTRY_READ_CONNECTION_STRING", 401), ("SERVICE_CONNECTION_STRING", 401)):
    weak = IoTHubRegistryManager.from_connection_string(os.environ[policy])
    refused(status, weak.create_device_with_sas, device, keys[0], keys[1], "enabled")
assert IoTHubRegistryManager.from_connection_string(os.environ["REGISTRY_READ_CONNECTION_STRING"]).get_devices(10)
