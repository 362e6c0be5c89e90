// Receives C2D messages with azure-iot-device-mqtt, completes them and checks them: receive.js mqtt|ws.
// Prints `connected` once it can receive.
'use strict';
const fs = require('fs');
const { Client } = require('azure-iot-device');
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');
const { messages, same, refused, limit } = require('./message');

const [transport] = process.argv.slice(2);
const want = messages();
let count = 0;

function fail(err) {
  console.error(err.message);
  process.exit(1);
}

async function take(client, m) {
  const properties = Object.fromEntries(m.properties.propertyList.map((p) => [p.key, p.value]));
  const ack = properties['iothub-ack'] ?? null; // the SDK leaves it among the application's
  delete properties['iothub-ack'];
  same(want[count], {
    id: m.messageId || null,
    body: Buffer.from(m.getData()).toString('base64'),
    correlation_id: m.correlationId || null,
    user_id: m.userId || null,
    content_type: m.contentType ?? null,
    content_encoding: m.contentEncoding ?? null,
    expires: m.expiryTimeUtc ? Date.parse(m.expiryTimeUtc) : null,
    ack,
    properties,
  });
  await client.complete(m);
  if (++count === want.length) {
    await client.close();
    process.exit(0);
  }
}

async function main() {
  const client = Client.fromConnectionString(process.env.DEVICE_CONNECTION_STRING, transport === 'ws' ? MqttWs : Mqtt);
  let last = Promise.resolve();
  // Before open: what waits in the queue comes at once, and the SDK completes it unseen without a listener.
  client.on('message', (m) => { last = last.then(() => take(client, m)).catch(fail); });
  client.on('error', refused); // told besides open's failure, and thrown if nobody listens
  await client.setOptions({ ca: fs.readFileSync(process.env.CA_FILE, 'ascii') });
  await client.open();
  console.log('connected');
  setTimeout(() => fail(new Error(`${count} of ${want.length} messages within 30 s`)), 30_000);
}
limit(50, 'not connected');
main().catch(refused);
