package mapping

import "fmt"

// cloudScope is one message as templates see it.
type cloudScope struct {
	in      *Input
	route   *route
	offs    []int
	header  map[string]any
	json    any
	decoded bool
	jsonErr error
	m       machine
	text    string // the payload, once it was asked for
	asking  bool   // a condition is being evaluated
	target  string // the device that is sent to
}

func (s *cloudScope) reset() {
	s.m.forget() // the message is the caller's again
	*s = cloudScope{offs: s.offs[:0], m: s.m}
}

// payload is the body as text, of which one copy is enough.
func (s *cloudScope) payload() string {
	if s.text == "" {
		s.text = string(s.in.Payload)
	}
	return s.text
}

func (s *cloudScope) machine() *machine { return &s.m }

func (s *cloudScope) ref(r *ref) (string, bool) {
	switch r.kind {
	case refCapture:
		return s.route.captures[r.index].of(s.in.Subject, s.offs), true
	case refHeader:
		return headerValue(s.in.Header, r.name)
	case refSubject:
		return s.in.Subject, true
	case refStream:
		return s.in.Stream, s.in.Stream != ""
	case refPayload:
		return s.payload(), true
	case refTarget:
		return s.target, true
	case refEvent:
		return eventAttribute(s.in.Header, r.name)
	}
	return "", false
}

func (s *cloudScope) name(id string) (any, error) {
	switch id {
	case "subject":
		return s.in.Subject, nil
	case "header":
		if s.header == nil {
			s.header = make(map[string]any, len(s.in.Header))
			for name := range s.in.Header {
				if v, ok := headerValue(s.in.Header, name); ok {
					s.header[name] = v
				}
			}
		}
		return s.header, nil
	case "headers":
		return s.in.Header, nil
	case "payload":
		return s.payload(), nil
	case "json":
		if !s.decoded {
			s.json, s.jsonErr = decodeJSON(s.in.Payload)
			s.decoded = true
		}
		if s.jsonErr != nil {
			if s.asking { // whether the payload is JSON may be the question
				return nil, nil
			}
			return nil, fmt.Errorf("payload is %w", s.jsonErr)
		}
		return s.json, nil
	case "stream":
		if s.in.Stream == "" {
			return nil, nil
		}
		return s.in.Stream, nil
	case "sequence":
		return int(s.in.Sequence), nil
	case "time":
		return s.in.Time.UTC(), nil
	case "target":
		return s.target, nil
	case "cloudevent":
		return event(s.in.Header), nil
	}
	for i := range s.route.captures {
		if c := &s.route.captures[i]; c.name == id {
			return c.of(s.in.Subject, s.offs), nil
		}
	}
	return nil, nil // a variable of the expression's own
}
