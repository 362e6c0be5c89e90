// Package virtual is the embedded hub's own devices: they need no process and
// no connection, and do one thing with each cloud-to-device message. They are
// sessions like those of real devices, so that everything the hub counts and
// shows is true of them, too. An idle one costs memory alone.
package virtual

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"downlink/bridge/emulator/c2d"
)

// Kind is what a virtual device does with a message.
type Kind int

const (
	// Complete completes it.
	Complete Kind = iota
	// Reject rejects it, as devices on AMQP and HTTPS can.
	Reject
	// Abandon gives it back, which counts against its delivery count.
	Abandon
	// Never keeps it locked and says nothing.
	Never
	// Offline is a device that never connects: its messages stay in the queue.
	Offline
)

var kinds = [...]string{"complete", "reject", "abandon", "never", "offline"}

func (k Kind) String() string { return kinds[k] }

// Behaviour is how a virtual device behaves. The zero value is always connected
// and completes at once.
type Behaviour struct {
	Kind Kind
	// Delay is how long after it received a message the device completes, rejects or abandons it.
	Delay time.Duration
	// Up and Down are how long the device is connected and away in turn. Without
	// Up it stays connected, without Down it stays away once Up has passed.
	Up, Down  time.Duration
	DownFirst bool // it starts with being away
}

func (b Behaviour) String() string {
	s := b.Kind.String()
	if b.Delay > 0 {
		s += ":" + b.Delay.String()
	}
	up, down := "", ""
	if b.Up > 0 {
		up = ",online=" + b.Up.String()
	}
	if b.Down > 0 {
		down = ",offline=" + b.Down.String()
	}
	if b.DownFirst {
		return s + down + up
	}
	return s + up + down
}

// Rule makes the devices whose ID matches Pattern virtual. Pattern is as c2d.MatchID takes it.
type Rule struct {
	Pattern   string
	Behaviour Behaviour
}

func (r Rule) String() string { return r.Pattern + "=" + r.Behaviour.String() }

// Parse reads a rule such as "pump-*=complete", "pump-*=complete:200ms",
// "*=never" or "p1=complete,online=5s,offline=5s". Of online and offline the one
// that comes first is what the device begins with.
func Parse(s string) (Rule, error) {
	err := errors.New("write DEVICE=BEHAVIOUR, such as pump-*=complete")
	// "=" and "," are legal in a device ID: the first "=" that is followed by a behaviour ends the pattern.
	for i := range len(s) {
		if s[i] != '=' || i == 0 {
			continue
		}
		b, bad := parseBehaviour(s[i+1:])
		if bad == nil {
			return Rule{s[:i], b}, nil
		}
		if _, first := err.(*behaviourError); !first {
			err = &behaviourError{bad}
		}
	}
	return Rule{}, fmt.Errorf("%q: %w", s, err)
}

// behaviourError is why the text after the first "=" is no behaviour.
type behaviourError struct{ error }

func parseBehaviour(s string) (Behaviour, error) {
	var b Behaviour
	word, options, _ := strings.Cut(s, ",")
	name, delay, delayed := strings.Cut(word, ":")
	known := false
	for k, n := range kinds {
		if n == name {
			b.Kind, known = Kind(k), true
		}
	}
	if !known {
		return b, fmt.Errorf("behaviour %q is none of %s", name, strings.Join(kinds[:], ", "))
	}
	var err error
	if delayed {
		if b.Kind == Never || b.Kind == Offline {
			return b, fmt.Errorf("%s takes no delay", b.Kind)
		}
		if b.Delay, err = duration(name, delay); err != nil {
			return b, err
		}
	}
	if options == "" {
		if strings.HasSuffix(s, ",") {
			return b, errors.New("an option is missing after the last comma: online=5s or offline=5s")
		}
		return b, nil
	}
	for option := range strings.SplitSeq(options, ",") {
		name, value, _ := strings.Cut(option, "=")
		switch name {
		case "online":
			b.Up, err = duration(name, value)
		case "offline":
			b.DownFirst = b.Up == 0
			b.Down, err = duration(name, value)
		default:
			err = fmt.Errorf("option %q is none of online=DURATION, offline=DURATION", option)
		}
		if err != nil {
			return b, err
		}
	}
	return b, b.check()
}

func (b Behaviour) check() error {
	switch {
	case b.Kind < 0 || int(b.Kind) >= len(kinds):
		return fmt.Errorf("behaviour %d is unknown", b.Kind)
	case b.Delay < 0 || b.Up < 0 || b.Down < 0:
		return errors.New("a duration is negative")
	case b.Kind == Offline && (b.Up > 0 || b.Down > 0):
		return errors.New("a device that stays offline has no times of connection")
	case b.DownFirst && b.Down == 0, b.Up == 0 && b.Down > 0 && !b.DownFirst:
		return errors.New("a device that is away for a time is connected for a time before, or begins with being away")
	}
	return nil
}

func duration(name, text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%s: %q is no duration above 0, such as 200ms or 5s", name, text)
	}
	return d, nil
}

// match finds the first rule for a device; nil: it is not virtual.
func match(rules []Rule, id string) *Rule {
	for i := range rules {
		if c2d.MatchID(rules[i].Pattern, id) {
			return &rules[i]
		}
	}
	return nil
}
