// Feedback with azure-iothub: feedback.js DEVICE MESSAGE_ID amqp|ws. Prints `connected`, waits for the message's record and completes it.
'use strict';
const assert = require('assert');
const { Client, Amqp, AmqpWs } = require('azure-iothub');
const { limit } = require('./message');

const [device, messageId, transport] = process.argv.slice(2);
limit(50, 'no feedback');

async function main() {
  const client = Client.fromConnectionString(process.env.SERVICE_CONNECTION_STRING, transport === 'ws' ? AmqpWs : Amqp);
  await client.open();
  const receiver = await new Promise((resolve, reject) => {
    client.getFeedbackReceiver((err, r) => (err ? reject(err) : resolve(r)));
  });
  receiver.on('errorReceived', (err) => { console.error(err); process.exit(1); });
  receiver.on('message', async (m) => {
    const records = JSON.parse(m.getData().toString());
    console.log('received', JSON.stringify(records), m.contentType, String(m.userId));
    assert.strictEqual(m.contentType, 'application/vnd.microsoft.iothub.feedback.json');
    await receiver.complete(m);
    const record = records.find((r) => r.originalMessageId === messageId);
    if (!record) return; // another case's
    assert.strictEqual(record.deviceId, device);
    assert.ok(record.deviceGenerationId);
    assert.strictEqual(record.statusCode, 'Success');
    assert.strictEqual(record.description, 'Success');
    assert.ok(!Number.isNaN(Date.parse(record.enqueuedTimeUtc)));
    await client.close();
    process.exit(0);
  });
  console.log('connected');
}
process.on('unhandledRejection', (err) => { console.error(err); process.exit(1); });
main();
