// Package amqpd is the embedded hub's service endpoint: AMQP 1.0 as IoT Hub speaks it to
// back ends (IoT Hub developer guide, "Communicate with your IoT hub by using the AMQP
// protocol"). A client opens a connection with or without SASL, puts a token on $cbs, attaches
// a sender to /messages/devicebound and sends; each message is settled with
// accepted, or with rejected and the hub's condition. A receiver from /messages/serviceBound/feedback gets
// batches of feedback, which it completes with accepted, gives back with released or modified, or drops with rejected.
//
// # Goroutines
//
// A connection has two: the reader, which is the caller of ServeConn and handles
// frames one after the other, and the writer, which sends what has gathered in the outbox since its last
// write and owns the timers for heartbeats and token expiry. A connection that receives feedback has one that
// waits for the queue, one that sends faster than the throttle has one that takes what is delayed, and a scripted
// delay adds a short-lived one for each answer that is late. All protocol state is guarded by conn.mu, which the reader holds
// while it handles a frame; the outbox has its own lock, taken inside.
//
// Whatever goes wrong with a peer ends its connection and nothing else: malformed frames
// with CLOSE and an error, silence and slowness by deadlines, our own panics by recovery.
package amqpd
