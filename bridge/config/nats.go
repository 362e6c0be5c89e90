package config

import (
	"net/url"
	"slices"
	"strings"
)

// nats checks one connection's block.
func (p *problems) nats(at string, n *NATS) {
	if len(n.URL) == 0 && p.src.given(at+".url") && !p.has(at+".url") {
		p.addf(at+".url", "empty; name a server, such as nats://127.0.0.1:4222, or remove the key")
	}
	where := given(
		named{"url", len(n.URL) > 0}, named{"context", n.Context != ""}, named{"embedded", n.Embedded != nil})
	if len(where) > 1 {
		p.addf(at+"."+where[1], "set as well as %s; keep one of the two", where[0])
	}
	who := given(
		named{"creds_file", n.CredsFile != ""}, named{"nkey_file", n.NKeyFile != ""},
		named{"token_file", n.TokenFile != ""}, named{"user", n.User != ""})
	if len(who) > 1 {
		p.addf(at+"."+who[1], "set as well as %s; a connection has one kind of credentials", who[0])
	}
	if n.User != "" && n.PasswordFile == "" && !p.has(at+".password_file") {
		p.addf(at+".user", "without password_file; add it")
	}
	if n.PasswordFile != "" && n.User == "" && !p.has(at+".user") {
		p.addf(at+".password_file", "without user; add it")
	}
	if n.TLS.CertFile != "" && n.TLS.KeyFile == "" && !p.has(at+".tls.key_file") {
		p.addf(at+".tls.cert_file", "without key_file; add it")
	}
	if n.TLS.KeyFile != "" && n.TLS.CertFile == "" && !p.has(at+".tls.cert_file") {
		p.addf(at+".tls.key_file", "without cert_file; add it")
	}
	extra := append(who, given(named{"password_file", n.PasswordFile != "" && n.User == ""}, named{"tls", n.TLS != NATSTLS{}})...)
	for _, key := range extra {
		p.noneWith(at+"."+key, n.Context != "", "context, which has its own")
		p.noneWith(at+"."+key, n.Embedded != nil, "embedded")
	}
	if strings.ContainsAny(n.Context, `/\`) {
		p.addf(at+".context", "%s is not the name of a nats CLI context", show(n.Context))
	}
	for i, u := range n.URL {
		p.natsURL(at+".url["+itoa(i)+"]", u)
	}
	if e := n.Embedded; e != nil {
		p.embeddedNATS(at+".embedded", e)
	}
}

type named struct {
	name string
	set  bool
}

func given(fields ...named) []string {
	var names []string
	for _, f := range fields {
		if f.set {
			names = append(names, f.name)
		}
	}
	return names
}

func (p *problems) natsURL(at, text string) {
	full := text
	if !strings.Contains(full, "://") {
		full = "nats://" + full
	}
	u, err := url.Parse(full)
	switch {
	case err != nil || u.Hostname() == "" || strings.ContainsAny(text, " ,"):
		p.addf(at, "%s is not a server's URL, such as nats://127.0.0.1:4222", show(text))
	case u.User != nil:
		p.addf(at, "has a user or token in the URL, which ends up in logs; use user and password_file, or token_file")
	case !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme):
		p.addf(at, "scheme %s is not nats, tls, ws or wss", show(u.Scheme))
	}
}

func (p *problems) embeddedNATS(at string, e *EmbeddedNATS) {
	p.address(at+".listen", e.Listen, true)
	names := make(map[string]int)
	for i, s := range e.Streams {
		at := at + ".streams[" + itoa(i) + "]"
		if s.Name == "" {
			p.addf(at+".name", "missing; name the stream")
			continue
		}
		p.streamName(at+".name", s.Name)
		if first, ok := names[s.Name]; ok {
			p.addf(at+".name", "%s is streams[%d] already", show(s.Name), first)
		} else {
			names[s.Name] = i
		}
		if len(s.Subjects) == 0 {
			p.addf(at+".subjects", "missing; say what the stream stores, such as subjects: [\"cmd.>\"]")
		}
		for j, subject := range s.Subjects {
			if !legalSubject(subject) {
				p.addf(at+".subjects["+itoa(j)+"]", "%s is not a NATS subject: tokens joined by dots, * for one, > for the rest at the end", show(subject))
			}
		}
	}
}

func legalSubject(subject string) bool {
	tokens := strings.Split(subject, ".")
	for i, t := range tokens {
		switch {
		case t == "" || strings.ContainsAny(t, " \t\r\n"):
			return false
		case t == ">":
			return i == len(tokens)-1
		case t != "*" && strings.ContainsAny(t, "*>"):
			// The server takes them as plain text; a filter that looks like one and is none is a mistake.
			return false
		}
	}
	return true
}
