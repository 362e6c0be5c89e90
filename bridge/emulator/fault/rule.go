package fault

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Rule is a fault to script: what to do, where, for whom and how often.
type Rule struct {
	Point  Point
	Device string    // pattern of device IDs, as c2d.MatchID takes it; "": any, and where there is no device
	Exact  bool      // Device is an ID as it stands, not a pattern
	Times  int       // for so many occasions; 0: until it is removed
	Until  time.Time // not from then on, by the wall clock; zero: for ever
	Action Action
}

// Throttled is the condition of "slow down".
const Throttled = "com.microsoft:device-container-throttled"

// Check says what is wrong with a rule that was put together elsewhere.
func (r Rule) Check() error {
	switch {
	case !slices.Contains(Points(), r.Point):
		return fmt.Errorf("point %q is none of %s", r.Point, join(Points()))
	case r.Action.Kind < Release || r.Action.Kind > Expire:
		return fmt.Errorf("the kind is none of %s, throttle", join(Kinds()))
	case r.Times < 0:
		return errors.New("times is below 0")
	case r.Action.Delay < 0:
		return errors.New("the delay is below 0")
	case r.Action.Kind == Delay && r.Action.Delay == 0:
		return errors.New("delay needs a duration, such as delay:2s")
	case r.Action.Kind == Expire && r.Point != MQTTConnect && r.Point != PutToken:
		return fmt.Errorf("a token expires after %s or %s alone", MQTTConnect, PutToken)
	case r.Device != "" && slices.Contains([]Point{Open, PutToken, AttachSender, AttachReceiver}, r.Point):
		return fmt.Errorf("point %s concerns no device", r.Point)
	}
	return nil
}

func join[T fmt.Stringer](words []T) string {
	texts := make([]string, len(words))
	for i, w := range words {
		texts[i] = w.String()
	}
	return strings.Join(texts, ", ")
}

// Parse reads a rule: POINT=KIND[:ARGUMENT] and options after commas, such as
//
//	transfer=reject:amqp:internal-error,times=3,device=pump-*
//	puback=withhold,device=pump-7
//	put-token=expire:5s,times=always
//	request=throttle,for=10s
//
// reject takes a condition, delay and expire a duration. The options are
// times=N (default 1) or times=always, device=PATTERN, for=DURATION from now on (and
// then, without times, any number of times), text=TEXT for the error's
// description, and after (the hub does its part first).
func Parse(s string) (Rule, error) {
	r, err := parse(s)
	if err == nil {
		err = r.Check()
	}
	if err != nil {
		return Rule{}, fmt.Errorf("%q: %w", s, err)
	}
	return r, nil
}

func parse(s string) (Rule, error) {
	point, rest, ok := strings.Cut(s, "=")
	if !ok {
		return Rule{}, errors.New("write POINT=KIND, such as transfer=release")
	}
	word, options, _ := strings.Cut(rest, ",")
	r := Rule{Point: Point(point), Times: 1}
	kind, argument, has := strings.Cut(word, ":")
	if err := r.Action.set(kind, argument, has); err != nil {
		return r, err
	}
	if options == "" {
		return r, nil
	}
	counted := false
	for option := range strings.SplitSeq(options, ",") {
		name, value, _ := strings.Cut(option, "=")
		switch name {
		case "times":
			counted = true
			if value == "always" {
				r.Times = 0
				continue
			}
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 {
				return r, fmt.Errorf("times: %q is neither a number above 0 nor always", value)
			}
			r.Times = n
		case "device":
			r.Device = value
		case "for":
			d, err := positive("for", value)
			if err != nil {
				return r, err
			}
			r.Until = time.Now().Add(d)
			if !counted {
				r.Times = 0
			}
		case "text":
			r.Action.Text = value
		case "after":
			r.Action.After = true
		default:
			return r, fmt.Errorf("option %q is none of times=, device=, for=, text=, after", option)
		}
	}
	return r, nil
}

// set takes a kind's word with its argument.
func (a *Action) set(word, argument string, has bool) (err error) {
	if word == "throttle" {
		if has {
			return errors.New("throttle takes no argument")
		}
		a.Kind, a.Condition = Reject, Throttled
		return nil
	}
	for _, k := range Kinds() {
		if k.String() == word {
			a.Kind = k
		}
	}
	switch {
	case a.Kind == 0:
		return fmt.Errorf("kind %q is none of %s, throttle", word, join(Kinds()))
	case !has:
	case a.Kind == Reject:
		a.Condition = argument
	case a.Kind == Delay || a.Kind == Expire:
		a.Delay, err = positive(word, argument)
	default:
		err = fmt.Errorf("%s takes no argument", word)
	}
	return err
}

func positive(name, text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%s: %q is no duration above 0, such as 200ms or 5s", name, text)
	}
	return d, nil
}
