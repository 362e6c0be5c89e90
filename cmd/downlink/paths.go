package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// hubStateDir is where the embedded hub keeps its CA and keys without --data-dir:
// a place of this user that outlives a reboot.
func hubStateDir() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "downlink", "hub"), nil
	}
	if runtime.GOOS == "windows" || runtime.GOOS == "darwin" {
		dir, err := os.UserConfigDir()
		if err != nil {
			return "", usagef("no directory for this user's state (%w): give --data-dir", err)
		}
		return filepath.Join(dir, "downlink", "hub"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", usagef("no home directory (%w): give --data-dir", err)
	}
	return filepath.Join(home, ".local", "state", "downlink", "hub"), nil
}

// endpoints is what a running embedded hub leaves in its data directory, so that
// send, listen and hub ls find it on other ports too. It holds no secret.
type endpoints struct {
	AMQPS    string `json:"amqps"`
	MQTTS    string `json:"mqtts"`
	HTTPS    string `json:"https"`
	CAFile   string `json:"ca_file"`
	Hostname string `json:"hostname"`
	HTTP     string `json:"http,omitempty"` // base URL of its pages
	PID      int    `json:"pid"`
}

const endpointsFile = "endpoints.json"

// writeEndpoints replaces the file in one step: a reader sees the old or the new one.
func writeEndpoints(dir string, e endpoints) error {
	b, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, endpointsFile+".*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(append(b, '\n'))
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, endpointsFile))
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}

// answer is how long a hub on this machine has to answer.
const answer = 2 * time.Second

// running tells whether a hub runs with a data directory: what listens at the
// endpoints that it left there shows a certificate of the CA that it left there. One
// that was killed left them as well, and its ports may be somebody else's.
func running(dir string) (endpoints, bool) {
	if dir == "" {
		return endpoints{}, false
	}
	e, err := readEndpoints(dir)
	if err != nil {
		return endpoints{}, false
	}
	pool, err := certPool(endpointsFile, e.CAFile)
	if err != nil || pool == nil {
		return endpoints{}, false
	}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: answer}, "tcp", e.AMQPS, &tls.Config{RootCAs: pool, ServerName: e.Hostname})
	if err != nil {
		return endpoints{}, false
	}
	_ = conn.Close()
	return e, true
}

// removeEndpoints forgets this process's endpoints, not those of a hub that
// started in the same directory since.
func removeEndpoints(dir string) {
	if e, err := readEndpoints(dir); err == nil && e.PID == os.Getpid() {
		_ = os.Remove(filepath.Join(dir, endpointsFile))
	}
}

// readEndpoints says where the hub of a data directory listens.
func readEndpoints(dir string) (endpoints, error) {
	var e endpoints
	b, err := os.ReadFile(filepath.Join(dir, endpointsFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return e, fmt.Errorf("no hub runs with the data directory %s: start it with downlink hub --data-dir %s", dir, dir)
	case err != nil:
		return e, err
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return e, fmt.Errorf("%s: %w", filepath.Join(dir, endpointsFile), err)
	}
	return e, nil
}
