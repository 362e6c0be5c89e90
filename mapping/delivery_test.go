package mapping

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDeliveryFields(t *testing.T) {
	r := Route{
		Name: "setpoint", Subject: "set.{d}.{name}", Device: "{d}", Priority: 7, Order: "none", Coalesce: "{name}", Receipts: true,
		Message: MessageRule{TTL: time.Hour, MaxAge: 90 * time.Second},
	}
	e := envelope(t, r, input("set.p1.speed"))
	require.Equal(t, 7, e.Priority)
	require.True(t, e.Unordered)
	require.Equal(t, "setpoint:speed", e.Coalesce)
	require.True(t, e.Receipts)
	require.Equal(t, stored.Add(90*time.Second), e.SendBy)
	require.Empty(t, e.ReplyTo)

	r.Priority, r.Order, r.Coalesce, r.Receipts, r.Message = 0, "device", "", false, MessageRule{}
	e = envelope(t, r, input("set.p1.speed"))
	require.Equal(t, &Envelope{Route: "setpoint", Hub: "main", Device: "p1", MessageID: e.MessageID, Body: []byte("go")}, e)

	r.Message.Ack = "negative"
	require.True(t, envelope(t, r, input("set.p1.speed")).Receipts)
}

func TestCoalesceKeys(t *testing.T) {
	r := Route{Name: "r", Subject: "set.{d}", Device: "{d}", Coalesce: `{header["Key"]}`}
	require.Empty(t, envelope(t, r, input("set.p1")).Coalesce, "nil: left alone")
	require.Equal(t, "r:", envelope(t, r, input("set.p1", "Key", "")).Coalesce, "an empty key is one")
	long := strings.Repeat("k", 126)
	require.Equal(t, "r:"+long, envelope(t, r, input("set.p1", "Key", long)).Coalesce)
	hashed := envelope(t, r, input("set.p1", "Key", long+"k")).Coalesce
	require.Regexp(t, "^sha256:[0-9a-f]{64}$", hashed)
	require.NotEqual(t, hashed, envelope(t, r, input("set.p1", "Key", long+"l")).Coalesce)

	r.Coalesce = "latest"
	require.Equal(t, "r:latest", envelope(t, r, input("set.p1")).Coalesce)
	r.Coalesce = `{header["Key"]}-x`
	err := routeError(t, r, input("set.p1"))
	require.Equal(t, ReasonAbsent, err.Reason)
	require.Equal(t, "coalesce", err.Field)
}

func TestPublisherTTL(t *testing.T) {
	r := Route{Subject: "c.{d}", Device: "{d}", Message: MessageRule{TTL: time.Hour}}
	for v, want := range map[string]time.Duration{"90": 90 * time.Second, "90s": 90 * time.Second, "1h30m": 90 * time.Minute, "48h": 48 * time.Hour, "172800": 48 * time.Hour} {
		require.Equal(t, stored.Add(want).Truncate(time.Millisecond), envelope(t, r, input("c.x", "Downlink-TTL", v)).ExpiresAt, v)
	}
	for _, v := range []string{"", "soon", "0", "-1s", "48h1ns", "1d", "99999999999999999999", "1h, 2h"} {
		err := routeError(t, r, input("c.x", "Downlink-TTL", v))
		require.Equal(t, ReasonBadHeader, err.Reason, v)
		require.Equal(t, "header Downlink-TTL", err.Field)
		require.NotContains(t, err.Error(), "soon")
	}
	require.Equal(t, ReasonBadHeader, routeError(t, r, input("c.x", "Downlink-TTL", "1h", "Downlink-TTL", "2h")).Reason)
}

func TestReplies(t *testing.T) {
	r := Route{Subject: "cmd.{site}.{d}", Device: "{d}", Source: "core"}
	in := input("cmd.a.x")
	in.Stream, in.Reply = "", "_INBOX.a.b"
	e := envelope(t, r, in)
	require.Equal(t, "_INBOX.a.b", e.ReplyTo)
	require.Empty(t, e.Wait)
	require.True(t, e.Receipts)

	// The bridge's rights are not the requester's.
	for _, reply := range []string{"$JS.API.STREAM.PURGE.S", "prod.mailbox.x", "a.*", "a..b", "a b", ">"} {
		in.Reply = reply
		e = envelope(t, r, in)
		require.Empty(t, e.ReplyTo, reply)
		require.True(t, e.Receipts)
	}

	r.Source = ""
	for subject, allowed := range map[string]bool{
		"_INBOX.x": true, "cmd.replies": true, "cmd.a.b.c": true,
		"cmd": false, "cmdx.a": false, "other.x": false, "$SYS.x": false, "": false, "cmd.*": false, "cmd..x": false, "_INBOX": false,
		"cmd.a b": false, "cmd." + strings.Repeat("x", 1100): false,
	} {
		e = envelope(t, r, input("cmd.a.x", "Downlink-Reply-To", subject))
		require.Equal(t, allowed, e.ReplyTo == subject && subject != "", subject)
		require.Equal(t, subject != "", e.Receipts, subject)
	}
	r.Subject, r.Device, r.Allow = "{site}.>", "d", nil
	require.Empty(t, envelope(t, r, input("cmd.a.x", "Downlink-Reply-To", "cmd.a")).ReplyTo, "no literal prefix")
}

func TestWait(t *testing.T) {
	r := Route{Subject: "cmd.{d}", Device: "{d}", Message: MessageRule{Ack: "positive"}}
	e := envelope(t, r, input("cmd.x", "Downlink-Wait", "completed", "Downlink-Reply-To", "_INBOX.a"))
	require.Equal(t, "completed", e.Wait)
	require.Equal(t, AckFull, e.Ack, "whoever waits wants either outcome")

	e = envelope(t, r, input("cmd.x", "Downlink-Wait", "completed"))
	require.Empty(t, e.Wait, "nobody waits")
	require.Equal(t, AckPositive, e.Ack)

	r.Message.Ack = ""
	err := routeError(t, r, input("cmd.x", "Downlink-Wait", "completed", "Downlink-Reply-To", "_INBOX.a"))
	require.Equal(t, ReasonBadHeader, err.Reason)
	require.ErrorContains(t, err, "ack: full")
	e = envelope(t, r, input("cmd.x", "Downlink-Wait", "accepted", "Downlink-Reply-To", "_INBOX.a"))
	require.Equal(t, "accepted", e.Wait)
	require.Equal(t, AckNone, e.Ack)
	require.Equal(t, ReasonBadHeader, routeError(t, r, input("cmd.x", "Downlink-Wait", "forever")).Reason)
}

func TestLiteralPrefix(t *testing.T) {
	for filter, want := range map[string]string{"cmd.*.x": "cmd.", "a.b.>": "a.b.", "*": "", ">": "", "a.b": "a.b."} {
		require.Equal(t, want, literalPrefix(filter), filter)
	}
}

// Headers that cannot be read are not taken for none, wherever the route would look at them or not.
func TestUnreadableHeaders(t *testing.T) {
	in := input("cmd.pump7")
	in.BadHeader = true
	table := newTable(t,
		Route{Name: "tests", Subject: "cmd.test", Drop: "tests"},
		Route{Name: "urgent", Subject: "cmd.{device}", When: `header["X-Kind"] == "urgent"`, Drop: "urgent"},
		Route{Name: "rest", Subject: "cmd.{device}", Device: "{device}"})
	for route, r := range map[string]Result{
		"urgent": table.Map(in)[0],
		"rest":   newTable(t, Route{Name: "rest", Subject: "cmd.{device}", When: `device != "x"`, Device: "{device}"}).Map(in)[0],
		"many":   newTable(t, Route{Name: "many", Subject: "cmd.*", Devices: "a,b"}).Map(in)[0],
		"head":   newTable(t, Route{Name: "head", Subject: "cmd.*", Device: `{header["D"] ?? "all"}`, Allow: []string{"*"}}).Map(in)[0],
	} {
		require.NotNil(t, r.Err, route)
		require.Equal(t, ReasonBadHeader, r.Err.Reason)
		require.Equal(t, route, r.Err.Route)
		require.Equal(t, route == "rest", r.Device == "pump7", "known if the headers do not choose it")
	}
	in.Subject = "cmd.test"
	require.Equal(t, "tests", table.Map(in)[0].Drop, "what is dropped unseen is dropped")
}
