package main

import (
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/amqpd"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/throttle"
)

func hubRules(t *testing.T, args ...string) (emulator.Options, error) {
	t.Helper()
	var f hubRuleFlags
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.register(fs)
	require.NoError(t, fs.Parse(args))
	var o emulator.Options
	err := f.apply(&o)
	return o, err
}

func TestHubRuleFlags(t *testing.T) {
	o, err := hubRules(t)
	require.NoError(t, err)
	require.Equal(t, emulator.Options{
		Rules:    c2d.Rules{DefaultTTL: time.Hour, Lock: time.Minute, MaxDeliveries: 10},
		Feedback: feedback.Rules{Every: 15 * time.Second, Lock: time.Minute, TTL: time.Hour, MaxDeliveries: 10},
		Throttle: throttle.Options{Burst: time.Minute, Backlog: 30 * time.Second},
		AMQP:     amqpd.Behaviour{Credit: 100},
	}, o, "the hub's defaults")

	o, err = hubRules(t, "--tier=s2", "--units=3", "--throttle-burst=5s", "--throttle-backlog=0", "--daily-quota=7", "--quota-condition=quota", "--retry-after=9s",
		"--property-charset=documented", "--default-ttl=2m", "--lock=3s", "--max-deliveries=4", "--delivery-count=deliveries", "--disabled-device=refuse", "--deduplicate",
		"--feedback-every=1s", "--feedback-lock=2s", "--feedback-ttl=3m", "--feedback-max-deliveries=2", "--token-expiry=detach", "--sender-credit=1")
	require.NoError(t, err)
	require.Equal(t, emulator.Options{
		Rules:    c2d.Rules{DefaultTTL: 2 * time.Minute, Lock: 3 * time.Second, MaxDeliveries: 4, Counting: c2d.CountDeliveries, Charset: c2d.Documented, RefuseDisabled: true, Deduplicate: true},
		Feedback: feedback.Rules{Every: time.Second, Lock: 2 * time.Second, TTL: 3 * time.Minute, MaxDeliveries: 2},
		Throttle: throttle.Options{Tier: throttle.S2, Units: 3, Burst: 5 * time.Second, Backlog: -1, Daily: 7, QuotaCondition: "com.microsoft:quota-exceeded", RetryAfter: 9 * time.Second},
		AMQP:     amqpd.Behaviour{Credit: 1, DetachExpired: true},
	}, o)
}

func TestWrongHubRuleFlags(t *testing.T) {
	for arg, want := range map[string]string{
		"--tier=S9":                   `--tier: no tier "S9": take F1, S1, S2, S3, B1, B2, B3 or off`,
		"--units=2":                   "--units: 2 needs a --tier, and is above 0",
		"--daily-quota=2":             "--daily-quota: needs a --tier",
		"--lock=0":                    "--lock: 0s is not above 0",
		"--default-ttl=49h":           "--default-ttl: 49h0m0s is above 48h",
		"--max-deliveries=101":        "--max-deliveries: 101 is not between 1 and 100",
		"--feedback-max-deliveries=0": "--feedback-max-deliveries: 0 is not between 1 and 100",
		"--feedback-every=-1s":        "--feedback-every: -1s is not above 0",
		"--throttle-backlog=-1s":      "--throttle-backlog: -1s is below 0",
		"--retry-after=-1s":           "--retry-after: -1s is below 0",
		"--sender-credit=0":           "--sender-credit: 0 lets nobody send",
		"--property-charset=ascii":    `--property-charset: "ascii" is none of utf8, documented`,
		"--token-expiry=x":            `--token-expiry: "x" is none of close, detach`,
	} {
		_, err := hubRules(t, arg)
		require.EqualError(t, err, want)
	}
	_, err := hubRules(t, "--tier=F1", "--units=2")
	require.EqualError(t, err, "--units: 2 is more than the 1 a hub of tier F1 can have")
	require.Equal(t, exitUsage, cli(t, "hub", "--data-dir", t.TempDir(), "--tier", "S9").code)
}
