// A device with azure-iot-device that answers a method and takes a desired property: serve.js mqtt|ws. Prints `connected` once it can.
'use strict';
const assert = require('assert');
const fs = require('fs');
const { Client } = require('azure-iot-device');
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');
const { limit } = require('./message');

limit(50, 'not done');

async function main() {
  const client = Client.fromConnectionString(process.env.DEVICE_CONNECTION_STRING, process.argv[2] === 'ws' ? MqttWs : Mqtt);
  await client.setOptions({ ca: fs.readFileSync(process.env.CA_FILE, 'ascii') });
  await client.open();
  const answered = new Promise((resolve, reject) => {
    client.onDeviceMethod('reboot', (request, response) => {
      console.log('method', request.methodName, JSON.stringify(request.payload));
      response.send(207, { echo: request.payload, name: request.methodName }, (err) => (err ? reject(err) : resolve()));
    });
  });
  const twin = await client.getTwin();
  const patched = new Promise((resolve) => {
    twin.on('properties.desired', (patch) => {
      console.log('desired', JSON.stringify(patch));
      if ('interval' in patch) resolve(patch);
    });
  });
  // The SDK does not tell when the subscription for methods stands; the twin's was answered after it.
  await new Promise((resolve, reject) => twin.get((err) => (err ? reject(err) : resolve())));
  console.log('connected');
  assert.strictEqual((await patched).interval, 5);
  await answered;
  await client.close();
  process.exit(0);
}
main().catch((err) => { console.error(err); process.exit(1); });
