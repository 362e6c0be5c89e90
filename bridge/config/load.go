package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"unicode/utf8"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// LoadOptions says what Load reads beside the file. The zero value reads the
// environment and the secrets.
type LoadOptions struct {
	// Flags may hold the flags that Settings names; those that were set precede
	// the environment. Nil: none.
	Flags *pflag.FlagSet
	// NoEnvironment leaves the environment out.
	NoEnvironment bool
	// Side limits environment, flags and secrets to one section, for a process that
	// runs only that one: its machine need not have the other's secrets. The
	// file is checked as a whole all the same.
	Side Side
	// SkipSecrets does not read the files that the configuration names (connection
	// strings, credentials, certificates), for checks on a machine that does not have them. Such a configuration cannot be run.
	SkipSecrets bool
}

// Side is a section of the file. The zero value stands for both.
type Side string

// The two sides.
const (
	BridgeSide Side = "bridge"
	RelaySide  Side = "relay"
)

// has reports whether a process of this side runs that section.
func (s Side) has(section Side) bool { return s == "" || s == section }

// Load reads, decodes and validates a file, the settings of the environment and
// the flags, and the secrets. Every mistake is reported: the error joins
// *Errors, sorted by line. It changes nothing, and no message has a secret in it.
func Load(path string, o LoadOptions) (*Config, error) {
	b, err := readFile(path, maxFile)
	if err != nil {
		return nil, &Error{File: path, Err: fmt.Errorf("cannot read the configuration: %w", reason(err))}
	}
	return LoadBytes(path, b, o)
}

// LoadBytes is Load for a file's content that the caller has already, such as
// the demo's. Relative paths in it are relative to name's folder.
func LoadBytes(name string, b []byte, o LoadOptions) (*Config, error) {
	var environ []string
	if !o.NoEnvironment {
		environ = os.Environ()
	}
	set, warnings := overrides(o.Flags, environ)
	c, p := decode(name, b)
	if c == nil {
		return nil, p.err()
	}
	c.Warnings = warnings
	p.apply(c, set, o.Side)
	if o.Side == RelaySide && c.HTTP == "" && !p.src.given("http") {
		c.HTTP = relayHTTP
	}
	c.setDefaults(p.src.given)
	p.validate(c)
	if !o.SkipSecrets {
		p.readSecrets(c, o.Side)
		p.checkFiles(c, o.Side)
		p.checkLookups(c, o.Side)
	}
	p.twins(c)
	if err := p.err(); err != nil {
		return nil, err
	}
	c.Warnings = append(c.Warnings, p.warned()...)
	return c, nil
}

// Parse decodes and validates a file's content, and nothing else: no files, no
// environment. Secrets in files stay unread. name is for messages, and
// relative paths are relative to its folder. Errors are as those of Load.
func Parse(name string, b []byte) (*Config, error) {
	c, p := decode(name, b)
	if c == nil {
		return nil, p.err()
	}
	c.setDefaults(p.src.given)
	p.validate(c)
	p.twins(c)
	if err := p.err(); err != nil {
		return nil, err
	}
	c.Warnings = p.warned()
	return c, nil
}

// Validate checks a Config made in Go, after SetDefaults. It reads no files.
// The error joins *Errors that have a path and neither file nor line.
func (c *Config) Validate() error {
	p := newProblems(&source{pos: make(map[string]place)})
	p.validate(c)
	p.twins(c)
	return p.err()
}

// decode reads the file's text into structs. The Config is nil if nothing can
// be said about its fields.
func decode(name string, b []byte) (*Config, *problems) {
	p := newProblems(newSource(name, b))
	root, fixes := p.document(b)
	if root == nil {
		if len(p.list) == 0 {
			p.addLine(1, "", "the file is empty; downlink init writes one to start from")
		}
		return nil, p
	}
	if root.Kind != yaml.MappingNode {
		p.addLine(root.Line, "", "keys and values belong here, such as version: 1")
		return nil, p
	}
	c := &Config{}
	d := &decoder{problems: p, most: moreValues + len(b)}
	d.section(root, reflect.ValueOf(c).Elem(), "")
	p.named(fixes)
	p.resolve(c)
	return c, p
}

// resolve makes the file's relative paths relative to the file's folder.
func (p *problems) resolve(c *Config) {
	for _, text := range texts(c) {
		if path(text.path) {
			*text.value = p.src.resolve(*text.value)
		}
	}
}

// fieldText is a text of a configuration with its path.
type fieldText struct {
	path  string
	value *string
}

// texts lists every single text of c.
func texts(c *Config) []fieldText {
	var list []fieldText
	var walk func(v reflect.Value, path string)
	walk = func(v reflect.Value, path string) {
		for _, f := range fieldsOf(v.Type()) {
			at, fv := join(path, f.key), v.FieldByIndex(f.index)
			if fv.Kind() == reflect.Pointer {
				if fv.IsNil() {
					continue
				}
				fv = fv.Elem()
			}
			switch {
			case section(f.typ):
				walk(fv, at)
			case f.typ.Kind() == reflect.String:
				list = append(list, fieldText{at, fv.Addr().Interface().(*string)})
			case f.typ.Kind() == reflect.Slice && section(f.typ.Elem()):
				for i := range fv.Len() {
					walk(fv.Index(i), at+"["+itoa(i)+"]")
				}
			}
		}
	}
	walk(reflect.ValueOf(c).Elem(), "")
	return list
}

// maxSecret bounds a secret's file; a connection string has some hundred bytes.
const maxSecret = 64 << 10

// readSecrets reads the connection strings that stand in files of their own.
func (p *problems) readSecrets(c *Config, side Side) {
	read := func(at string, s *Secret, file string, check func(Secret) error) {
		if file == "" || p.has(at) || p.failed[parent(at)] {
			return
		}
		secret, err := readSecret(file)
		if err != nil {
			p.add(at, err)
			return
		}
		*s = secret
		if err := check(*s); err != nil {
			p.addf(at, "%s: %w", file, err)
		}
	}
	if b := c.Bridge; b != nil && side.has(BridgeSide) {
		for i := range b.Hubs {
			h, at := &b.Hubs[i], "bridge.hubs["+itoa(i)+"]"
			read(at+".connection_string_file", &h.ConnectionString, h.ConnectionStringFile, checkHubString)
			read(at+".secondary_connection_string_file", &h.SecondaryConnectionString, h.SecondaryConnectionStringFile, func(s Secret) error {
				if err := checkHubString(s); err != nil {
					return err
				}
				return sameHub(h.ConnectionString, s)
			})
		}
	}
	if r := c.Relay; r != nil && side.has(RelaySide) {
		for i := range r.Devices {
			read("relay.devices["+itoa(i)+"].connection_string_file", &r.Devices[i].ConnectionString, r.Devices[i].ConnectionStringFile, checkDeviceString)
		}
	}
}

// SecretText is the one line that a file with a connection string holds, without
// the line end and the byte order mark that editors add. The error completes
// "FILE …" and has nothing of the file's content in it.
func SecretText(b []byte) (string, error) {
	text := strings.TrimSpace(strings.TrimPrefix(string(b), "\ufeff"))
	switch {
	case text == "":
		return "", errors.New("is empty")
	case strings.HasPrefix(text, "\xff\xfe"), strings.HasPrefix(text, "\xfe\xff"), !utf8.ValidString(text), strings.Contains(text, "\x00"):
		return "", errors.New("is not UTF-8 text; save it as UTF-8")
	case strings.ContainsAny(text, "\r\n"):
		return "", errors.New("has more than one line; it holds one connection string and nothing else")
	case strings.ContainsAny(text, "\"'"):
		return "", errors.New("has quotes in it; it holds the connection string without quotes")
	}
	return text, nil
}

// readFile reads a file of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	return b, err
}

// reason is what went wrong without the path, which the message has already.
func reason(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
