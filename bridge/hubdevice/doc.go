// Package hubdevice is the hub's device side: an MQTT 3.1.1 client over TLS that
// connects as one device, receives its cloud-to-device (C2D) messages and
// completes each with a PUBACK once the caller says so.
//
// # What the hub does
//
// A device has one connection; a new one makes the hub drop the older. The hub
// publishes a C2D message on devices/{id}/messages/devicebound/{property bag},
// takes PUBACK as "complete" and knows no reject on MQTT. With clean session off
// the subscription outlives the connection and deliveries start right after
// CONNACK, before any SUBSCRIBE, so the handler is in place before CONNECT. What
// was not PUBACKed comes again on the next connection, and not before, and the DUP
// flag says nothing. The hub keeps at most 50 messages per device, delivered but
// not completed ones included: that is the only flow control there is, and it
// bounds what this package holds in memory.
//
// # What this package does
//
// [Client.Run] owns one connection at a time, each a fresh paho client, and makes
// a new one after every loss. paho's own reconnecting is off: with it, an Ack for
// a message of the old connection could reach the new one, where the packet
// identifier means another message. An Ack after the loss of the connection that
// delivered the message is dropped here; the hub sends that message again.
//
// So a message may come twice, also while its first copy is still being handled.
// Both copies are delivered; whoever publishes them recognises the repeat by
// device, message ID and content ([mapping.Publication].ID).
//
// SAS tokens are made fresh at each connect. MQTT has no way to renew one, so the
// client disconnects in an orderly way and connects again before the token expires.
package hubdevice
