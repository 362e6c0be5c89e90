// What samples of azure-iot-device do besides receiving: device.js mqtt|ws.
// Sends telemetry with properties, gets the twin, reports a property, registers handlers for methods and
// desired properties. The driver then asks the hub what it saw.
'use strict';
const assert = require('assert');
const fs = require('fs');
const { Client, Message } = require('azure-iot-device');
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');
const { limit } = require('./message');

limit(50, 'not done');

async function main() {
  const client = Client.fromConnectionString(process.env.DEVICE_CONNECTION_STRING, process.argv[2] === 'ws' ? MqttWs : Mqtt);
  await client.setOptions({ ca: fs.readFileSync(process.env.CA_FILE, 'ascii') });
  await client.open();
  client.on('message', (m) => console.log('received', m.messageId));
  client.onDeviceMethod('reboot', (request, response) => response.send(200));

  const message = new Message(JSON.stringify({ temperature: 21.5, place: 'Köln' }));
  message.messageId = process.env.TELEMETRY_ID;
  message.correlationId = 'c-1';
  message.contentType = 'application/json';
  message.contentEncoding = 'utf-8';
  message.properties.add('alert', 'a=b&c d/e');
  await client.sendEvent(message);
  console.log('sent', message.messageId);

  const twin = await client.getTwin();
  console.log('twin', JSON.stringify(twin.properties.desired), JSON.stringify(twin.properties.reported));
  assert.ok(twin.properties.desired.$version >= 1);
  const before = twin.properties.reported.$version;
  assert.ok(before >= 1);
  twin.on('properties.desired', (patch) => console.log('desired', JSON.stringify(patch)));
  await new Promise((resolve, reject) => {
    twin.properties.reported.update({ firmware: '1.2.3' }, (err) => (err ? reject(err) : resolve()));
  });
  await new Promise((resolve, reject) => twin.get((err) => (err ? reject(err) : resolve())));
  console.log('reported', JSON.stringify(twin.properties.reported));
  assert.strictEqual(twin.properties.reported.firmware, '1.2.3');
  assert.ok(twin.properties.reported.$version > before);
  await client.close();
  process.exit(0);
}
main().catch((err) => { console.error(err); process.exit(1); });
