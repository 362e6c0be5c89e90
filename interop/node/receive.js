// Receives one C2D message with azure-iot-device over MQTT and checks it: receive.js MESSAGE_ID BODY [ws].
// Prints `connected` once it can receive.
'use strict';
const assert = require('assert');
const fs = require('fs');
const { Client } = require('azure-iot-device');
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');

const [messageId, body, transport] = process.argv.slice(2);
const client = Client.fromConnectionString(process.env.DEVICE_CONNECTION_STRING, transport === 'ws' ? MqttWs : Mqtt);
const timer = setTimeout(() => { console.error('no message within 30 s'); process.exit(1); }, 30_000);

client.on('message', (m) => {
  const properties = Object.fromEntries(m.properties.propertyList.map((p) => [p.key, p.value]));
  console.log('received', m.messageId, m.getData().toString(), JSON.stringify(properties));
  assert.strictEqual(m.getData().toString(), body);
  assert.strictEqual(m.messageId, messageId);
  assert.strictEqual(m.correlationId, 'cor-' + messageId);
  assert.strictEqual(m.contentType, 'application/json');
  assert.strictEqual(m.contentEncoding, 'utf-8');
  assert.strictEqual(properties.verb, 'reboot');
  assert.strictEqual(properties.odd, 'a=b&c d/e%f+g');
  assert.strictEqual(properties.unicode, 'grün');
  clearTimeout(timer);
  client.complete(m, () => client.close(() => process.exit(0)));
});
client.setOptions({ ca: fs.readFileSync(process.env.CA_FILE, 'ascii') })
  .then(() => client.open())
  .then(() => console.log('connected'))
  .catch((err) => { console.error(err.message); process.exit(1); });
