// Package configs holds the example configurations, which are also what the
// binary embeds. A test loads every one of them.
package configs

import "embed"

// Files are all of them, by name such as "bridge.yaml".
//
//go:embed *.yaml
var Files embed.FS

// Demo is what downlink demo runs: bridge and relay with the embedded hub and
// two embedded NATS servers.
//
//go:embed demo.yaml
var Demo string

// Init is what downlink init writes: a short commented start with both sides.
//
//go:embed init.yaml
var Init string
