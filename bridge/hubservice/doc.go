// Package hubservice speaks the service side of an IoT Hub: AMQP 1.0 over TLS,
// one connection with one sender link to /messages/devicebound, authorized by a
// SAS token that is put on the $cbs node and renewed there (IoT Hub developer
// guide, "Control access with shared access signatures").
//
// Who owns what: Client.Run is the one owner of the connection. It dials, and
// after any loss replaces connection, session and links whole. While a link is
// up it has four goroutines, all gone before the next one is dialled: the writer
// (the only one that sends), the token keeper, the watchdog and one that waits
// for the end of the connection. Send hands its message to the writer, whichever
// link has one at the time, and waits for the receipt itself.
//
// Half-open connections: go-amqp gives the connection up when nothing at all
// came from the hub for a minute, keep-alive frames included (it asks the hub for
// one every 30 s, AMQP 1.0 §2.4.5), TCP keep-alive probes every 15 s, a write
// that makes no progress for 15 s ends it, and so does Options.Stall.
//
// A link or session that the hub closes while nothing is being sent is noticed by
// the next send, which then takes a new connection without its caller's knowing;
// until then Ready does not tell. The end of the connection is noticed at once.
//
// Client.Feedback reads the hub's feedback on the same connection, with a session of its own,
// in its caller's goroutine; records.go has the batches' format.
//
// outcome.go is the table from the hub's answer to the engine's class.
package hubservice
