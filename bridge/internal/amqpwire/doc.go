// Package amqpwire reads and writes AMQP 1.0 (OASIS Standard, 29 October 2012): the
// type system of part 1, the frames and performatives of part 2, the message
// format and delivery states of part 3 and the SASL frames of part 5, as a server
// needs them.
//
// A value on the wire is a constructor byte (or 0x00, a descriptor and another
// constructor) and its bytes. Everything else is built from that: a performative is a
// described list, a frame is a header and a performative, a message is a run of described
// sections in the payload of one or more transfer frames.
//
// Decoding never trusts a length from the peer: what it claims must be there already,
// the nesting is limited, and so is the number of values of one decoding, because an array of
// nulls takes no bytes. What is decoded into []byte aliases the input; strings are copies.
package amqpwire
