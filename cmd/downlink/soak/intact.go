package soak

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
)

// intact compares what is at the edge with what was published.
func intact(t *target, seed uint64, got record) error {
	want := t.pub.message(seed)
	if subject := "edge." + t.to.id + "." + t.kind.verb; got.subject != subject {
		return fmt.Errorf("subject %q, not %q", got.subject, subject)
	}
	system := map[string]string{"verb": t.kind.verb}
	if t.route == "reads" { // with the relay's envelope
		system["Downlink-Correlation-Id"] = t.pub.Key
		system["Downlink-Content-Type"] = "application/octet-stream"
		system["Downlink-Subject"] = want.Subject
		system["Downlink-Seq"] = strconv.FormatUint(t.pub.Sequence, 10)
	}
	for name, value := range system {
		if got.header.Get(name) != value {
			return fmt.Errorf("header %q is %q, not %q", name, got.header.Get(name), value)
		}
	}
	if err := sameHeaders(want.Header, got.header); err != nil {
		return err
	}
	if !bytes.Equal(want.Data, got.data) {
		return fmt.Errorf("a body of %d bytes, not the %d that were published", len(got.data), len(want.Data))
	}
	return nil
}

// sameHeaders compares the headers that the routes copy: each there as it was, and none that nobody set.
func sameHeaders(want, got nats.Header) error {
	rest := make(nats.Header)
	for name, values := range got {
		switch {
		case name == "verb", name == nats.MsgIdHdr, strings.HasPrefix(name, "Downlink-") && name != "Downlink-Enc":
		default:
			rest[name] = values
		}
	}
	for name, values := range want {
		if len(rest[name]) != 1 || rest[name][0] != values[0] {
			return fmt.Errorf("header %q is %q, not %q", name, rest[name], values)
		}
		delete(rest, name)
	}
	if len(rest) > 0 {
		return fmt.Errorf("headers that nobody set: %v", rest)
	}
	return nil
}
