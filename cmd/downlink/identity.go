package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"downlink/bridge/app"
	"downlink/bridge/config"
	"downlink/bridge/hubservice"
)

// access is how to reach one side of one hub. The connection string is a secret.
type access struct {
	connectionString string
	address          string // host:port; "" is the hub's name and the protocol's port
	rootCAs          *x509.CertPool
	ours             bool // an embedded hub, known by its data directory
	// hub is the service side as a configuration has it, which may do without a
	// connection string; nil: what is above is all.
	hub *hubservice.Options
}

// service is how to reach the hub's service side.
func (a access) service() hubservice.Options {
	o := hubservice.Options{ConnectionString: a.connectionString}
	if a.hub != nil {
		o = *a.hub
	}
	if o.Hub = part(a.connectionString, "HostName"); o.Entra != nil {
		o.Hub = o.Host
	}
	o.Address, o.RootCAs = a.address, a.rootCAs
	return o
}

// identityFlags choose a connection string; send uses a hub's, listen a device's.
type identityFlags struct {
	kind       string // "hub" or "device"
	file       string
	configFile string
	dataDir    string
	address    string
	caFile     string
}

// register adds the flags; address is the name of the flag for host:port.
func (f *identityFlags) register(cmd *cobra.Command, kind, address, port string) {
	f.kind = kind
	fs := cmd.Flags()
	fs.StringVar(&f.file, kind+"-connection-string-file", "", "file with the "+kind+"'s connection string (or $"+f.env()+"[_FILE])")
	fs.StringVarP(&f.configFile, "config", "c", "", "take it from this configuration file")
	fs.StringVar(&f.dataDir, "data-dir", "", "take it from the embedded hub with this data directory (default: the one of downlink hub, if it runs)")
	fs.StringVar(&f.address, address, "", "host:port, if it is not the hub's name and "+port)
	fs.StringVar(&f.caFile, "ca-file", "", "CA certificate to trust, such as the embedded hub's")
	cmd.MarkFlagsMutuallyExclusive(kind+"-connection-string-file", "config", "data-dir")
}

func (f *identityFlags) env() string {
	return "DOWNLINK_" + strings.ToUpper(f.kind) + "_CONNECTION_STRING"
}

// resolve finds the connection string: a flag, else the environment, else the
// embedded hub that runs in the default data directory. device is the device
// meant; only listen, whose string is a device's, depends on it.
func (f *identityFlags) resolve(ctx context.Context, device string) (access, error) {
	var a access
	var err error
	switch {
	case f.file != "":
		a.connectionString, err = readSecret(f.file)
		if err != nil {
			err = usagef("--%s-connection-string-file: %w", f.kind, err)
		}
	case f.configFile != "":
		a, err = f.fromConfig(device)
	case f.dataDir != "":
		a, err = f.fromDataDir(f.dataDir, device)
	default:
		a, err = f.fromEnvironment(device)
	}
	if err != nil {
		return access{}, err
	}
	if f.address != "" {
		a.address = f.address
	}
	if f.caFile != "" {
		if a.rootCAs, err = certPool("--ca-file", f.caFile); err != nil {
			return access{}, err
		}
	}
	return a, nil
}

func (f *identityFlags) fromEnvironment(device string) (access, error) {
	value, path := os.Getenv(f.env()), os.Getenv(f.env()+"_FILE")
	switch {
	case value != "" && path != "":
		return access{}, usagef("%s and %s_FILE are both set: unset one", f.env(), f.env())
	case value != "":
		return access{connectionString: strings.TrimSpace(value)}, nil
	case path != "":
		value, err := readSecret(path)
		if err != nil {
			return access{}, usagef("%s_FILE: %w", f.env(), err)
		}
		return access{connectionString: value}, nil
	}
	dir, err := hubStateDir()
	if err == nil {
		if _, err := os.Stat(filepath.Join(dir, endpointsFile)); err == nil {
			return f.fromDataDir(dir, device)
		}
	}
	return access{}, usagef("which hub? give --%s-connection-string-file, set %s, or start downlink hub", f.kind, f.env())
}

// fromDataDir is how to reach the embedded hub that runs with this data directory.
func (f *identityFlags) fromDataDir(dir, device string) (access, error) {
	e, err := readEndpoints(dir)
	if err != nil {
		return access{}, err
	}
	a := access{ours: true}
	if a.rootCAs, err = certPool(filepath.Join(dir, endpointsFile), e.CAFile); err != nil {
		return access{}, err
	}
	if f.kind == "device" {
		a.address = e.MQTTS
		a.connectionString, err = storedString(dir, e.Hostname, "device", device)
	} else {
		a.address = e.AMQPS
		a.connectionString, err = storedString(dir, e.Hostname, "service", "")
	}
	return a, err
}

func (f *identityFlags) fromConfig(device string) (access, error) {
	side := config.BridgeSide
	if f.kind == "device" {
		side = config.RelaySide
	}
	c, err := config.Load(f.configFile, config.LoadOptions{Side: side})
	if err != nil {
		return access{}, asUsage(err)
	}
	if f.kind == "device" {
		return deviceFromConfig(f.configFile, c.Relay, device)
	}
	if c.Bridge == nil || len(c.Bridge.Hubs) == 0 {
		return access{}, usagef("%s: it names no hub: it has no bridge section", f.configFile)
	}
	h := c.Bridge.Hubs[0]
	if h.Embedded {
		return access{}, usagef("%s: hub %s lives inside the bridge's process: use --data-dir", f.configFile, h.Name)
	}
	o, err := app.HubOptions(h)
	if err != nil {
		return access{}, usagef("%s: hub %s: %w", f.configFile, h.Name, err)
	}
	return access{connectionString: h.ConnectionString.Reveal(), address: o.Address, rootCAs: o.RootCAs, hub: &o}, nil
}

func deviceFromConfig(file string, relay *config.Relay, device string) (access, error) {
	if relay == nil {
		return access{}, usagef("%s: it names no device: it has no relay section", file)
	}
	for _, d := range relay.Devices {
		if d.Embedded == device {
			return access{}, usagef("%s: device %s belongs to the hub inside the relay's process: use --data-dir", file, device)
		}
		if deviceOf(d.ConnectionString.Reveal()) != device {
			continue
		}
		pool, err := certPool(file, d.CAFile)
		return access{connectionString: d.ConnectionString.Reveal(), address: d.MQTTAddress, rootCAs: pool}, err
	}
	return access{}, usagef("%s: the relay section has no device %q", file, device)
}

// part returns one part of a connection string; it does not judge the string,
// the clients do.
func part(connectionString, name string) string {
	for p := range strings.SplitSeq(connectionString, ";") {
		if n, v, ok := strings.Cut(p, "="); ok && strings.EqualFold(strings.TrimSpace(n), name) {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func deviceOf(connectionString string) string { return part(connectionString, "DeviceId") }

// readSecret reads a file that holds one connection string.
func readSecret(path string) (string, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("no file %s", path)
	}
	if err != nil {
		return "", err
	}
	text, err := config.SecretText(b)
	if err != nil {
		return "", fmt.Errorf("%s %w", path, err)
	}
	return text, nil
}
