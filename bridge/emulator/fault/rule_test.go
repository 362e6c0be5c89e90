package fault_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/fault"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]fault.Rule{
		"transfer=release": {Point: fault.Transfer, Times: 1, Action: fault.Action{Kind: fault.Release}},
		"transfer=modify":  {Point: fault.Transfer, Times: 1, Action: fault.Action{Kind: fault.Modify}},
		"open=drop":        {Point: fault.Open, Times: 1, Action: fault.Action{Kind: fault.Drop}},
		"puback=withhold,device=pump-*,times=always": {Point: fault.Puback, Device: "pump-*", Action: fault.Action{Kind: fault.Withhold}},
		"transfer=reject:amqp:internal-error,times=3,device=pump-*,text=try later": {Point: fault.Transfer, Device: "pump-*", Times: 3,
			Action: fault.Action{Kind: fault.Reject, Condition: "amqp:internal-error", Text: "try later"}},
		"transfer=delay:2s,after":     {Point: fault.Transfer, Times: 1, Action: fault.Action{Kind: fault.Delay, Delay: 2 * time.Second, After: true}},
		"request=throttle":            {Point: fault.Request, Times: 1, Action: fault.Action{Kind: fault.Reject, Condition: fault.Throttled}},
		"put-token=expire:5s":         {Point: fault.PutToken, Times: 1, Action: fault.Action{Kind: fault.Expire, Delay: 5 * time.Second}},
		"mqtt-connect=expire,times=2": {Point: fault.MQTTConnect, Times: 2, Action: fault.Action{Kind: fault.Expire}},
		"attach-receiver=reject":      {Point: fault.AttachReceiver, Times: 1, Action: fault.Action{Kind: fault.Reject}},
		"telemetry=withhold,after":    {Point: fault.Telemetry, Times: 1, Action: fault.Action{Kind: fault.Withhold, After: true}},
	} {
		got, err := fault.Parse(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	r, err := fault.Parse("transfer=drop,for=1h")
	require.NoError(t, err)
	require.Zero(t, r.Times)
	require.WithinDuration(t, time.Now().Add(time.Hour), r.Until, time.Minute)
	for text, want := range map[string]string{
		"":                        "write POINT=KIND, such as transfer=release",
		"transfer":                "write POINT=KIND",
		"transmission=drop":       `point "transmission" is none of open, put-token`,
		"transfer=explode":        `kind "explode" is none of release, modify, reject, drop, withhold, delay, expire, throttle`,
		"transfer=delay":          "delay needs a duration",
		"transfer=delay:2":        `delay: "2" is no duration`,
		"transfer=drop:now":       "drop takes no argument",
		"transfer=throttle:now":   "throttle takes no argument",
		"transfer=drop,times=0":   `times: "0" is neither a number above 0 nor always`,
		"transfer=drop,often":     `option "often" is none of`,
		"transfer=drop,for=x":     `for: "x" is no duration`,
		"transfer=expire":         "a token expires after mqtt-connect or put-token alone",
		"open=drop,device=pump-1": "point open concerns no device",
	} {
		_, err := fault.Parse(text)
		require.ErrorContains(t, err, want, text)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("transfer=reject:amqp:internal-error,times=3,device=pump-*")
	f.Add("put-token=expire:5s,for=1m,after")
	f.Fuzz(func(t *testing.T, text string) {
		if r, err := fault.Parse(text); err == nil {
			require.NoError(t, r.Check())
		}
	})
}

func TestScript(t *testing.T) {
	var i fault.Injector
	drop := i.Script(fault.Rule{Point: fault.Transfer, Device: "pump-*", Times: 2, Action: fault.Action{Kind: fault.Drop}})
	release := i.Script(fault.Rule{Point: fault.Transfer, Times: -1, Action: fault.Action{Kind: fault.Release}})
	kind := func(device string) fault.Kind {
		a, _ := i.Next(fault.Transfer, device)
		return a.Kind
	}
	require.Equal(t, fault.Drop, kind("pump-1"))
	require.Equal(t, fault.Release, kind("valve"))
	rules := i.Rules()
	require.Len(t, rules, 2)
	require.Equal(t, []int{drop, 1, 1}, []int{rules[0].ID, rules[0].Left, rules[0].Hits})
	require.Equal(t, []int{release, 0, 1}, []int{rules[1].ID, rules[1].Left, rules[1].Hits})
	require.Equal(t, fault.Drop, kind("pump-2"))
	require.Equal(t, fault.Release, kind("pump-2"))
	require.False(t, i.Remove(drop), "it is used up")
	require.True(t, i.Remove(release))
	require.Zero(t, kind("pump-1"))
	i.Script(fault.Rule{Point: fault.Transfer, Until: time.Now().Add(-time.Second), Action: fault.Action{Kind: fault.Drop}})
	require.Zero(t, kind("pump-1"), "its time is over")
	require.Empty(t, i.Rules())
	i.Script(fault.Rule{Point: fault.Open, Action: fault.Action{Kind: fault.Drop}})
	require.Equal(t, 1, i.Clear())

	var none *fault.Injector
	require.Zero(t, none.Script(fault.Rule{}))
	require.Empty(t, none.Rules())
	require.False(t, none.Remove(1))
	require.Zero(t, none.Clear())
}

func TestParseOrder(t *testing.T) {
	parse := func(pairs ...string) (fault.Order, bool, error) {
		return fault.ParseOrder(func(name string) (string, bool) {
			for i := 0; i < len(pairs); i += 2 {
				if pairs[i] == name {
					return pairs[i+1], true
				}
			}
			return "", false
		})
	}
	_, ok, err := parse("AzIoTHub_FaultOperationDelayInSecs", "1")
	require.NoError(t, err)
	require.False(t, ok)
	o, ok, err := parse("AzIoTHub_FaultOperationType", "KillTcp", "AzIoTHub_FaultOperationCloseReason", "boom",
		"AzIoTHub_FaultOperationDelayInSecs", "1", "AzIoTHub_FaultOperationDurationInSecs", "2.5")
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, fault.Order{Type: fault.KillTCP, Reason: "boom", Delay: time.Second, Duration: 2500 * time.Millisecond}, o)
	for _, bad := range []string{"soon", "-1", "NaN", "1e9"} {
		_, ok, err = parse("AzIoTHub_FaultOperationType", "KillTcp", "AzIoTHub_FaultOperationDelayInSecs", bad)
		require.True(t, ok)
		require.ErrorContains(t, err, "AzIoTHub_FaultOperationDelayInSecs")
	}
}
