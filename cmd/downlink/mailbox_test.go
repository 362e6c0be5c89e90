package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
	"downlink/bridge/natsio"
	"downlink/mapping"
)

// mailboxOf is the mailbox of the bridge named downlink, which need not run.
func mailboxOf(t *testing.T, n *bridgetest.NATS) *natsio.Mailbox {
	t.Helper()
	c, err := natsio.Connect(natsio.Options{URLs: []string{n.URL()}})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	m, err := natsio.NewMailbox(natsio.MailboxOptions{Conn: c, Create: true})
	require.NoError(t, err)
	return m
}

// parks stores a message and returns its number.
func parks(t *testing.T, m *natsio.Mailbox, hub, device, route string, seq int, body string) uint64 {
	t.Helper()
	p := &bridge.Parcel{
		At: time.Date(2026, 1, 2, 4, 0, 0, 0, time.UTC), Attempts: 2,
		Message: &mapping.Input{Subject: "cmd." + device, Payload: []byte(body), Stream: "COMMANDS", Sequence: uint64(seq),
			Time: time.Date(2026, 1, 2, 3, 0, seq, 0, time.UTC), Header: map[string][]string{"X-User": {"ann"}, "Nats-Rollup": {"all"}}},
		Envelope: &mapping.Envelope{Route: route, Hub: hub, Device: device, MessageID: fmt.Sprintf("COMMANDS:%d:x", seq), Body: []byte(body),
			Ack: mapping.AckFull, Properties: []mapping.Property{{Name: "verb", Value: "reboot"}, {Name: "flag", Null: true}}},
	}
	repeat, err := m.Append(t.Context(), p)
	require.NoError(t, err)
	require.False(t, repeat)
	return p.Entry
}

func messagesOf(t *testing.T, n *bridgetest.NATS, stream string) uint64 {
	t.Helper()
	s, err := n.JetStream(t).Stream(t.Context(), stream)
	require.NoError(t, err)
	return s.CachedInfo().State.Msgs
}

func TestMailboxCommands(t *testing.T) {
	n := bridgetest.RunNATS(t)
	missing := "downlink: no mailbox yet: stream DOWNLINK_MAILBOX does not exist: no bridge named downlink has kept anything that waits on this NATS (is it the right server or context, and the right --name?)\n"
	for _, args := range []string{"ls", "show 1", "show --device x", "purge --all --yes", "purge 1"} {
		got := cli(t, append(strings.Fields("mailbox "+args), "-s", n.URL())...)
		require.Equal(t, result{exitFailed, "", missing}, got, args)
	}
	m := mailboxOf(t, n)
	first := parks(t, m, "main", "berlin-pump7", "commands", 1, "now")
	parks(t, m, "main", "berlin-pump7", "firmware", 2, "\xff\x00")
	parks(t, m, "west", "a b", "commands", 3, "later")
	js := n.JetStream(t)
	foreign, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: "downlink.mailbox.main.valve.COMMANDS.-", Data: []byte("?")})
	require.NoError(t, err)
	newer, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: "downlink.mailbox.main.valve.COMMANDS.-", Header: nats.Header{"Downlink-Format": {"2"}}})
	require.NoError(t, err)

	list := cli(t, "mailbox", "ls", "-s", n.URL())
	require.Equal(t, exitOK, list.code, list.stderr)
	require.Regexp(t, `^HUB +DEVICE +STREAM +ENTRIES +BYTES +OLDEST +AGE +NEXT\n`+
		`main +berlin-pump7 +COMMANDS +2 +\d+ +2026-01-02T03:00:01\.000Z +\d+h\d+m\d+s +1\n`+
		`main +valve +COMMANDS +2 \(2 unreadable\) +1 +- +- +4\n`+
		`west +a b +COMMANDS +1 +\d+ +2026-01-02T03:00:03\.000Z +\S+ +3\n$`, list.stdout)
	for filter, want := range map[string]int{"--hub west": 1, "--device berlin-pump7": 1, "--stream COMMANDS": 3, "--stream OTHER": 0, "--route firmware": 1, "--route commands": 2} {
		got := cli(t, append(strings.Fields("mailbox ls --json "+filter), "-s", n.URL())...)
		require.Equal(t, exitOK, got.code)
		require.Len(t, objects(t, got.stdout), want, filter)
	}
	require.Equal(t, "nothing waits in the mailbox like that\n", cli(t, "mailbox", "ls", "--hub", "x", "-s", n.URL()).stdout)
	box := objects(t, cli(t, "mailbox", "ls", "--json", "--device", "a b", "-s", n.URL()).stdout)[0]
	require.Equal(t, map[string]any{"hub": "west", "device": "a b", "stream": "COMMANDS", "entries": 1.0, "bytes": box["bytes"], "oldest": "2026-01-02T03:00:03Z", "first": 3.0}, box)

	shown := cli(t, "mailbox", "show", "1", "-s", n.URL())
	require.Equal(t, exitOK, shown.code, shown.stderr)
	for _, want := range []string{`entry +1`, `device +berlin-pump7`, `message id +COMMANDS:1:x`, `ack +full`, `from +COMMANDS:1`, `attempts +2`,
		`published +2026-01-02T03:00:01\.000Z`, `waits since +2026-01-02T04:00:00\.000Z`, `  verb: reboot`, `  flag\n`, `  Nats-Rollup: all`, `\nnow\n`} {
		require.Regexp(t, want, shown.stdout)
	}
	require.Equal(t, "\xff\x00", cli(t, "mailbox", "show", "2", "--raw", "-s", n.URL()).stdout)
	both := cli(t, "mailbox", "show", "--device", "berlin-pump7", "--json", "-s", n.URL())
	require.Len(t, objects(t, both.stdout), 2)
	require.Equal(t, "/wA=", objects(t, both.stdout)[1]["message"].(map[string]any)["payload_base64"])
	require.Contains(t, cli(t, "mailbox", "show", "--device", "berlin-pump7", "--limit", "1", "-s", n.URL()).stdout, "… and more: --limit")
	require.Equal(t, "nothing waits in the mailbox like that\n", cli(t, "mailbox", "show", "--device", "x", "-s", n.URL()).stdout)
	require.Contains(t, cli(t, "mailbox", "show", "99", "-s", n.URL()).stderr, "no entry 99 in stream DOWNLINK_MAILBOX")
	require.Contains(t, cli(t, "mailbox", "show", fmt.Sprint(foreign.Sequence), "-s", n.URL()).stderr, "entry 4: not an entry of a mailbox")
	require.Equal(t, "?", cli(t, "mailbox", "show", fmt.Sprint(foreign.Sequence), "--raw", "-s", n.URL()).stdout)
	require.Regexp(t, `unreadable +.*entry 4: not an entry`, cli(t, "mailbox", "show", "--device", "valve", "-s", n.URL()).stdout)

	// Without --yes nothing happens.
	got := cli(t, "mailbox", "purge", "--device", "berlin-pump7", "-s", n.URL())
	require.Equal(t, result{exitUsage, "2 would be purged\n", "downlink: nothing was purged: give --yes to do it\n"}, got)
	require.EqualValues(t, 5, messagesOf(t, n, "DOWNLINK_MAILBOX"))
	got = cli(t, "mailbox", "purge", "--route", "commands", "--device", "berlin-pump7", "--yes", "-s", n.URL())
	require.Equal(t, result{exitOK, "1 purged; downlink dead ls --reason purged lists them\n", ""}, got)
	letters := objects(t, cli(t, "dead", "show", "1", "--json", "-s", n.URL()).stdout)
	require.Equal(t, "purged", letters[0]["reason"])
	require.Equal(t, "berlin-pump7", letters[0]["device"])
	require.Equal(t, 2.0, letters[0]["attempts"])
	message := letters[0]["message"].(map[string]any)
	require.Equal(t, "now", message["payload"])
	require.Equal(t, map[string]any{"X-User": []any{"ann"}, "Nats-Rollup": []any{"all"}}, message["headers"])
	got = cli(t, "mailbox", "purge", fmt.Sprint(first), "2", "--yes", "--no-dead", "--json", "-s", n.URL())
	require.Equal(t, exitFailed, got.code)
	require.JSONEq(t, `{"purged": 1, "missing": 1}`, got.stdout)
	require.Contains(t, got.stderr, "1 of the numbers given are not in stream DOWNLINK_MAILBOX")
	require.EqualValues(t, 1, messagesOf(t, n, "DOWNLINK_DEAD"))

	got = cli(t, "mailbox", "purge", "--all", "--yes", "-s", n.URL())
	require.Equal(t, result{exitOK, "1 purged; downlink dead ls --reason purged lists them; 2 stay: stored by a newer version of downlink, or by somebody else\n", ""}, got)
	got = cli(t, "mailbox", "purge", fmt.Sprint(foreign.Sequence), fmt.Sprint(newer.Sequence), "--yes", "-s", n.URL())
	require.Equal(t, exitOK, got.code, got.stderr)
	require.Contains(t, got.stdout, "1 purged; downlink dead ls --reason purged lists them; 1 stay")
	require.EqualValues(t, 3, messagesOf(t, n, "DOWNLINK_DEAD"))
	require.EqualValues(t, 1, messagesOf(t, n, "DOWNLINK_MAILBOX"))
}

func TestMailboxUsage(t *testing.T) {
	for args, want := range map[string]string{
		"mailbox":                                  "which one? try: downlink mailbox ls",
		"mailbox ls x":                             `unexpected argument "x"`,
		"mailbox ls --name a.b":                    `--name: "a.b" is no bridge's name`,
		"mailbox show":                             "which one? give the number of an entry",
		"mailbox show 0":                           `"0" is not the number of an entry`,
		"mailbox show x":                           `"x" is not the number of an entry`,
		"mailbox show 1 2":                         `unexpected argument "2"`,
		"mailbox show 1 --device x":                "give the number of an entry or filters, not both",
		"mailbox show 1 --raw --json":              "--raw and --json: give one",
		"mailbox show --device x --raw":            "--raw: give the number of one entry",
		"mailbox show --device x --limit -1":       "--limit: -1 is below 0",
		"mailbox purge --yes":                      "which ones? give numbers (downlink mailbox ls), filters, or --all",
		"mailbox purge 1 --all":                    "give numbers or filters, not both",
		"mailbox purge --all --hub x":              "give filters or --all, not both",
		"mailbox purge -1":                         "unknown shorthand flag",
		"mailbox purge one":                        `"one" is not the number of an entry`,
		"mailbox ls -c /does/not/exist":            "/does/not/exist: cannot read",
		"mailbox purge --all --connect-timeout 0s": "--connect-timeout",
	} {
		got := cli(t, strings.Fields(args)...)
		require.Equal(t, exitUsage, got.code, "%s: %s", args, got.stderr)
		require.Contains(t, got.stderr, want, args)
		require.Equal(t, 1, strings.Count(got.stderr, "\n"), got.stderr)
	}
}

// While the bridge runs: a device takes nothing, so all beyond its queue and the lane waits in the mailbox. What is
// purged is not delivered, the rest is, in order.
func TestMailboxPurgedWhileTheBridgeRuns(t *testing.T) {
	const total, full = 200, 50
	p := runPlant(t, "pump7", "valve")
	p.start(t)
	for i := range total {
		p.publish(t, "pump7", fmt.Sprint(i), nil)
	}
	require.Len(t, p.bodies(t, "pump7", full), full)
	waiting := func() int {
		boxes := objects(t, cli(t, "mailbox", "ls", "--device", "pump7", "--json", "-c", p.file).stdout)
		if len(boxes) == 0 {
			return 0
		}
		return int(boxes[0]["entries"].(float64))
	}
	require.Eventually(t, func() bool { return waiting() == total-full }, patience, 50*time.Millisecond)
	p.publish(t, "valve", "at once", nil)
	require.Equal(t, []string{"at once"}, p.bodies(t, "valve", 1))

	// All from the 91st on.
	var chosen []string
	for _, e := range objects(t, cli(t, "mailbox", "show", "--device", "pump7", "--limit", "0", "--json", "-c", p.file).stdout) {
		if e["message"].(map[string]any)["seq"].(float64) > 90 {
			chosen = append(chosen, fmt.Sprint(e["entry"]))
		}
	}
	require.Len(t, chosen, 110)
	got := cli(t, append([]string{"mailbox", "purge", "-c", p.file, "--yes"}, chosen...)...)
	require.Equal(t, result{exitOK, "110 purged; downlink dead ls --reason purged lists them\n", ""}, got)
	p.has(t, "PLANT_DEAD", 110)

	// There is room again.
	_, err := p.hub.PurgeDevice("pump7")
	require.NoError(t, err)
	var want []string
	for i := full; i < 90; i++ {
		want = append(want, fmt.Sprint(i))
	}
	require.Eventually(t, func() bool { return waiting() == 0 }, patience, 50*time.Millisecond)
	var delivered []string
	for _, m := range p.hub.Queue("pump7") {
		delivered = append(delivered, string(m.Message.Body))
	}
	require.Equal(t, want, delivered, "each once, in order")
}
