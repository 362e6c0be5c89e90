// Sends C2D messages with azure-iothub: send.js DEVICE amqp|ws.
'use strict';
const { Client, Amqp, AmqpWs } = require('azure-iothub');
const { Message, NoRetry } = require('azure-iot-common');
const { messages, refused, limit } = require('./message');

const [device, transport] = process.argv.slice(2);
limit(50, 'not sent');

async function main() {
  const client = Client.fromConnectionString(process.env.SERVICE_CONNECTION_STRING, transport === 'ws' ? AmqpWs : Amqp);
  if (process.env.RETRY === 'none') client.setRetryPolicy(new NoRetry());
  await client.open();
  for (const m of messages()) {
    const message = new Message(Buffer.from(m.body, 'base64'));
    if (m.id !== null) message.messageId = m.id;
    if (m.correlation_id !== null) message.correlationId = m.correlation_id;
    if (m.user_id !== null) message.userId = m.user_id; // the SDK takes it and does not send it
    if (m.content_type !== null) message.contentType = m.content_type;
    if (m.content_encoding !== null) message.contentEncoding = m.content_encoding;
    if (m.expires !== null) message.expiryTimeUtc = m.expires;
    if (m.ack !== null) message.ack = m.ack;
    for (const [name, value] of Object.entries(m.properties)) message.properties.add(name, value);
    const result = await client.send(device, message);
    console.log('accepted', m.id, result.result.constructor.name);
  }
  await client.close();
  process.exit(0);
}
main().catch(refused);
