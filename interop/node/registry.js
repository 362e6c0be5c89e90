// The registry through azure-iothub: create, get, list, update, delete, statistics. Refusals by the SDK's error classes.
'use strict';
const assert = require('assert');
const { Registry } = require('azure-iothub');
const { limit } = require('./message');

limit(50, 'not done');
const device = 'registry-node';
const key = (n) => Buffer.alloc(32, n).toString('base64');

async function refused(name, promise) {
  let err;
  try { await promise; } catch (e) { err = e; }
  assert.ok(err, `no ${name}`);
  console.log('refused', err.name, err.message);
  assert.strictEqual(err.name, name);
}

async function main() {
  const registry = Registry.fromConnectionString(process.env.OWNER_CONNECTION_STRING);
  const before = (await registry.getRegistryStatistics()).responseBody;

  const symmetricKey = { primaryKey: key(1), secondaryKey: key(2) };
  const created = (await registry.create({ deviceId: device, status: 'enabled', authentication: { type: 'sas', symmetricKey } })).responseBody;
  console.log('created', JSON.stringify(created));
  assert.strictEqual(created.deviceId, device);
  assert.strictEqual(created.status, 'enabled');
  assert.strictEqual(created.connectionState, 'Disconnected');
  assert.deepStrictEqual(created.authentication.symmetricKey, symmetricKey);
  assert.ok(created.generationId && created.etag);

  const got = (await registry.get(device)).responseBody;
  assert.strictEqual(got.etag, created.etag);
  const listed = (await registry.list()).responseBody.map((d) => d.deviceId);
  console.log('listed', listed.join(' '));
  assert.ok(listed.includes(device));

  const updated = (await registry.update({ ...got, status: 'disabled', statusReason: 'maintenance' })).responseBody;
  console.log('updated', updated.status, updated.statusReason, updated.etag);
  assert.strictEqual(updated.status, 'disabled');
  assert.strictEqual(updated.statusReason, 'maintenance');
  assert.strictEqual(updated.generationId, created.generationId);

  const generated = (await registry.create({ deviceId: device + '-2' })).responseBody;
  assert.ok(generated.authentication.symmetricKey.primaryKey);
  await registry.delete(generated.deviceId);

  await refused('DeviceAlreadyExistsError', registry.create({ deviceId: device }));
  const now = (await registry.getRegistryStatistics()).responseBody;
  console.log('statistics', JSON.stringify(now));
  assert.strictEqual(now.totalDeviceCount, before.totalDeviceCount + 1);
  assert.strictEqual(now.disabledDeviceCount, before.disabledDeviceCount + 1);

  await registry.delete(device);
  await refused('DeviceNotFoundError', registry.get(device));
  await refused('DeviceNotFoundError', registry.delete(device));
  const weak = Registry.fromConnectionString(process.env.REGISTRY_READ_CONNECTION_STRING);
  assert.ok((await weak.list()).responseBody.length > 0);
  await refused('UnauthorizedError', weak.create({ deviceId: device }));
  process.exit(0);
}
main().catch((err) => { console.error(err); process.exit(1); });
