package natsio

import (
	"context"
	"strings"
	"time"

	"downlink/bridge"
	"downlink/mapping"

	"github.com/nats-io/nats.go/jetstream"
)

// ParkedFilter chooses entries of the mailbox. An empty field allows all.
type ParkedFilter struct {
	Hub, Device, Stream, Route string
	// Since bounds when the entry was stored in the mailbox.
	Since time.Time
}

// Each calls each for the entries of the mailbox that f chooses, in order and by their headers only, until it
// returns false or an error. What is stored meanwhile is left out. Memory does not grow with
// the mailbox. One that is not there is a *MissingError.
func (m *Mailbox) Each(ctx context.Context, f ParkedFilter, each func(Parked) (bool, error)) error {
	return eachParked(ctx, m.o.Conn, m.o.Name, f, each)
}

func eachParked(ctx context.Context, c *Conn, name string, f ParkedFilter, each func(Parked) (bool, error)) error {
	filter := mailboxPrefix(name) + tokenOrAny(f.Hub) + "." + tokenOrAny(f.Device) + "." + tokenOrAny(f.Stream) + ".*"
	o := scanOptions{Stream: MailboxStream(name), Subjects: []string{filter}, Since: f.Since, HeadersOnly: true}
	return c.scan(ctx, o, func(m *storedMsg) (bool, error) {
		p := parseParked(m)
		if p.Err != nil { // its subject still tells whose it is
			if b, _, ok := parseBox(name, m.Subject); ok {
				p.Hub, p.Device, p.Stream = b.Hub, b.Device, b.Stream
			}
		}
		if f.Route != "" && p.Route != f.Route {
			return true, nil
		}
		return each(p)
	})
}

// Read reads one entry, whole; nil if there is none of this number. What cannot be read comes as from Next.
func (m *Mailbox) Read(ctx context.Context, entry uint64) (*bridge.Parcel, error) {
	s, err := m.o.Conn.message(ctx, m.Stream(), entry)
	if s == nil || err != nil {
		return nil, err
	}
	return m.parcel(&jetstream.RawStreamMsg{Subject: s.Subject, Sequence: s.Seq, Header: s.Header, Data: s.Data, Time: s.Time})
}

// parseBox reads a subject of the mailbox; box is the part of it that all entries of the box share.
func parseBox(name, subject string) (b bridge.Box, box string, ok bool) {
	rest, ours := strings.CutPrefix(subject, mailboxPrefix(name))
	tokens := strings.Split(rest, ".")
	if !ours || len(tokens) != 4 {
		return b, "", false
	}
	var ok1, ok2, ok3 bool
	b.Hub, ok1 = untoken(tokens[0])
	b.Device, ok2 = untoken(tokens[1])
	b.Stream, ok3 = untoken(tokens[2])
	return b, strings.TrimSuffix(subject, tokens[3]), ok1 && ok2 && ok3
}

// ReasonPurged is why what was taken out of the mailbox by hand became a dead letter.
const ReasonPurged mapping.Reason = "purged"
