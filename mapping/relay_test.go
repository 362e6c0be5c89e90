package mapping

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func relayMap(t testing.TB, o RelayOptions) *RelayMap {
	t.Helper()
	m, err := CompileRelay(o)
	require.NoError(t, err)
	return m
}

func c2d(props ...string) *C2D {
	c := &C2D{Device: "berlin-p7", Topic: "devices/berlin-p7/messages/devicebound/", MessageID: "m1", Body: []byte("go")}
	for i := 0; i < len(props); i += 2 {
		c.Properties = append(c.Properties, Property{Name: props[i], Value: props[i+1]})
	}
	return c
}

func TestRelaySubject(t *testing.T) {
	for _, c := range []struct {
		tmpl  string
		props []string
		want  string
	}{
		{"", nil, "edge.berlin-p7"},
		{"", []string{"verb", "reboot"}, "edge.berlin-p7.reboot"},
		{"", []string{"verb", "a.b >"}, "edge.berlin-p7.a%2Eb%20%3E"},
		{"", []string{"verb", ""}, "edge.berlin-p7"},
		{`edge.{device}.{property["verb"] ?? "command"}`, nil, "edge.berlin-p7.command"},
		{`edge.{device}.{property["verb"] ?? "command"}`, []string{"verb", "*"}, "edge.berlin-p7.%2A"},
		{`edge.{property["verb"]...}`, []string{"verb", "motor.start"}, "edge.motor.start"},
		{`edge.{property.verb ...}.x`, []string{"verb", "motor.start"}, "edge.motor.start.x"},
		{`edge.{subject}`, []string{"Downlink-Subject", "cmd.a"}, "edge.cmd%2Ea"},
		{`edge.{message.id}.{upper(device)}.n{1+1}`, nil, "edge.m1.BERLIN-P7.n2"},
		{`edge.{message.correlation_id ?? "none"}`, nil, "edge.none"},
		{`{property["p"]}.x`, []string{"p", "$SYS"}, "%24SYS.x"},
		{`edge.{property["verb"] in [nil, ""] ? "command" : property["verb"]}`, nil, "edge.command"},
		{`edge.{property["verb"] in [nil, ""] ? "command" : property["verb"]}`, []string{"verb", ""}, "edge.command"},
		{`edge.{property["verb"] in [nil, ""] ? "command" : property["verb"]}`, []string{"verb", "go"}, "edge.go"},
	} {
		p, err := relayMap(t, RelayOptions{Subject: c.tmpl}).Map(c2d(c.props...))
		require.NoError(t, err, c)
		require.Equal(t, c.want, p.Subject)
	}
}

func TestRelaySubjectRefused(t *testing.T) {
	for _, c := range []struct {
		tmpl   string
		value  string
		reason Reason
	}{
		{`edge.{property["none"]}`, "", ReasonAbsent},
		{`{property["none"]...}`, "", ReasonAbsent},
		{`edge.{property["v"]}`, "", ReasonBadSubject},
		{`edge.{property["v"]}.x`, "", ReasonBadSubject},
		{`edge.{property["v"]...}`, "a..b", ReasonBadSubject},
		{`edge.{property["v"]...}`, "a.>", ReasonBadSubject},
		{`edge.{property["v"]...}`, "*", ReasonBadSubject},
		{`edge.{property["v"]...}`, "a b", ReasonBadSubject},
		{`edge.{property["v"]...}`, "a\r\nPUB x", ReasonBadSubject},
		{`{property["v"]...}`, "$JS.API.STREAM.DELETE.X", ReasonBadSubject},
		{`{property["v"]...}`, "_INBOX.x", ReasonBadSubject},
		{`{property["v"]}.x`, "_INBOX", ReasonBadSubject},
		{`{property["v"]...}`, "home.dead.x", ReasonBadSubject},
		{`{property["v"]}`, "home", ReasonBadSubject},
		{`edge.{property["v"]}`, strings.Repeat("x", 3000), ReasonBadSubject},
		{`edge.{property["v"] + 1}`, "x", ReasonExpression},
	} {
		_, err := relayMap(t, RelayOptions{Subject: c.tmpl, Name: "home"}).Map(c2d("v", c.value))
		var re *RouteError
		require.ErrorAs(t, err, &re, c.tmpl)
		require.Equal(t, c.reason, re.Reason, "%s: %v", c.tmpl, err)
		require.Equal(t, "publish.subject", re.Field)
	}
	_, err := relayMap(t, RelayOptions{}).Map(&C2D{})
	require.Error(t, err)
}

// TestEmptyTokens: an empty token is told with the part of the template that left it so.
func TestEmptyTokens(t *testing.T) {
	for _, c := range []struct{ tmpl, value, want string }{
		{`edge.{device}.{property["v"] ?? "command"}`, "", `{property["v"] ?? "command"} is empty; ?? replaces only what is absent: write {VALUE in [nil, ""] ? "none" : VALUE}`},
		{`{property["v"]}.{device}`, "", `{property["v"]} is empty;`},
		{`{device}.{property["v"]}{property["v"]}.x`, "", `{property["v"]} is empty;`},
		{`edge.{device}.{property["v"]...}`, "", `{property["v"]} is empty;`},
		{`edge.{device}.{property["v"]...}.x`, "a..b", `has an empty token within the value of {property["v"]...}`},
		{`edge.{property["v"]...}.{device}`, "a.", `has an empty token within the value of {property["v"]...}`},
		{`edge.{property["v"]...}`, ".a", `has an empty token within the value of {property["v"]...}`},
	} {
		_, err := relayMap(t, RelayOptions{Subject: c.tmpl}).Map(c2d("v", c.value))
		var dead *RouteError
		require.ErrorAs(t, err, &dead, c)
		require.Equal(t, ReasonBadSubject, dead.Reason)
		require.ErrorContains(t, dead.Err, c.want)
	}
}

func TestAllowSubjects(t *testing.T) {
	m := relayMap(t, RelayOptions{AllowSubjects: []string{"cmd.*.>", ">"}[:1], Name: "home"})
	for subject, want := range map[string]string{
		"cmd.a.b": "cmd.a.b", "cmd.a": "edge.berlin-p7", "other": "edge.berlin-p7", "cmd.a.>": "edge.berlin-p7", "cmd.a b.c": "edge.berlin-p7", "": "edge.berlin-p7",
	} {
		p, err := m.Map(c2d("Downlink-Subject", subject))
		require.NoError(t, err)
		require.Equal(t, want, p.Subject)
	}
	m = relayMap(t, RelayOptions{AllowSubjects: []string{">"}, Name: "home"})
	for _, subject := range []string{"$SYS.x", "_INBOX.x", "home.x"} {
		p, err := m.Map(c2d("Downlink-Subject", subject))
		require.NoError(t, err)
		require.Equal(t, "edge.berlin-p7", p.Subject)
	}
	m = relayMap(t, RelayOptions{Subject: "from.{subject...}", AllowSubjects: []string{"cmd.>"}})
	p, err := m.Map(c2d("Downlink-Subject", "cmd.x"))
	require.NoError(t, err)
	require.Equal(t, "from.cmd.x", p.Subject)
	_, err = m.Map(c2d("Downlink-Subject", "other.x"))
	var re *RouteError
	require.ErrorAs(t, err, &re)
	require.Equal(t, ReasonNotAllowed, re.Reason)
}

func TestCompileRelayErrors(t *testing.T) {
	for _, c := range []struct {
		o    RelayOptions
		path string
		want string
	}{
		{RelayOptions{Subject: "$SYS.{device}"}, "publish.subject", "belong to NATS itself"},
		{RelayOptions{Subject: "${device}"}, "publish.subject", "belong to NATS itself"},
		{RelayOptions{Subject: "_INBOX.x"}, "publish.subject", "belong to NATS itself"},
		{RelayOptions{Subject: "downlink.{device}"}, "publish.subject", "subjects under downlink belong to the relay of that name; begin with another token, such as edge"},
		{RelayOptions{Name: "edge"}, "publish.subject", "such as site, or rename the relay"},
		{RelayOptions{Name: "edge", Subject: "edge.{device}"}, "publish.subject", "such as site, or rename the relay"},
		{RelayOptions{Subject: "edge..{device}"}, "publish.subject", "token 2 is empty"},
		{RelayOptions{Subject: "edge.{device}."}, "publish.subject", "token 3 is empty"},
		{RelayOptions{Subject: "edge.*"}, "publish.subject", "wildcard"},
		{RelayOptions{Subject: "edge.a b"}, "publish.subject", "space"},
		{RelayOptions{Subject: "edge.{device"}, "publish.subject", "unclosed"},
		{RelayOptions{Subject: "edge.{header}"}, "publish.subject", "unknown name header; known here: device, message, property, subject"},
		{RelayOptions{Subject: "edge.{message.foo}"}, "publish.subject", "unknown field foo; the fields of message are ack, content_encoding, content_type, correlation_id, expires, id, to, user_id"},
		{RelayOptions{Subject: "edge.{message.nope}"}, "publish.subject", "unknown field nope"},
		{RelayOptions{Subject: "edge.{subject...}"}, "publish.subject", "say in allow_subjects"},
		{RelayOptions{AllowSubjects: []string{"ok", "a..b"}}, "allow_subjects[1]", "token 2 is empty"},
		{RelayOptions{AllowSubjects: []string{"cmd.{x}"}}, "allow_subjects[0]", "use * and >"},
		{RelayOptions{AllowSubjects: []string{"$JS.>"}}, "allow_subjects[0]", "belong to NATS itself"},
		{RelayOptions{Name: "a b"}, "name", "must be"},
	} {
		_, err := CompileRelay(c.o)
		var fe *FieldError
		require.ErrorAs(t, err, &fe, c.want)
		require.Equal(t, c.path, fe.Path)
		require.ErrorContains(t, err, c.want)
		require.NotContains(t, err.Error(), "\n")
	}
}

func TestPublicationHeaders(t *testing.T) {
	c := c2d("verb", "go", "empty", "", "Nats-Rollup", "all", "nAtS-X", "1", "Downlink-Device", "evil", "downlink-enc2", "x",
		"a b", "v", "ü", "v", "twice", "1", "twice", "2", "nl", "a\r\nNats-Rollup: all%", "outer", " x\t", "", "noname",
		"Downlink-Subject", "cmd.x", "Downlink-Seq", "12", "Downlink-Seq", "13", "Downlink-Via", "prod")
	c.Properties = append(c.Properties, Property{Name: "null", Null: true}, Property{Name: "Nats-N", Null: true})
	c.CorrelationID, c.UserID, c.ContentType, c.ContentEncoding, c.Expires = "c1", " u", "text/plain", "utf-8", "2025-01-02T03:04:05.0000000Z"
	p, err := relayMap(t, RelayOptions{Name: "home"}).Map(c)
	require.NoError(t, err)
	require.Equal(t, map[string][]string{
		"Downlink-Device": {"berlin-p7"}, "Downlink-Message-Id": {"m1"}, "Downlink-Correlation-Id": {"c1"}, "Downlink-User-Id": {"%20u"},
		"Downlink-Content-Type": {"text/plain"}, "Downlink-Content-Encoding": {"utf-8"}, "Downlink-Expires": {"2025-01-02T03:04:05.0000000Z"},
		"Downlink-Subject": {"cmd.x"}, "Downlink-Seq": {"12"}, "Downlink-Via": {"prod, home"},
		"verb": {"go"}, "empty": {""}, "twice": {"1", "2"},
		"Downlink-Prop-Nats-Rollup": {"all"}, "Downlink-Prop-nAtS-X": {"1"}, "Downlink-Prop-Downlink-Device": {"evil"},
		"Downlink-Prop-downlink-enc2": {"x"}, "Downlink-Prop-Downlink-Seq": {"13"}, "Downlink-Prop-": {"noname"},
		"a%20b": {"v"}, "%C3%BC": {"v"}, "nl": {"a%0D%0ANats-Rollup: all%25"}, "outer": {"%20x%09"},
		"Downlink-Enc":  {"Downlink-User-Id|!a%2520b|nl|outer|!%25C3%25BC"},
		"Downlink-Null": {"Downlink-Prop-Nats-N|null"},
	}, p.Header)
	require.Equal(t, []byte("go"), p.Data)
}

func TestRelayUndoesEncoding(t *testing.T) {
	p, err := relayMap(t, RelayOptions{}).Map(c2d("v", "a%09b", "raw", "50%25", "%24.mid", "m", "bad", "50%", "%4Eats-Rollup", "all",
		"downlink-enc", "v|!%2524.mid|bad|!%254Eats-Rollup|missing|%zz||!"))
	require.NoError(t, err)
	require.Equal(t, map[string][]string{
		"Downlink-Device": {"berlin-p7"}, "Downlink-Message-Id": {"m1"}, "Downlink-Via": {"downlink"},
		"v": {"a\tb"}, "raw": {"50%25"}, "$.mid": {"m"}, "bad": {"50%"}, "Downlink-Prop-Nats-Rollup": {"all"},
	}, p.Header)
}

func TestStatusWithoutBody(t *testing.T) {
	c := c2d("Status", "on", "status", "off")
	p, err := relayMap(t, RelayOptions{}).Map(c)
	require.NoError(t, err)
	require.Equal(t, []string{"on"}, p.Header["Status"])
	c.Body = nil
	p, err = relayMap(t, RelayOptions{}).Map(c)
	require.NoError(t, err)
	require.NotContains(t, p.Header, "Status")
	require.Equal(t, []string{"on"}, p.Header["Downlink-Prop-Status"])
	require.Equal(t, []string{"off"}, p.Header["status"])
}

func TestPublicationID(t *testing.T) {
	m := relayMap(t, RelayOptions{})
	id := func(change func(*C2D)) string {
		c := c2d()
		change(c)
		p, err := m.Map(c)
		require.NoError(t, err)
		return p.ID
	}
	base := id(func(*C2D) {})
	require.Equal(t, base, id(func(*C2D) {}))
	require.Len(t, base, 43)
	require.Empty(t, id(func(c *C2D) { c.MessageID = "" }))
	for _, change := range []func(*C2D){
		func(c *C2D) { c.MessageID = "m2" }, func(c *C2D) { c.Device = "x" }, func(c *C2D) { c.Topic += "a" }, func(c *C2D) { c.Body = []byte("G") },
		func(c *C2D) { c.Topic += "g"; c.Body = []byte("o") },
	} {
		require.NotEqual(t, base, id(change))
	}
}

func TestHeaderNamesThatCollideOnceEncoded(t *testing.T) {
	p, err := relayMap(t, RelayOptions{}).Map(c2d("a b", "1", "a%20b", "2"))
	require.NoError(t, err)
	require.Equal(t, []string{"2"}, p.Header["a%20b"])
	require.Equal(t, []string{"1"}, p.Header["%61%20%62"])
}
