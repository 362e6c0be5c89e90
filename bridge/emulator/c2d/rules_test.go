package c2d_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/c2d"
)

func TestParseTo(t *testing.T) {
	for in, want := range map[string]string{
		"/devices/d1/messages/devicebound":               "d1",
		"/devices/d1/messages/deviceBound":               "d1", // C#, C
		"/devices/d1/messages/DEVICEBOUND":               "d1",
		"/devices/a%3Ab%2B/messages/devicebound":         "a:b+", // Node encodes
		"/devices/a:b+/messages/devicebound":             "a:b+", // Python does not
		"/devices/50%25/messages/devicebound":            "50%",
		"/devices/50%/messages/devicebound":              "50%",  // no valid encoding: as it is
		"/devices/a%2541/messages/devicebound":           "a%41", // once, not twice
		"/devices/./messages/devicebound":                ".",
		"/devices/a?b#c/messages/devicebound":            "a?b#c",
		"":                                               "",
		"/":                                              "",
		"/devices/":                                      "",
		"/devices//messages/devicebound":                 "",
		"/devices/d1/messages/devicebound/":              "",
		"/devices/d1/messages":                           "",
		"devices/d1/messages/devicebound":                "",
		"/devices/d1/messages/events":                    "",
		"/devices/d 1/messages/devicebound":              "",
		"/devices/d%2F1/messages/devicebound":            "",
		"/devices/d%201/messages/devicebound":            "",
		"/devices/d1/modules/m1/messages/devicebound":    "",
		to(strings.Repeat("x", 128)):                     strings.Repeat("x", 128),
		to(strings.Repeat("x", 129)):                     "",
		"/devices/%00/messages/devicebound":              "",
		"/devices/d\xc3\xa9/messages/devicebound":        "",
		"/messages/serviceBound/feedback":                "",
		"amqps://h/devices/d1/messages/devicebound":      "",
		"/devices/d1/messages/devicebound?x=/devicebond": "",
	} {
		got, err := c2d.ParseTo(in)
		require.Equal(t, want, got, in)
		if want == "" {
			refusal(t, err, badArgument, 400004)
		} else {
			require.NoError(t, err, in)
		}
	}
}

func FuzzParseTo(f *testing.F) {
	for _, s := range []string{"/devices/d1/messages/devicebound", "/devices/a%3Ab/messages/deviceBound", "/devices/%/messages/devicebound", "/devices/", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := c2d.ParseTo(s)
		if err != nil {
			require.Empty(t, id)
			return
		}
		require.True(t, c2d.ValidID(id))
		require.True(t, strings.HasPrefix(s, "/devices/"))
	})
}

func TestSendRules(t *testing.T) {
	s, clock := newStore(t, c2d.Options{}, "d1")
	now := clock.now()
	ok := c2d.Message{To: to("d1")}
	with := func(change func(*c2d.Message)) c2d.Message {
		m := ok
		change(&m)
		return m
	}
	for name, m := range map[string]c2d.Message{
		"nothing but to":   ok,
		"every ack":        with(func(m *c2d.Message) { m.Ack = "Full" }),
		"id charset":       with(func(m *c2d.Message) { m.MessageID = "aZ09-:.+%_#*?!(),=@;$'" }),
		"id of 128":        with(func(m *c2d.Message) { m.MessageID = strings.Repeat("m", 128) }),
		"expiry just left": with(func(m *c2d.Message) { m.ExpiresAt = now.Add(time.Millisecond) }),
		"expiry in 48 h":   with(func(m *c2d.Message) { m.ExpiresAt = now.Add(48 * hour) }),
		"utf8 property":    with(func(m *c2d.Message) { m.Properties = []c2d.Property{{Name: "grüße", Value: "a b/\n\x00"}} }),
		"empty value":      with(func(m *c2d.Message) { m.Properties = []c2d.Property{{Name: "p"}} }),
	} {
		require.NoError(t, s.Enqueue(m), name)
	}
	for name, m := range map[string]c2d.Message{
		"id charset":    with(func(m *c2d.Message) { m.MessageID = "a/b" }),
		"id of 129":     with(func(m *c2d.Message) { m.MessageID = strings.Repeat("m", 129) }),
		"id not ASCII":  with(func(m *c2d.Message) { m.MessageID = "ü" }),
		"expired":       with(func(m *c2d.Message) { m.ExpiresAt = now }),
		"expiry far":    with(func(m *c2d.Message) { m.ExpiresAt = now.Add(48*hour + 1) }),
		"ack":           with(func(m *c2d.Message) { m.Ack = "yes" }),
		"property name": with(func(m *c2d.Message) { m.Properties = []c2d.Property{{Value: "x"}} }),
		"not UTF-8":     with(func(m *c2d.Message) { m.Properties = []c2d.Property{{Name: "p", Value: "\xff"}} }),
		"content type":  with(func(m *c2d.Message) { m.ContentType = "\xff" }),
	} {
		t.Run(name, func(t *testing.T) { refusal(t, s.Enqueue(m), badArgument, 400004) })
	}
	require.Len(t, s.Queue("d1"), 8)
	require.Equal(t, c2d.Counts{Sends: 17, Accepted: 8, Refused: 9}, s.Counts("d1"))
}

func TestDocumentedCharset(t *testing.T) {
	s, _ := newStore(t, c2d.Options{Rules: c2d.Rules{Charset: c2d.Documented}}, "d1")
	m := c2d.Message{To: to("d1"), Properties: []c2d.Property{{Name: "aZ09!#$%&'*+-.^_`|~", Value: "aZ09!#$%&'*+-.^_`|~"}}}
	require.NoError(t, s.Enqueue(m))
	for _, bad := range []string{"a b", "a/b", "ü", "a=b", "(", "\""} {
		m.Properties = []c2d.Property{{Name: "p", Value: bad}}
		refusal(t, s.Enqueue(m), badArgument, 400004)
		m.Properties = []c2d.Property{{Name: bad, Value: "v"}}
		refusal(t, s.Enqueue(m), badArgument, 400004)
	}
}

func TestSizeLimitCountsBodySystemValuesAndProperties(t *testing.T) {
	s, _ := newStore(t, c2d.Options{}, "d1")
	m := c2d.Message{
		To: to("d1"), MessageID: "12", CorrelationID: "34", UserID: "5", ContentType: "678", ContentEncoding: "9", Ack: "full", ExpiresAt: newClock().now().Add(hour),
		Properties: []c2d.Property{{Name: "ab", Value: "cde"}},
	}
	rest := 32 + 2 + 2 + 1 + 3 + 1 + 4 + 5 + 8
	m.Body = make([]byte, c2d.MaxMessageSize-rest)
	require.Equal(t, c2d.MaxMessageSize, m.Size())
	require.NoError(t, s.Enqueue(m))
	m.Body = make([]byte, c2d.MaxMessageSize-rest+1)
	refusal(t, s.Enqueue(m), "amqp:link:message-size-exceeded", 413001)
}

func TestQueueHoldsFiftyEnqueuedAndInvisible(t *testing.T) {
	s, _ := newStore(t, c2d.Options{}, "d1", "d2")
	x := attach(t, s, "d1", c2d.SessionOptions{})
	for i := range 50 {
		send(t, s, "d1", fmt.Sprint("m", i))
	}
	first, ok := x.Take()
	require.True(t, ok)
	refusal(t, s.Enqueue(c2d.Message{To: to("d1")}), "amqp:resource-limit-exceeded", 403004)
	send(t, s, "d2", "other") // a full queue is its own device's matter
	require.True(t, x.Complete(first.Sequence))
	send(t, s, "d1", "m50")
	require.Len(t, s.Queue("d1"), 50)
	require.Equal(t, uint64(51), s.Queue("d1")[49].Sequence)
}

func TestUnknownDevice(t *testing.T) {
	s, _ := newStore(t, c2d.Options{})
	refusal(t, s.Enqueue(c2d.Message{To: to("ghost")}), "amqp:not-found", 404001)
	_, err := s.Attach("ghost", c2d.SessionOptions{})
	refusal(t, err, "amqp:not-found", 404001)
	require.Equal(t, uint64(1), s.UnknownSends())
	require.Empty(t, s.IDs())
	require.Nil(t, s.Queue("ghost"))
	require.Zero(t, s.Counts("ghost"))
}

func TestAnyDeviceIsCreatedOnFirstUse(t *testing.T) {
	s, _ := newStore(t, c2d.Options{AnyDevice: true})
	refusal(t, s.Enqueue(c2d.Message{To: to("bad"), Ack: "?"}), badArgument, 400004)
	require.Empty(t, s.IDs(), "a message that cannot be queued creates nothing")
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() { _ = s.Enqueue(c2d.Message{To: to("new"), MessageID: fmt.Sprint(i)}) })
	}
	wg.Wait()
	_, err := s.Attach("other", c2d.SessionOptions{})
	require.NoError(t, err)
	require.Equal(t, []string{"new", "other"}, s.IDs())
	require.Len(t, s.Queue("new"), 40)
}
