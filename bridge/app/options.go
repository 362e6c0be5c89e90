package app

import (
	"crypto/x509"
	"log/slog"

	"downlink/bridge"
	"downlink/bridge/config"
)

// Options is what New needs. Config and Logger are required.
type Options struct {
	Config *config.Config
	Logger *slog.Logger
	// EmbeddedHub is the embedded hub of this process, required if the
	// configuration refers to one. The caller starts and stops it.
	EmbeddedHub *EmbeddedHub
	// Source and Sender, if set, put something between the engine and one of its sources or hubs, which
	// they return: for programs that test the engine. What they return is safe for concurrent use as what
	// they were given is, and a source that is bridge.Owned or bridge.Finisher stays so.
	Source func(bridge.Source) bridge.Source
	Sender func(bridge.Sender) bridge.Sender
	// Version is shown in /status.
	Version string
}

// EmbeddedHub says how to reach the embedded hub of this process.
type EmbeddedHub struct {
	ServiceConnectionString string
	// DeviceConnectionString returns a device's connection string.
	DeviceConnectionString func(device string) (string, error)
	AMQPAddress            string // host:port
	MQTTAddress            string // host:port
	HTTPSAddress           string // host:port
	RootCAs                *x509.CertPool
}
