// Changes a device's twin and calls a method on it with azure-iothub: call.js DEVICE.
'use strict';
const assert = require('assert');
const { Client, Registry } = require('azure-iothub');
const { limit } = require('./message');

limit(50, 'not done');

async function main() {
  const [device] = process.argv.slice(2);
  const registry = Registry.fromConnectionString(process.env.OWNER_CONNECTION_STRING);
  const twin = (await registry.getTwin(device)).responseBody;
  const updated = (await registry.updateTwin(device, { properties: { desired: { interval: 5 } } }, twin.etag)).responseBody;
  console.log('twin', JSON.stringify(updated.properties.desired));
  assert.strictEqual(updated.properties.desired.interval, 5);

  const client = Client.fromConnectionString(process.env.SERVICE_CONNECTION_STRING);
  const call = { methodName: 'reboot', payload: { in: 3 }, responseTimeoutInSeconds: 10, connectTimeoutInSeconds: 10 };
  const { result } = await client.invokeDeviceMethod(device, call);
  console.log('method', JSON.stringify(result));
  assert.strictEqual(result.status, 207);
  assert.deepStrictEqual(result.payload, { echo: { in: 3 }, name: 'reboot' });
  await assert.rejects(client.invokeDeviceMethod('empty', { methodName: 'reboot' }), (err) => {
    console.log('refused', err.name, err.message, err.responseBody);
    return err.responseBody.includes('DeviceNotOnline'); // the SDK has a class for devices that are not registered alone
  });
  process.exit(0);
}
main().catch((err) => { console.error(err); process.exit(1); });
