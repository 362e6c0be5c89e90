package bridge

import (
	"fmt"
	"math"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

// PaceOptions say how fast one hub may be sent to. The zero value is a hub of
// which nothing is known: sends are not limited until the hub throttles, and the
// rate is learned from its answers from then on.
type PaceOptions struct {
	// Tier is F1, S1, S2 or S3: it gives rate and daily quota. "": not known.
	Tier string
	// Units is the hub's number of units of Tier. 0: 1.
	Units int
	// Rate is in messages a second, instead of the tier's. 0: the tier's, or learned.
	Rate float64
	// Share, above 0 and up to 1, is this sender's part of rate and daily quota; the
	// rest is left to others. It needs a Tier, a Rate or DailyMessages. 0: 1.
	Share float64
	// DailyMessages is the quota of a UTC day, in blocks of 4 KB (tier F1: 0.5 KB),
	// instead of the tier's. 0: the tier's, or none.
	DailyMessages int64
}

// tierPace is what one unit of a tier allows: "IoT Hub quotas and throttling" for
// rate and block; the daily numbers are the pricing page's (400,000 and so on).
type tierPace struct {
	sends float64 // cloud-to-device messages a second
	daily int64   // messages a day
	block int     // bytes that count as one of them
}

var tierPaces = map[string]tierPace{
	"F1": {sends: 100. / 60, daily: 8_000, block: 512},
	"S1": {sends: 100. / 60, daily: 400_000, block: 4096},
	"S2": {sends: 100. / 60, daily: 6_000_000, block: 4096},
	"S3": {sends: 5000. / 60, daily: 300_000_000, block: 4096},
}

// check reports the first field that makes no sense.
func (o PaceOptions) check() error {
	_, known := tierPaces[o.Tier]
	switch {
	case o.Tier != "" && !known:
		return fmt.Errorf("tier %.20q is none of F1, S1, S2 and S3", o.Tier)
	case o.Units < 0 || o.Units > 0 && !known:
		return fmt.Errorf("%d units need a tier and must not be less than 0", o.Units)
	case !(o.Rate >= 0) || math.IsInf(o.Rate, 1): // NaN too
		return fmt.Errorf("rate %v is not a number of messages a second", o.Rate)
	case !(o.Share >= 0 && o.Share <= 1):
		return fmt.Errorf("share %v is not above 0 and up to 1", o.Share)
	case o.DailyMessages < 0:
		return fmt.Errorf("%d messages a day are less than 0", o.DailyMessages)
	}
	return nil
}

const (
	lowestRate   = 0.5       // messages a second: a hub that throttles is never tried less often for it
	smallestHub  = 100. / 60 // no tier allows less
	unknownProbe = 10        // probes a second while no rate is known
	shortestWait = 2 * time.Millisecond
	longestHold  = time.Minute
	achievedOver = 10 * time.Second

	raiseEvery   = time.Second // between two raises at least,
	raiseAnswers = 12          // and so many answers that were no throttle,
	raiseQuickly = 4           // or so many while no mark is near
	smallRaise   = 0.01
	firstRaise   = 0.1
	largeRaise   = 0.5
)

// cuts are the factors of one lowering after the other without a raise between.
// The first is small: the rate had just been found good but for one step.
var cuts = [...]float64{0.9, 0.8, 0.65, 0.5}

// budget is what one hub may be sent: messages a second and blocks a day. It is
// pure and never blocks; the hub's mutex guards it, and time is what it is told.
//
// The hub's scheduler asks take before a normal send and probe before it tries a
// device whose queue was full; when the answer is no, it comes back after wait. A
// yes is a send that is begun. Probes that are due are asked for before normal sends,
// which would leave no token otherwise; they get a tenth at most, so that normal
// sends are not held up in turn. When a send has ended, the scheduler tells, with the
// time at which that send began,
//
//   - accepted: the hub took it;
//   - throttled: the hub says slow down;
//   - answered: the hub said something else about the message itself (queue full, no
//     such device, refused by a condition of the hub's).
//
// Nothing is told of what says nothing about the pace: a lost link, a released
// message, a condition we do not know, a refusal before the wire, the end of the process.
//
// The bucket holds one second's worth of tokens, one at least, and is filled at
// 59/60 of the rate: it bridges late timers and short pauses with a window in
// flight, and any minute still has no more sends than 60 seconds of the rate, which
// is how the tiers are defined (100 a minute). Below one a second it may be one
// more. IoT Hub serves bursts beyond its rate for a while and then delays messages
// before it refuses any, so running ahead of it only moves the queue to where nobody
// can reorder, expire or replace what waits.
//
// A throttle answer lowers the rate, once for all that were on their way then;
// answers of any other kind raise it again, step by step: quickly to near where the
// hub throttled, slowly past it, then in growing steps up to the configured rate.
// Without one the rate is learned: the first throttle answer sets it to what was
// achieved until then. Throttled with no other answer between, the hub is left alone
// for 1 s, doubling to 1 min, and tried ever more slowly; but a hub that takes
// nothing says nothing about how much it takes, so its next answer undoes those lowerings.
type budget struct {
	source  string
	ceiling float64 // the configured rate; 0: none, it is learned
	rate    float64 // now; 0: nothing known, unlimited
	sends   *rate.Limiter
	probes  *rate.Limiter

	cutAt   time.Time // when the rate was lowered last
	refused float64   // the rate then
	cut     int       // lowerings since the last raise
	silent  int       // throttle answers since the last other answer
	resume  float64   // the rate after the first of those
	blind   bool      // and that one came before any other answer
	until   time.Time // nothing is sent before
	raise   float64   // the last step beyond refused, as a part of the rate
	changed time.Time // when the rate was changed last; and since then:
	answers int
	short   bool // a send had to wait for a token: the rate is what limits

	// What the hub answered lately, for a rate to begin from.
	span  time.Time
	count int
	last  float64 // a second, in the span before

	block int   // bytes of a message that count as one
	limit int64 // blocks a day; 0: none
	day   time.Time
	used  int64
}

// newBudget makes the budget of a hub; o has passed check.
func newBudget(o PaceOptions) budget {
	b := budget{block: 4096, limit: o.DailyMessages}
	share := o.Share
	if share == 0 {
		share = 1
	}
	if t, ok := tierPaces[o.Tier]; ok {
		units := max(1, o.Units)
		b.source = fmt.Sprintf("%s x%d", o.Tier, units)
		b.ceiling, b.block = t.sends*float64(units), t.block
		if b.limit == 0 {
			b.limit = t.daily * int64(units)
		}
	}
	if o.Rate > 0 {
		b.source, b.ceiling = "rate", o.Rate
	}
	b.ceiling *= share
	if b.limit > 0 {
		b.limit = max(1, int64(float64(b.limit)*share))
	}
	if b.ceiling > 0 {
		b.sends, b.probes = rate.NewLimiter(1, 1), rate.NewLimiter(1, 1)
		b.set(time.Time{}, b.ceiling)
	} else {
		b.unlimit()
	}
	return b
}

// unlimit is for a hub of whose rate nothing is known.
func (b *budget) unlimit() {
	b.rate, b.source, b.cut = 0, "unlimited", 0
	b.probes = rate.NewLimiter(unknownProbe, 1)
}

// set changes the rate and what depends on it. The caller holds what must hold
// between two changes.
func (b *budget) set(now time.Time, r float64) {
	b.rate, b.changed, b.answers, b.short = r, now, 0, false
	b.sends.SetLimitAt(now, rate.Limit(r*59/60))
	b.sends.SetBurstAt(now, burst(r))
	b.probes.SetLimitAt(now, rate.Limit(r/10*59/60))
	b.probes.SetBurstAt(now, burst(r/10))
}

func burst(r float64) int { return int(min(max(1, r), 1<<30)) }

// take asks for a normal send. When it may not begin, wait is when to ask again.
func (b *budget) take(now time.Time) (ok bool, wait time.Duration) {
	if wait := b.closed(now); wait > 0 {
		return false, wait
	}
	if b.rate == 0 || b.sends.AllowN(now, 1) {
		return true, 0
	}
	b.short = true
	return false, untilToken(b.sends, now)
}

// probe asks for a send that finds out whether a full queue has room again. Probes
// come out of the same bucket, and have a tenth of it at most.
func (b *budget) probe(now time.Time) (ok bool, wait time.Duration) {
	if wait := b.closed(now); wait > 0 {
		return false, wait
	}
	wait = untilToken(b.probes, now)
	if b.rate > 0 {
		left := untilToken(b.sends, now)
		b.short = b.short || left > 0
		wait = max(wait, left)
	}
	if wait > 0 {
		return false, wait
	}
	b.probes.AllowN(now, 1)
	if b.rate > 0 {
		b.sends.AllowN(now, 1)
	}
	return true, 0
}

// closed is how long nothing at all is sent. It is at most a minute, then to be asked
// again: the clock may be set, or the machine sleep, before midnight.
func (b *budget) closed(now time.Time) time.Duration {
	if until, yes := b.exhausted(now); yes {
		return min(longestHold, until.Sub(now))
	}
	return max(0, b.until.Sub(now))
}

// untilToken is 0 when there is one. It is rounded up, so that a timer of a fast
// hub finds several.
func untilToken(l *rate.Limiter, now time.Time) time.Duration {
	missing := 1 - l.TokensAt(now)
	if missing <= 1e-9 { // AllowN rounds to nanoseconds
		return 0
	}
	return max(shortestWait, seconds(missing/float64(l.Limit()))+time.Microsecond)
}

// seconds is a duration, the longest there is if s is too many.
func seconds(s float64) time.Duration {
	if s >= math.MaxInt64/float64(time.Second) {
		return math.MaxInt64
	}
	return time.Duration(s * float64(time.Second))
}

// accepted is told when the hub took a message of size bytes, as
// mapping.Envelope.Size counts them.
func (b *budget) accepted(sent, now time.Time, size int) {
	b.roll(now)
	b.used += int64(max(1, (size+b.block-1)/b.block))
	b.answered(sent, now)
}

// answered is told when the hub said anything about a message but to slow down.
func (b *budget) answered(sent, now time.Time) {
	if now.Sub(b.span) >= achievedOver {
		b.last, b.span, b.count = b.achieved(now), now, 0
	}
	b.count++
	switch {
	case b.blind && sent.After(b.cutAt):
		b.unlimit()
	case b.silent > 1:
		b.set(now, b.resume)
	}
	b.blind = false
	b.silent = 0
	if b.rate == b.ceiling || b.rate == 0 {
		return
	}
	b.answers++
	needed := raiseAnswers
	if b.refused == 0 {
		needed = raiseQuickly
	}
	if b.answers < needed || now.Sub(b.changed) < raiseEvery || !b.short {
		return
	}
	r := b.rate + (b.refused-b.rate)/4
	b.cut = 0
	if r < b.rate*(1+smallRaise) {
		b.raise = min(max(smallRaise, b.raise*1.5), largeRaise)
		r = b.rate * (1 + b.raise)
	}
	if b.ceiling > 0 {
		r = min(r, b.ceiling)
	}
	b.set(now, r)
}

// throttled is told when the hub refused a send, begun at sent, because it gets
// too many.
func (b *budget) throttled(sent, now time.Time) {
	if !b.cutAt.IsZero() && !sent.After(b.cutAt) {
		return // on its way when the rate was lowered: that says nothing about the new one
	}
	r := b.rate / 2
	if b.silent == 0 {
		r = b.lowered(now)
	} else {
		b.until = now.Add(min(longestHold, time.Second<<min(b.silent-1, 6)))
	}
	if b.silent > 1 { // it took nothing even after a pause: no mark to be careful about
		b.refused, b.raise = 0, firstRaise
	}
	r = max(r, b.lowest())
	b.silent++
	b.cutAt = now
	b.sends = rate.NewLimiter(1, burst(r))
	b.sends.AllowN(now, burst(r)) // what was saved up goes with the old rate
	b.set(now, r)
}

// lowered is the rate after a throttle answer that follows another answer, and
// notes what to know of it.
func (b *budget) lowered(now time.Time) float64 {
	if b.rate > 0 {
		r := max(b.lowest(), b.rate*cuts[min(b.cut, len(cuts)-1)])
		b.cut++
		b.refused, b.raise, b.resume = b.rate, 0, r
		return r
	}
	achieved := max(b.achieved(now), b.last)
	b.source = "learned"
	b.cut = len(cuts)
	b.refused, b.raise = 0, firstRaise        // little may have been asked for: no mark to be careful about
	b.resume = max(smallestHub, achieved) / 2 // or it may be a burst that was achieved
	b.blind = achieved == 0
	return b.resume
}

// lowest is the rate that throttle answers leave.
func (b *budget) lowest() float64 {
	if b.ceiling > 0 {
		return min(lowestRate, b.ceiling/4)
	}
	return lowestRate
}

// achieved is the rate of answers in the present span; 0 when there is none.
func (b *budget) achieved(now time.Time) float64 {
	return float64(b.count) / max(1, now.Sub(b.span).Seconds())
}

// exhausted reports whether the day's quota is used up, by what this process sent,
// and until when: 00:00 UTC. What is in flight when the limit is reached may go
// beyond it. A restart counts from 0 again, and others use the same quota: the hub's
// own answer is the truth.
func (b *budget) exhausted(now time.Time) (until time.Time, yes bool) {
	if b.limit == 0 {
		return time.Time{}, false
	}
	b.roll(now)
	if b.used < b.limit {
		return time.Time{}, false
	}
	return b.day.Add(24 * time.Hour), true
}

// roll begins a new day's count.
func (b *budget) roll(now time.Time) {
	if day := now.UTC().Truncate(24 * time.Hour); !day.Equal(b.day) {
		b.day, b.used = day, 0
	}
}

// PaceStatus is how fast a hub is sent to.
type PaceStatus struct {
	// Rate is what is allowed now, in messages a second; 0: not limited.
	Rate float64 `json:"rate,omitempty"`
	// Source is where the rate comes from: "rate", tier and units ("S1 x2"), "learned" or "unlimited".
	Source string `json:"source"`
	// Configured is the rate that throttle answers lowered and success raises again; 0: it is not lowered.
	Configured float64 `json:"configured,omitempty"`
	// Until is when sends go on: the hub throttled repeatedly, or the day's quota is used up. Zero: they do.
	Until time.Time `json:"until,omitzero"`
	// Exhausted says that the reason is the quota.
	Exhausted bool `json:"exhausted,omitempty"`
	// Used and Limit are the day's messages of this process, in blocks; Limit 0: no quota is known.
	Used  int64 `json:"used"`
	Limit int64 `json:"limit,omitempty"`
}

// String is the status in a few words: "1.67/s (S1 x1), 312 of 400000 today".
func (s PaceStatus) String() string {
	var text strings.Builder
	if s.Rate > 0 {
		fmt.Fprintf(&text, "%.3g/s (%s", s.Rate, s.Source)
		if s.Configured > 0 {
			fmt.Fprintf(&text, ", lowered from %.3g/s", s.Configured)
		}
		text.WriteString(")")
	} else {
		text.WriteString(s.Source)
	}
	if s.Limit > 0 {
		fmt.Fprintf(&text, ", %d of %d today", s.Used, s.Limit)
	}
	if !s.Until.IsZero() {
		fmt.Fprintf(&text, ", nothing before %s", s.Until.UTC().Format(time.RFC3339))
	}
	return text.String()
}

// status takes a snapshot.
func (b *budget) status(now time.Time) PaceStatus {
	b.roll(now)
	s := PaceStatus{Rate: b.rate, Source: b.source, Used: b.used, Limit: b.limit}
	if b.rate < b.ceiling {
		s.Configured = b.ceiling
	}
	if until, yes := b.exhausted(now); yes {
		s.Until, s.Exhausted = until, true
	} else if b.until.After(now) {
		s.Until = b.until
	}
	return s
}

// timeToDrain is how long n messages of one block each take at the present rate,
// within the quota; 0 when that is not known, as nothing limits and nothing was
// sent lately.
func (b *budget) timeToDrain(n uint64, now time.Time) time.Duration {
	r := b.rate
	if b.silent > 0 {
		r = b.resume
	}
	if r == 0 || b.blind {
		r = max(b.achieved(now), b.last)
	}
	if r == 0 || n == 0 {
		return 0
	}
	left, hold := float64(n), max(0, b.until.Sub(now)).Seconds()
	b.roll(now)
	midnight := b.day.Add(24 * time.Hour).Sub(now).Seconds()
	today := max(0, midnight-hold) * r
	if b.limit > 0 {
		today = min(today, float64(max(0, b.limit-b.used)))
	}
	if left <= today {
		return seconds(hold + left/r)
	}
	left -= today
	const day = 86400
	perDay := r * day
	if b.limit > 0 {
		perDay = min(perDay, float64(b.limit))
	}
	days := math.Floor(left / perDay)
	return seconds(midnight + days*day + (left-days*perDay)/r)
}
