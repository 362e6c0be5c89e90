package main

import (
	"strings"
	"time"

	"github.com/spf13/pflag"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/throttle"
)

// hubRuleFlags are about the life of messages: what a hub's owner may set,
// what its tier allows, and the other readings of what nobody outside knows.
type hubRuleFlags struct {
	tier                        string
	units                       int
	throttleBurst, throttleWait time.Duration
	retryAfter                  time.Duration
	dailyQuota                  int64
	quotaCondition              string

	charset        string
	ttl, lock      time.Duration
	maxDeliveries  int
	deliveryCount  string
	disabledDevice string
	deduplicate    bool

	feedbackEvery, feedbackLock, feedbackTTL time.Duration
	feedbackMaxDeliveries                    int

	tokenExpiry  string
	senderCredit uint32
}

func (f *hubRuleFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.tier, "tier", "off", "throttle as a hub of this tier: F1, S1, S2, S3, B1, B2, B3 (Basic refuses C2D) or off")
	fs.IntVar(&f.units, "units", 0, "units of --tier (default 1)")
	fs.DurationVar(&f.throttleBurst, "throttle-burst", time.Minute, "how long the hub may run ahead of its tier's rate before it delays messages")
	fs.DurationVar(&f.throttleWait, "throttle-backlog", 30*time.Second, "how long the hub delays a message before it refuses it as throttled; 0 delays none")
	fs.Int64Var(&f.dailyQuota, "daily-quota", 0, "messages a day, in blocks of 4 KB, or 0.5 KB on F1 (default: the tier's)")
	fs.StringVar(&f.quotaCondition, "quota-condition", "resource-limit", `condition of "the daily quota is used up": "resource-limit" (amqp:resource-limit-exceeded) or "quota" (com.microsoft:quota-exceeded)`)
	fs.DurationVar(&f.retryAfter, "retry-after", 0, "Retry-After of REST answers 429, in whole seconds (default: no such header)")
	fs.StringVar(&f.charset, "property-charset", "utf8", `characters of application properties: "utf8", or "documented" for the documented ASCII alone`)
	fs.DurationVar(&f.ttl, "default-ttl", time.Hour, "time to live of a message without an expiry, at most 48h")
	fs.DurationVar(&f.lock, "lock", time.Minute, "how long a delivered message stays locked")
	fs.IntVar(&f.maxDeliveries, "max-deliveries", 10, "delivery count beyond which a message is dead lettered, 1 to 100")
	fs.StringVar(&f.deliveryCount, "delivery-count", "abandons", `what counts as a delivery: "abandons" alone, as the documentation says today, or all "deliveries", as it said before`)
	fs.StringVar(&f.disabledDevice, "disabled-device", "accept", `messages to a disabled device: "accept" or "refuse"`)
	fs.BoolVar(&f.deduplicate, "deduplicate", false, "accept and do not queue a message whose ID is that of one pending for its device")
	fs.DurationVar(&f.feedbackEvery, "feedback-every", 15*time.Second, "how long feedback is gathered, unless there are 64 records before")
	fs.DurationVar(&f.feedbackLock, "feedback-lock", time.Minute, "how long a received feedback batch stays locked")
	fs.DurationVar(&f.feedbackTTL, "feedback-ttl", time.Hour, "time to live of a feedback batch")
	fs.IntVar(&f.feedbackMaxDeliveries, "feedback-max-deliveries", 10, "deliveries after which a feedback batch is dropped, 1 to 100")
	fs.StringVar(&f.tokenExpiry, "token-expiry", "close", `what a service token's expiry does to its AMQP connection: "close" it, or "detach" its links`)
	fs.Uint32Var(&f.senderCredit, "sender-credit", 100, "AMQP link credit for senders, topped up at half")
}

func (f *hubRuleFlags) apply(o *emulator.Options) error {
	var err error
	if o.Throttle.Tier, err = throttle.ParseTier(f.tier); err != nil {
		return usagef("--tier: %w", err)
	}
	if f.units < 0 || f.units > 0 && o.Throttle.Tier == throttle.Off {
		return usagef("--units: %d needs a --tier, and is above 0", f.units)
	}
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{
		{"default-ttl", f.ttl}, {"lock", f.lock}, {"feedback-every", f.feedbackEvery}, {"feedback-lock", f.feedbackLock},
		{"feedback-ttl", f.feedbackTTL}, {"throttle-burst", f.throttleBurst},
	} {
		if d.value <= 0 {
			return usagef("--%s: %v is not above 0", d.flag, d.value)
		}
	}
	switch {
	case f.ttl > 48*time.Hour:
		return usagef("--default-ttl: %v is above 48h", f.ttl)
	case f.maxDeliveries < 1 || f.maxDeliveries > 100:
		return usagef("--max-deliveries: %d is not between 1 and 100", f.maxDeliveries)
	case f.feedbackMaxDeliveries < 1 || f.feedbackMaxDeliveries > 100:
		return usagef("--feedback-max-deliveries: %d is not between 1 and 100", f.feedbackMaxDeliveries)
	case f.throttleWait < 0:
		return usagef("--throttle-backlog: %v is below 0", f.throttleWait)
	case f.retryAfter < 0:
		return usagef("--retry-after: %v is below 0", f.retryAfter)
	case f.dailyQuota < 0:
		return usagef("--daily-quota: %d is below 0", f.dailyQuota)
	case f.dailyQuota > 0 && o.Throttle.Tier == throttle.Off:
		return usagef("--daily-quota: needs a --tier")
	case f.senderCredit == 0:
		return usagef("--sender-credit: 0 lets nobody send")
	}
	o.Throttle.Units, o.Throttle.Burst, o.Throttle.Backlog, o.Throttle.Daily = f.units, f.throttleBurst, f.throttleWait, f.dailyQuota
	o.Throttle.RetryAfter = f.retryAfter
	if f.throttleWait == 0 {
		o.Throttle.Backlog = -1
	}
	o.Rules.Deduplicate = f.deduplicate
	o.Rules.DefaultTTL, o.Rules.Lock, o.Rules.MaxDeliveries = f.ttl, f.lock, f.maxDeliveries
	o.Feedback.Every, o.Feedback.Lock, o.Feedback.TTL, o.Feedback.MaxDeliveries = f.feedbackEvery, f.feedbackLock, f.feedbackTTL, f.feedbackMaxDeliveries
	o.AMQP.Credit = f.senderCredit
	if err := f.readings(o); err != nil {
		return err
	}
	if _, err := throttle.New(o.Throttle); err != nil {
		return usagef("--%w", err)
	}
	return nil
}

// readings takes the flags that are one word of several.
func (f *hubRuleFlags) readings(o *emulator.Options) error {
	for _, r := range []struct {
		flag, value string
		words       []string // the default first
		take        func(other bool)
	}{
		{"property-charset", f.charset, []string{"utf8", "documented"}, func(other bool) {
			if other {
				o.Rules.Charset = c2d.Documented
			}
		}},
		{"delivery-count", f.deliveryCount, []string{"abandons", "deliveries"}, func(other bool) {
			if other {
				o.Rules.Counting = c2d.CountDeliveries
			}
		}},
		{"quota-condition", f.quotaCondition, []string{"resource-limit", "quota"}, func(other bool) {
			if other {
				o.Throttle.QuotaCondition = throttle.QuotaExceeded
			}
		}},
		{"disabled-device", f.disabledDevice, []string{"accept", "refuse"}, func(other bool) { o.Rules.RefuseDisabled = other }},
		{"token-expiry", f.tokenExpiry, []string{"close", "detach"}, func(other bool) { o.AMQP.DetachExpired = other }},
	} {
		if r.value != r.words[0] && r.value != r.words[1] {
			return usagef("--%s: %q is none of %s", r.flag, r.value, strings.Join(r.words, ", "))
		}
		r.take(r.value == r.words[1])
	}
	return nil
}
