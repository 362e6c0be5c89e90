// Package relay is the device-side flow: it receives a device's cloud-to-device
// messages, has each mapped to a publication, publishes them in arrival order and
// completes each at the hub (PUBACK) only after the local NATS has it.
//
// Publishing is pipelined: the publisher's window bounds what is in flight, not
// this package. The PUBACKs leave in arrival order because Message.Ack promises so.
//
// MQTT knows no reject: a message that can never be mapped or published would come
// back for ever. It becomes a local dead letter, whole and with its reason, and is
// completed once that is stored. While a dead letter cannot be stored the message
// stays at the hub, the relay says so (Ready), and later messages are still
// published; their PUBACKs wait behind it.
//
// The hub sends again what was not completed when a connection ended, also while
// the first copy is still in flight here. Such a repeat is recognised by
// mapping.Publication.ID and shares the first copy's fate. This memory is the
// process's own and small; the local stream's duplicate window recognises what
// outlives it.
package relay
