package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// createOnce returns the file's contents, making them first if there is no
// such file. Of several processes that try at once one wins, and all return
// what it wrote: the file appears under its name complete, and never changes.
func createOnce(path string, fresh func() ([]byte, error)) ([]byte, error) {
	text, err := os.ReadFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return text, err
	}
	if text, err = fresh(); err != nil {
		return nil, err
	}
	temp, err := writeTemp(path, text, 0o600)
	if err != nil {
		return nil, err
	}
	defer os.Remove(temp)
	// Link, not Rename: it never replaces what another process put there first.
	if err := os.Link(temp, path); err != nil && !errors.Is(err, fs.ErrExist) {
		// A file system without hard links. Two processes starting in the same
		// instant may then differ, until the loser is started again.
		if err := os.Rename(temp, path); err != nil {
			return nil, err
		}
	}
	return os.ReadFile(path)
}

// publish makes the file hold text, replacing it whole.
func publish(path string, text []byte) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, text) {
		return nil
	}
	return replace(path, text, 0o644)
}

func replace(path string, text []byte, mode fs.FileMode) error {
	temp, err := writeTemp(path, text, mode)
	if err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		os.Remove(temp)
		return err
	}
	return nil
}

// writeTemp writes text, synced, to a new file beside path.
func writeTemp(path string, text []byte, mode fs.FileMode) (name string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(text); err != nil {
		f.Close()
		return "", fmt.Errorf("write %s: %w", f.Name(), err)
	}
	if err := errors.Join(f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return "", err
	}
	return f.Name(), nil
}

// systemBundle is the system's CA certificates in PEM, empty if there are none
// or the system keeps them elsewhere than in a file.
func systemBundle() []byte {
	paths := []string{
		"/etc/ssl/certs/ca-certificates.crt", // Debian, Alpine, Arch
		"/etc/pki/tls/certs/ca-bundle.crt",   // Fedora, RHEL
		"/etc/ssl/ca-bundle.pem",             // openSUSE
		"/etc/ssl/cert.pem",                  // macOS, the BSDs
	}
	if p := os.Getenv("SSL_CERT_FILE"); p != "" {
		paths = append([]string{p}, paths...)
	}
	for _, p := range paths {
		if text, err := os.ReadFile(p); err == nil && bytes.Contains(text, []byte("-----BEGIN CERTIFICATE-----")) {
			return append(bytes.TrimRight(text, "\n"), '\n')
		}
	}
	return nil
}
