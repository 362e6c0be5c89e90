package mapping

import (
	"slices"
	"strings"
)

// header writes the headers of a publication: ours, and every property under its own name.
func (m *RelayMap) header(r *received) map[string][]string {
	h := make(map[string][]string, len(r.props)+12)
	hops := m.name
	if r.via != "" {
		hops = r.via + ", " + m.name
	}
	for _, f := range [...][2]string{
		{headerDevice, r.c.Device}, {headerMessageID, r.c.MessageID}, {headerCorrelationID, r.c.CorrelationID},
		{headerUserID, r.c.UserID}, {headerContentType, r.c.ContentType}, {headerContentEncoding, r.c.ContentEncoding},
		{headerExpires, r.c.Expires}, {propSubject, r.subject}, {propSeq, r.seq}, {propOriginal, r.original}, {propVia, hops},
	} {
		if f[1] != "" {
			h[f[0]] = []string{f[1]}
		}
	}
	var null []string
	for _, p := range r.props {
		name := headerName(p.Name, len(r.c.Body) == 0)
		if p.Null {
			// No header at all: whoever does not know Downlink-Null must not take null for empty.
			null = append(null, name)
			continue
		}
		h[name] = append(h[name], p.Value)
	}
	encodeHeader(h)
	if len(null) > 0 {
		slices.Sort(null)
		var list encList
		for _, name := range slices.Compact(null) {
			list.add(name, false)
		}
		h[headerNull] = []string{list.String()}
	}
	return h
}

// headerName is the header of a property. Nats-* would be obeyed by JetStream,
// Downlink-* taken for ours, and an empty message with Status for a server's
// notice by nats.go, which then never hands it on.
func headerName(name string, noBody bool) string {
	if name == "" || inert(name) || noBody && name == "Status" {
		return headerInert + name
	}
	return name
}

// encodeHeader encodes what NATS cannot carry and lists it in Downlink-Enc. nats.go refuses
// names outside a set, trims values and turns CR and LF into spaces.
func encodeHeader(h map[string][]string) {
	var names []string
	for name, values := range h {
		if !inClass(name, classHeader) || slices.ContainsFunc(values, notForNATS) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return
	}
	slices.Sort(names)
	var list encList
	for _, name := range names {
		values := h[name]
		delete(h, name)
		for i, v := range values { // all of a name's values, or a reader could not tell which
			values[i] = encodeValue(v)
		}
		wire := name
		encoded := !inClass(name, classHeader)
		if encoded {
			wire = encodeHeaderName(name)
			if _, taken := h[wire]; taken {
				wire = encodeAll(name)
			}
		}
		h[wire] = values
		list.add(wire, encoded)
	}
	h[headerEnc] = []string{list.String()}
}

func notForNATS(v string) bool {
	return strings.ContainsAny(v, "\r\n") || strings.Trim(v, " \t") != v
}

// encodeValue percent-encodes CR, LF, outer spaces and "%".
func encodeValue(v string) string {
	b := make([]byte, 0, len(v)+16)
	for i := 0; i < len(v); i++ {
		c := v[i]
		outer := (c == ' ' || c == '\t') && (i == 0 || i == len(v)-1)
		if c == '\r' || c == '\n' || c == '%' || outer {
			b = appendPercent(b, c)
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}

// encodeHeaderName percent-encodes what a header's name cannot have, and "%".
func encodeHeaderName(s string) string {
	b := make([]byte, 0, len(s)+16)
	for i := 0; i < len(s); i++ {
		if s[i] != '%' && classes[s[i]]&classHeader != 0 {
			b = append(b, s[i])
		} else {
			b = appendPercent(b, s[i])
		}
	}
	return string(b)
}

// encodeAll percent-encodes every byte: the way out when another name already looks like the encoded one.
func encodeAll(s string) string {
	var b []byte
	for i := 0; i < len(s); i++ {
		b = appendPercent(b, s[i])
	}
	return string(b)
}
