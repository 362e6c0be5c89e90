// Package hubservice speaks the service side of an IoT Hub: AMQP 1.0 over TLS or
// over WebSocket, one connection with one sender link to /messages/devicebound,
// authorized on the $cbs node, and renewed there, by a SAS token (IoT Hub
// developer guide, "Control access with shared access signatures") or by one of
// Microsoft Entra ID.
//
// Who owns what: Client.Run is the one owner of the connection. It dials, one
// attempt at a time with a pause before each but the first, and after any loss
// replaces connection, session and links whole. While a link is up it has
// goroutines of its own, all gone before the next one is dialled: the writer (the only one
// that sends), the settler (settle.go: it waits for the hub's decisions), the token keeper,
// the watchdog, and two that wait for the end of the connection and of its links. Send hands
// its message to the writer, whichever link has one at the time, and waits for the settler's word.
// Beside them, for as long as Run does, one ends what waits for a writer past its time.
//
// Half-open connections: go-amqp gives the connection up when nothing at all
// came from the hub for Options.IdleTimeout, keep-alive frames included (it asks
// the hub for them, AMQP 1.0 §2.4.5), TCP keep-alive probes every 15 s, a write
// that makes no progress for 15 s ends it, and so does Options.Stall.
//
// A link or session that the hub closes while nothing is being sent: go-amqp
// tells nobody, so wire.go looks for the hub's detach and end frames as they come
// in, and the link is replaced at once.
//
// Credentials (credential.go): what stands in files is looked at for each
// connection, when the hub refuses us and every 30 s. A connection string that has
// changed is put on the link that is up. The secondary connection string takes over
// as soon as the hub refuses the primary: to the token, to the link or to a
// message; the primary is tried again on every new connection and token, and every
// 10 minutes. When all are refused, the pause between connections holds, and a link
// that is up gets another token once a minute.
//
// Clocks: a token is made by the wall clock and renewed by the monotonic one. When
// the two part by more than a minute, the token is renewed at once: it was made with
// a clock that was wrong, or is.
//
// Client.Feedback reads the hub's feedback on the same connection, with a session of its own,
// in its caller's goroutine; records.go has the batches' format.
//
// outcome.go is the table from the hub's answer to the engine's class.
package hubservice
