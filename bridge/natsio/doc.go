// Package natsio is Downlink's NATS side: connections, the JetStream and core
// sources and who owns them, the publishers of the edge, the mailbox, dead letters, and the embedded server.
//
// Three rules explain most of it. JetStream hands out the unacked messages of a
// dead owner after newer ones, so a source that takes a consumer over waits
// behind a barrier (barrier.go) until it holds all of them. Publishes that are
// repeated after a reconnect arrive after later ones, so an ordered publisher
// has a connection of its own and starts again from the first message without
// an answer (outbox.go). And nothing here ends because a server is away: each
// part comes back by itself, for ever, and says in Ready what is missing.
package natsio
