// What the programs here send and expect, as the driver gives it in the environment: MESSAGES is a JSON
// list; each message has id, body (base64), correlation_id, user_id, content_type, content_encoding,
// expires (ms), ack and properties. What is absent is null. No SDK is needed here.
'use strict';
const assert = require('assert');

const messages = () => JSON.parse(process.env.MESSAGES);

// Asserts that one message arrived as it was sent. A message sent without an ID may have been given one by its sender.
function same(want, got) {
  console.log('received ' + JSON.stringify(got));
  for (const [key, value] of Object.entries(want)) {
    if (key in got && !(key === 'id' && value === null)) {
      assert.deepStrictEqual(got[key], value, `${key}: got ${JSON.stringify(got[key])}, want ${JSON.stringify(value)}`);
    }
  }
}

// Prints a refusal and ends the program: the driver compares the line. It has the name of the SDK's error class (or of the one
// that it wraps without naming it), or the condition where the client has no classes.
function refused(err) {
  const wrapped = err.name === 'Error' ? err.amqpError?.name : undefined;
  console.log('refused', wrapped ?? err.condition ?? err.name, err.message ?? err.description);
  process.exit(3);
}

// Ends the program as failed when it takes too long.
function limit(seconds, what) {
  setTimeout(() => { console.error(`${what} within ${seconds} s`); process.exit(1); }, seconds * 1000).unref();
}

module.exports = { messages, same, refused, limit };
