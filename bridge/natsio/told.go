package natsio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"downlink/bridge"
)

// While receipts may have been stored without a note, each outcome is looked for among the receipts of its
// device and status. There may be thousands, and after a start as many outcomes: so what was
// read is remembered, and each look reads on where the last one ended, in one question.
const (
	toldAtMost = 1 << 18     // receipts that are remembered, in 15 MB; beyond that each look reads the rest
	toldFor    = time.Minute // since the last look: soon nobody is unsure any more
)

type toldMemory struct {
	most int

	mu    sync.Mutex
	of    map[string]*toldList // by subject
	count int                  // of the receipts in all of them
	timer *time.Timer
}

// toldList is what was read of one subject, without a gap from its beginning on. mu is held during a look, so that
// the records of one batch do not all read the same.
type toldList struct {
	mu     sync.Mutex
	begin  time.Time
	stored map[receiptHash]int64 // when, in Unix microseconds, the last time
	last   uint64                // the sequence that was read last, to read on there; 0: none
	lastID receiptHash
	full   bool // what came after last found no room
}

func (t *toldMemory) list(subject string) *toldList {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timer == nil {
		t.timer = time.AfterFunc(toldFor, t.forget)
	} else {
		t.timer.Reset(toldFor)
	}
	if t.of == nil {
		t.of = make(map[string]*toldList)
	}
	if t.of[subject] == nil {
		t.of[subject] = new(toldList)
	}
	return t.of[subject]
}

func (t *toldMemory) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.of, t.count = nil, 0
}

// room makes room for one more of a list, at the cost of the other lists; their looks go on without.
func (t *toldMemory) room(subject string, l *toldList) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of[subject] != l {
		return false // forgotten meanwhile
	}
	if t.count >= t.most {
		t.of, t.count = map[string]*toldList{subject: l}, len(l.stored)
	}
	if t.count >= t.most {
		return false
	}
	t.count++
	return true
}

// restart empties a list, to read it from another time on.
func (t *toldMemory) restart(subject string, l *toldList, begin time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of[subject] == l {
		t.count -= len(l.stored)
	}
	l.begin, l.stored, l.last, l.lastID, l.full = begin, make(map[receiptHash]int64), 0, receiptHash{}, false
}

// add remembers what comes next in a subject.
func (t *toldMemory) add(subject string, l *toldList, seq uint64, id receiptHash, stored int64) {
	if l.full {
		return
	}
	if _, there := l.stored[id]; !there && !t.room(subject, l) {
		l.full = true
		return
	}
	l.stored[id], l.last, l.lastID = stored, seq, id
}

// Told implements bridge.Pending.
func (r *Receipts) Told(ctx context.Context, receipt bridge.Receipt, since time.Time) (bool, error) {
	subject := ReceiptSubject(r.o.Name, receipt.Hub, receipt.Device, receipt.Status)
	l := r.told.list(subject)
	l.mu.Lock()
	defer l.mu.Unlock()
	// Records do not come quite in the order of their times: to begin a little earlier saves beginning again.
	begin := since.Truncate(slotLength)
	if l.stored == nil || begin.Before(l.begin) || l.full && begin.After(l.begin) {
		r.told.restart(subject, l, begin)
	}
	told, err := r.look(ctx, subject, l, hashOf(receipt), since.UnixMicro())
	if err != nil {
		return false, fmt.Errorf("stream %s: %w", r.Stream(), apiError(err))
	}
	return told, nil
}

// look reads what has come since the last look. It asks for the last one that was read, too: if that is
// another receipt now, or none, the stream was purged or made anew, and all of it is read.
func (r *Receipts) look(ctx context.Context, subject string, l *toldList, id receiptHash, since int64) (told bool, err error) {
	again := l.last != 0 // the first answer is to be the one that is known
	request := directRequest{Next: subject, Seq: l.last, Batch: sweepAtOnce}
	if !again {
		request.Start = &l.begin
	}
	for {
		n := 0
		each := func(m *nats.Msg) {
			n++
			seq, err := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
			if err != nil {
				return
			}
			var got bridge.Receipt
			if json.Unmarshal(m.Data, &got) != nil {
				got = bridge.Receipt{} // like nobody's
			}
			gotID := hashOf(got)
			if n == 1 && again && seq == l.last && gotID == l.lastID {
				again = false
			}
			if again {
				return
			}
			at, err := time.Parse(time.RFC3339Nano, m.Header.Get(jetstream.TimeStampHeaer))
			if err != nil {
				return
			}
			told = told || gotID == id && at.UnixMicro() >= since
			r.told.add(subject, l, seq, gotID, at.UnixMicro())
			request.Start, request.Seq = nil, seq+1
		}
		err := r.o.Conn.directGet(ctx, r.Stream(), request, each)
		if errors.Is(err, nats.ErrNoResponders) { // no receipt was ever stored, or JetStream is away
			if err = r.stream.ensure(ctx); err == nil {
				err = r.o.Conn.directGet(ctx, r.Stream(), request, each)
			}
		}
		if err != nil {
			return false, err
		}
		if again {
			again = false
			r.told.restart(subject, l, l.begin)
			request.Start, request.Seq = &l.begin, 0
			continue
		}
		if at, there := l.stored[id]; there && at >= since {
			told = true
		}
		if told || n < sweepAtOnce {
			return told, nil
		}
	}
}
