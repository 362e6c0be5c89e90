// rhea against the hub's service endpoint, as its documentation uses it: no SASL, CBS by put-token, then links.
'use strict';
const crypto = require('crypto');
const fs = require('fs');
const rhea = require('rhea');

// parse reads a connection string.
function parse(text) {
  return Object.fromEntries(text.split(';').map((pair) => [pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1)]));
}

function token(c) {
  const resource = encodeURIComponent(c.HostName);
  const expiry = Math.floor(Date.now() / 1000) + 3600;
  const signature = crypto.createHmac('sha256', Buffer.from(c.SharedAccessKey, 'base64')).update(`${resource}\n${expiry}`).digest('base64');
  return `SharedAccessSignature sr=${resource}&sig=${encodeURIComponent(signature)}&se=${expiry}&skn=${c.SharedAccessKeyName}`;
}

// open connects over amqp or ws, and authorizes. It resolves to the connection, or rejects with the CBS status.
function open(connectionString, transport) {
  const c = parse(connectionString);
  const container = rhea.create_container();
  const options = { host: c.HostName, hostname: c.HostName, servername: c.HostName, port: 5671, transport: 'tls', reconnect: false, ca: fs.readFileSync(process.env.CA_FILE) };
  if (transport === 'ws') {
    const connect = container.websocket_connect(require('ws'));
    options.connection_details = connect(`wss://${c.HostName}:443/$iothub/websocket`, ['AMQPWSB10'], { ca: options.ca });
  }
  const connection = container.connect(options);
  return new Promise((resolve, reject) => {
    connection.on('disconnected', (context) => reject(context.error || new Error('disconnected')));
    connection.on('connection_error', (context) => reject(context.connection.error));
    const receiver = connection.open_receiver('$cbs');
    const sender = connection.open_sender('$cbs');
    sender.once('sendable', () => sender.send({
      message_id: 'put-1', to: '$cbs', reply_to: 'cbs', body: token(c),
      application_properties: { operation: 'put-token', type: 'servicebus.windows.net:sastoken', name: c.HostName },
    }));
    receiver.once('message', ({ message }) => {
      const status = message.application_properties['status-code'];
      if (message.correlation_id !== 'put-1') reject(new Error(`correlation-id ${message.correlation_id}`));
      if (status === 200) resolve(connection);
      else reject(Object.assign(new Error(message.application_properties['status-description']), { condition: `cbs:${status}` }));
    });
  });
}

// send resolves once the hub has accepted the message, and rejects with the hub's error otherwise.
function send(sender, message) {
  return new Promise((resolve, reject) => {
    const go = () => {
      const delivery = sender.send(message);
      const settle = (event, done) => sender.on(event, (context) => { if (context.delivery === delivery) done(context.delivery); });
      settle('accepted', resolve);
      settle('rejected', (d) => reject(d.remote_state.error));
      settle('released', () => reject(new Error('released')));
      settle('modified', () => reject(new Error('modified')));
    };
    if (sender.sendable()) go();
    else sender.once('sendable', go);
  });
}

module.exports = { open, send };
