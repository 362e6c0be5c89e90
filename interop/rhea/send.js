// Sends C2D messages with rhea, an AMQP 1.0 client that knows nothing of IoT Hub: send.js DEVICE amqp|ws.
'use strict';
const { messages, refused, limit } = require('../node/message');
const { open, send } = require('./hub');
const rhea = require('rhea');

const [device, transport] = process.argv.slice(2);
limit(50, 'not sent');

async function main() {
  const connection = await open(process.env.SERVICE_CONNECTION_STRING, transport);
  const sender = connection.open_sender('/messages/devicebound');
  sender.setMaxListeners(0);
  sender.on('sender_error', () => refused(sender.error)); // the hub took the link back
  for (const m of messages()) {
    const message = {
      to: `/devices/${encodeURIComponent(device)}/messages/devicebound`,
      body: rhea.message.data_section(Buffer.from(m.body, 'base64')),
      application_properties: { ...m.properties },
    };
    if (m.id !== null) message.message_id = m.id;
    if (m.correlation_id !== null) message.correlation_id = m.correlation_id;
    if (m.user_id !== null) message.user_id = Buffer.from(m.user_id);
    if (m.content_type !== null) message.content_type = m.content_type;
    if (m.content_encoding !== null) message.content_encoding = m.content_encoding;
    if (m.expires !== null) message.absolute_expiry_time = m.expires;
    if (m.ack !== null) message.application_properties['iothub-ack'] = m.ack;
    await send(sender, message);
    console.log('accepted', m.id);
  }
  connection.close();
  process.exit(0);
}
main().catch(refused);
