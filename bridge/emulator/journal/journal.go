// Package journal keeps what the embedded hub has accepted in a file, so that its
// queues outlive the process, as a real hub's do: a line of JSON for each message
// accepted, handed to its device, and ended, and for feedback that was read. A
// line is written before the hub acts on it (before the sender is told, before
// the device's PUBACK counts), with one write of the operating system: it
// outlives a kill -9 of the process, not a power cut.
//
// The file only grows. It is also the hub's own account of a run, for whoever
// checks one.
package journal

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"sync"
	"time"

	"downlink/bridge/emulator/c2d"
)

// The kinds of events.
const (
	Started   = "started"   // a hub opened the journal
	Accepted  = "accepted"  // with Message and Expires
	Delivered = "delivered" // handed to the device, PUBACK or not
	Ended     = "ended"     // with Outcome
	Told      = "told"      // its feedback has been read, or is lost
)

// Event is one line.
type Event struct {
	Kind     string    `json:"event"`
	At       time.Time `json:"at"`
	Device   string    `json:"device,omitempty"`
	Sequence uint64    `json:"seq,omitempty"` // of the message, in its device's queue
	Message  *Message  `json:"message,omitempty"`
	Expires  time.Time `json:"expires,omitzero"`
	Outcome  string    `json:"outcome,omitempty"` // Success or another status of feedback
}

// Message is a message as it was accepted.
type Message struct {
	To              string         `json:"to"`
	MessageID       string         `json:"messageId,omitempty"`
	CorrelationID   string         `json:"correlationId,omitempty"`
	UserID          string         `json:"userId,omitempty"`
	ContentType     string         `json:"contentType,omitempty"`
	ContentEncoding string         `json:"contentEncoding,omitempty"`
	ExpiresAt       time.Time      `json:"expiresAt,omitzero"` // as sent
	Ack             string         `json:"ack,omitempty"`
	Properties      []c2d.Property `json:"properties,omitempty"`
	Body            []byte         `json:"body,omitempty"`
}

// Journal appends to a file. It implements c2d.Journal. Safe for concurrent use.
type Journal struct {
	now func() time.Time

	mu   sync.Mutex
	file *os.File
	err  error // of the first write that failed: nothing is accepted from then on
}

// Open opens the journal at path, making it if it is not there, and returns what
// the hub that wrote it had not finished. A last line that was cut off is removed. now is the
// clock of the events that have no time of their own. The caller closes it.
func Open(path string, now func() time.Time) (*Journal, *State, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("journal: %w", err)
	}
	s, whole, err := readState(f)
	if err == nil {
		err = f.Truncate(whole)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("journal %s: %w", path, err), f.Close())
	}
	j := &Journal{now: now, file: f}
	if err := j.write(Event{Kind: Started, At: now()}); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return j, s, nil
}

// Close closes the file.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.file.Close()
}

// Accepted writes down a message that the hub is about to accept. After an error it must not.
func (j *Journal) Accepted(device string, p c2d.Pending) error {
	m := p.Message
	return j.write(Event{Kind: Accepted, At: p.Enqueued, Device: device, Sequence: p.Sequence, Expires: p.Expires, Message: &Message{
		To: m.To, MessageID: m.MessageID, CorrelationID: m.CorrelationID, UserID: m.UserID, ContentType: m.ContentType,
		ContentEncoding: m.ContentEncoding, ExpiresAt: m.ExpiresAt, Ack: m.Ack, Properties: m.Properties, Body: m.Body,
	}})
}

// Delivered writes down that a message is being handed to its device.
func (j *Journal) Delivered(device string, sequence uint64, at time.Time) {
	_ = j.write(Event{Kind: Delivered, At: at, Device: device, Sequence: sequence})
}

// Ended writes down what became of a message.
func (j *Journal) Ended(device string, sequence uint64, status string, at time.Time) {
	_ = j.write(Event{Kind: Ended, At: at, Device: device, Sequence: sequence, Outcome: status})
}

// Told writes down that a message's feedback need not be told any more.
func (j *Journal) Told(device string, sequence uint64) {
	_ = j.write(Event{Kind: Told, At: j.now(), Device: device, Sequence: sequence})
}

func (j *Journal) write(e Event) error {
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return j.err
	}
	if _, err := j.file.Write(append(line, '\n')); err != nil {
		j.err = fmt.Errorf("journal: %w", err)
	}
	return j.err
}

// Read yields the events of a journal, in the order in which they were written. A
// line that is none ends it with an error, except a last one that was cut off.
func Read(r io.Reader) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		_, _ = read(r, yield)
	}
}

// read returns how many bytes the whole lines have.
func read(r io.Reader, yield func(Event, error) bool) (whole int64, err error) {
	in := bufio.NewReader(r)
	for n := 1; ; n++ {
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			return whole, nil // what is left has no end of line: it was cut off
		}
		var e Event
		if err == nil {
			err = json.Unmarshal(bytes.TrimSpace(line), &e)
		}
		if err == nil && e.Kind == "" {
			err = errors.New("no event")
		}
		if err != nil {
			err = fmt.Errorf("line %d: %w", n, err)
			yield(Event{}, err)
			return whole, err
		}
		whole += int64(len(line))
		if !yield(e, nil) {
			return whole, nil
		}
	}
}
