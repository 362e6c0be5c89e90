// Sends one C2D message with azure-iothub over AMQP: send.js DEVICE BODY MESSAGE_ID [ws].
// A refusal is printed with the SDK's error class and exits 3.
'use strict';
const { Client, AmqpWs, Amqp } = require('azure-iothub');
const { Message } = require('azure-iot-common');

const [device, body, messageId, transport] = process.argv.slice(2);
const client = Client.fromConnectionString(process.env.SERVICE_CONNECTION_STRING, transport === 'ws' ? AmqpWs : Amqp);
const message = new Message(body);
message.messageId = messageId;
message.correlationId = 'cor-' + messageId;
message.contentType = 'application/json';
message.contentEncoding = 'utf-8';
message.expiryTimeUtc = Date.now() + 600_000;
message.ack = 'full';
message.properties.add('verb', 'reboot');
message.properties.add('odd', 'a=b&c d/e%f+g');
message.properties.add('unicode', 'grün');

client.open()
  .then(() => client.send(device, message))
  .then(() => { console.log('accepted', messageId); return client.close(); })
  .then(() => process.exit(0))
  .catch((err) => { console.log('refused', err.name, err.message); process.exit(3); });
