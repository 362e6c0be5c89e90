package soak

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"downlink/cmd/downlink/process"
)

// sight is one place where a message was seen.
type sight struct {
	at   time.Time
	text string
}

// logLines is how many lines of the processes' logs a trail has at most.
const logLines = 60

// trail is every place where a target was seen, with times, and what happened around it.
func (c *checker) trail(t *target, lives []*process.Process) []string {
	p := t.pub
	var seen []sight
	see := func(at time.Time, format string, args ...any) {
		seen = append(seen, sight{at, fmt.Sprintf(format, args...)})
	}
	see(p.At, "acknowledged to the publisher as %s:%d (%s, %d tries)", p.Stream, p.Sequence, p.Verb, p.Tries)
	for _, r := range c.e.source[p.Stream] {
		if r.sequence == p.Sequence {
			see(r.at, "stored as %s:%d, subject %s", p.Stream, p.Sequence, r.subject)
		}
	}
	for _, h := range t.copies {
		see(h.at, "hub: accepted as number %d of %s, message ID %s", h.sequence, h.device, h.messageID)
		for _, at := range h.delivered {
			see(at, "hub: handed to the device (number %d)", h.sequence)
		}
		if h.outcome != "" {
			see(h.ended, "hub: ended as %s (number %d)", h.outcome, h.sequence)
		}
	}
	for _, r := range t.edge {
		see(r.at, "edge: %s:%d, message ID %s", streamEdge, r.sequence, r.header.Get("Downlink-Message-Id"))
	}
	for _, r := range t.dead {
		see(r.at, "dead letter %s:%d: %s after %s attempts: %s %s", streamDead, r.sequence, t.reason(),
			r.header.Get("Downlink-Attempts"), r.header.Get("Downlink-Condition"), r.header.Get("Downlink-Text"))
	}
	for _, r := range t.parked {
		see(r.at, "mailbox: %s:%d", streamMailbox, r.sequence)
	}
	for _, r := range t.receipts {
		see(r.At, "receipt: %s %s", r.Status, r.Reason)
	}
	seen = append(seen, logged(lives, fmt.Sprintf("%s:%d:", p.Stream, p.Sequence))...)
	slices.SortStableFunc(seen, func(a, b sight) int { return cmp.Compare(a.at.UnixNano(), b.at.UnixNano()) })
	if len(seen) > 0 {
		seen = append(seen, c.around(seen[0].at, seen[len(seen)-1].at)...)
		slices.SortStableFunc(seen, func(a, b sight) int { return cmp.Compare(a.at.UnixNano(), b.at.UnixNano()) })
	}
	lines := make([]string, len(seen))
	for i, s := range seen {
		lines[i] = s.at.UTC().Format("15:04:05.000000") + "  " + s.text
	}
	return lines
}

// around is the disturbances between two times, and shortly before and after.
func (c *checker) around(begin, end time.Time) []sight {
	var list []sight
	for _, d := range c.e.disturbances {
		over := d.End
		if over.IsZero() {
			over = d.Begin
		}
		if over.After(begin.Add(-5*time.Second)) && d.Begin.Before(end.Add(recovery)) {
			list = append(list, sight{d.Begin, fmt.Sprintf("-- %s: %s (until %s)", d.Kind, d.What, over.UTC().Format("15:04:05.000"))})
		}
	}
	return list
}

// logged is the lines of the processes' logs that have a text in them.
func logged(lives []*process.Process, text string) []sight {
	var seen []sight
	for _, p := range lives {
		f, err := os.Open(p.LogFile)
		if err != nil {
			continue
		}
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() && len(seen) < logLines {
			if line := lines.Text(); strings.Contains(line, text) {
				var at struct{ Time time.Time }
				_ = json.Unmarshal([]byte(line), &at) // one without a time comes first
				seen = append(seen, sight{at.Time, p.Name + ": " + line})
			}
		}
		_ = f.Close()
	}
	return seen
}
