package app

import (
	"crypto/x509"
	"log/slog"

	"downlink/bridge/config"
)

// Options is what New needs. Config and Logger are required.
type Options struct {
	Config *config.Config
	Logger *slog.Logger
	// EmbeddedHub is the embedded hub of this process, required if the
	// configuration refers to one. The caller starts and stops it.
	EmbeddedHub *EmbeddedHub
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
