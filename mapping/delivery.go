package mapping

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The headers with which a publisher says how a message is to be delivered.
const (
	headerTTL     = "Downlink-TTL"
	headerWait    = "Downlink-Wait"
	headerReplyTo = "Downlink-Reply-To"

	waitAccepted  = "accepted"
	waitCompleted = "completed"

	maxReplyTo  = 1024
	maxCoalesce = 128
)

// deliver fills the fields of an envelope that are the delivery's, and its expiry.
// It has the device, its hub and Ack already.
func (t *Table) deliver(r *route, e *Envelope, s *cloudScope) *RouteError {
	in := s.in
	e.Priority, e.Unordered = r.priority, r.unordered
	ttl := r.ttl
	var wait string
	if len(in.Header) > 0 {
		if v, ok := headerValue(in.Header, headerTTL); ok {
			d, err := publisherTTL(v)
			if err != nil {
				return badHeader(headerTTL, err)
			}
			ttl = d
		}
		if v, ok := headerValue(in.Header, headerWait); ok {
			switch {
			case v != waitAccepted && v != waitCompleted:
				return badHeader(headerWait, fmt.Errorf("must be %s or %s", waitAccepted, waitCompleted))
			case v == waitCompleted && r.ack == AckNone:
				return badHeader(headerWait, errors.New("completed needs a route that asks for acks; set ack: full there"))
			}
			wait = v
		}
	}
	if ttl > 0 {
		// The AMQP timestamp counts milliseconds (AMQP 1.0 §1.6.17).
		e.ExpiresAt = in.Time.Add(ttl).Truncate(time.Millisecond).UTC()
	}
	if age := r.maxAge; age > 0 {
		e.SendBy = in.Time.Add(age).UTC()
	}
	replyTo, asked := t.replyTo(r, in)
	e.ReplyTo = replyTo
	if e.ReplyTo != "" {
		e.Wait = wait
		if wait == waitCompleted {
			// Whoever waits for the device wants to know of either outcome.
			e.Ack = AckFull
		}
	}
	e.Receipts = r.receipts || e.Ack != AckNone || asked
	if r.coalesce != nil {
		key, ok, err := r.coalesce.eval(s)
		if err != nil {
			return &RouteError{Field: "coalesce", Reason: err.reason, Err: err.err}
		}
		if ok {
			e.Coalesce = coalesceKey(r.name, key)
		}
	}
	return nil
}

// replyTo is where the publisher may be answered. asked: it wants to be, there or elsewhere.
func (t *Table) replyTo(r *route, in *Input) (subject string, asked bool) {
	if in.Reply != "" && mayAnswer(in.Reply, t.name) {
		return in.Reply, true
	}
	if len(in.Header) > 0 {
		subject, _ = headerValue(in.Header, headerReplyTo)
	}
	asked = subject != "" || in.Reply != ""
	if subject != "" && !r.mayReply(subject, t.name) {
		subject = ""
	}
	return subject, asked
}

func badHeader(name string, err error) *RouteError {
	return &RouteError{Field: "header " + name, Reason: ReasonBadHeader, Err: err}
}

// publisherTTL reads whole seconds or a Go duration, as nats-server does its Nats-TTL.
func publisherTTL(v string) (time.Duration, error) {
	d, err := time.ParseDuration(v)
	if n, nerr := strconv.ParseInt(v, 10, 32); nerr == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	switch {
	case err != nil:
		return 0, errors.New("must be whole seconds or a duration such as 90s or 1h30m")
	case d <= 0:
		return 0, errors.New("must be more than 0")
	case d > maxTTL:
		return 0, errors.New("is more than the hub keeps a message; at most 48h")
	}
	return d, nil
}

// mayAnswer reports whether a bridge, with its rights, may publish an answer
// where a stranger wants it: anywhere but on NATS's own subjects and ours.
func mayAnswer(subject, bridge string) bool {
	return len(subject) <= maxReplyTo && plainSubject(subject) && (strings.HasPrefix(subject, inboxPrefix) || !reserved(subject, bridge))
}

// mayReply is mayAnswer for the header, which NATS itself does not check against
// the publisher's permissions as it does a request's reply subject.
func (r *route) mayReply(subject, bridge string) bool {
	if !mayAnswer(subject, bridge) {
		return false
	}
	if strings.HasPrefix(subject, inboxPrefix) {
		return true
	}
	prefix := literalPrefix(r.pattern.filter)
	return prefix != "" && strings.HasPrefix(subject, prefix)
}

// literalPrefix is what a filter's subjects all begin with: its tokens before the
// first wildcard, with a dot at the end; "" if that is none of them.
func literalPrefix(filter string) string {
	n := 0
	for tok := range strings.SplitSeq(filter, ".") {
		if tok == "*" || tok == ">" {
			return filter[:n]
		}
		n += len(tok) + 1
	}
	return filter + "."
}

// plainSubject reports whether s can be published to: no empty tokens, wildcards or white space.
func plainSubject(s string) bool {
	for tok := range strings.SplitSeq(s, ".") {
		if tok == "" || tok == "*" || tok == ">" || tokenChars(tok) != nil {
			return false
		}
	}
	return true
}

// coalesceKey keeps the keys of two routes apart, and a key within the length of a token.
func coalesceKey(route, key string) string {
	full := route + ":" + key
	if len(full) <= maxCoalesce {
		return full
	}
	sum := sha256.Sum256([]byte(full))
	return "sha256:" + hex.EncodeToString(sum[:])
}
