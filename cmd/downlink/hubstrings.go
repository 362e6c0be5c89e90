package main

import (
	"fmt"
	"os"
	"path/filepath"

	"downlink/bridge/emulator/identity"
)

// writeConnectionStrings leaves the connection string of every policy and of
// these devices in files of their own, for processes that have no shell to ask
// for them: service, iothubowner and so on, and device-ID. An empty dir is none.
func writeConnectionStrings(h *embeddedHub, dir string, devices []string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("--connection-strings: %w", err)
	}
	write := func(name, text string, err error) error {
		if err == nil {
			err = writeAtomically(filepath.Join(dir, name), []byte(text+"\n"))
		}
		if err != nil {
			return fmt.Errorf("--connection-strings: %w", err)
		}
		return nil
	}
	for _, policy := range identity.Policies() {
		text, err := h.ConnectionString(policy)
		if err := write(policy, text, err); err != nil {
			return err
		}
	}
	for _, d := range devices {
		text, err := h.DeviceConnectionString(d)
		if err := write("device-"+d, text, err); err != nil {
			return err
		}
	}
	return nil
}

// writeAtomically replaces a file that this user alone may read.
func writeAtomically(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".connection-string-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
