// Feedback with rhea: feedback.js DEVICE MESSAGE_ID. Releases the first batch, so that the hub must hand it out again, and accepts it then.
'use strict';
const assert = require('assert');
const { limit } = require('../node/message');
const { open } = require('./hub');

const [device, messageId] = process.argv.slice(2);
limit(50, 'no feedback');
process.on('unhandledRejection', (err) => { console.error(err); process.exit(1); });

async function main() {
  const connection = await open(process.env.SERVICE_CONNECTION_STRING, 'amqp');
  const receiver = connection.open_receiver({ source: '/messages/serviceBound/feedback', autoaccept: false, credit_window: 10 });
  let released;
  receiver.on('receiver_error', ({ receiver: r }) => { console.error(r.error); process.exit(1); });
  receiver.on('receiver_open', () => console.log('connected'));
  receiver.on('message', ({ message, delivery }) => {
    const text = message.body.content.toString();
    console.log('received', text, message.content_type, String(message.user_id), delivery.tag.length);
    assert.strictEqual(message.content_type, 'application/vnd.microsoft.iothub.feedback.json');
    assert.strictEqual(delivery.tag.length, 16); // a lock token
    assert.ok(message.message_annotations['iothub-enqueuedtime']);
    if (released === undefined) {
      released = text;
      delivery.release({ delivery_failed: true });
      return;
    }
    assert.strictEqual(text, released);
    delivery.accept();
    const record = JSON.parse(text).find((r) => r.originalMessageId === messageId);
    assert.strictEqual(record.deviceId, device);
    assert.strictEqual(record.statusCode, 'Success');
    connection.on('connection_close', () => process.exit(0));
    connection.close();
  });
}
main();
