package amqpd

import (
	"net/url"
	"strings"

	"downlink/bridge/emulator/fault"
	"downlink/bridge/internal/amqpwire"
)

// node is what a link leads to.
type node int

const (
	nowhere         node = iota
	cbsRequests          // the client sends put-token requests to $cbs
	cbsReplies           // the client receives the replies from $cbs
	deviceBound          // the client sends to /messages/devicebound
	feedbackBatches      // the client receives from /messages/serviceBound/feedback
)

// link is one link.
type link struct {
	s         *session
	node      node
	name      string
	role      bool // the peer's
	handle    uint32
	gone      bool // detached by both sides, or its session is over
	detaching bool // DETACH with an error is on its way: all but the peer's DETACH is discarded
	silent    bool // by a fault: ATTACH was not answered
	counted   bool

	deliveryCount uint32
	credit        uint32

	// From the client.
	held    int // deliveries whose answer is late or never comes
	active  bool
	id      uint32
	settled bool
	buf     []byte // of the active delivery

	// To the client.
	replyTo       string // the target's address
	sendUnsettled bool
	queue         [][]byte
	sending       *delivery // not all of it is sent yet
	sent          int       // bytes of it that are
	sendingID     uint32
}

// address gives an address's path in lower case, without a leading slash: the hub takes amqps://host[:port]/a/b, /a/b and
// a/b, in any letter case.
func address(a string) string {
	if i := strings.Index(a, "://"); i >= 0 {
		u, err := url.Parse(a)
		if err != nil {
			return ""
		}
		a = u.Path
	}
	return strings.ToLower(strings.TrimPrefix(a, "/"))
}

// resolve says where a link leads, or why nowhere.
func resolve(p *amqpwire.Attach) (node, *amqpwire.Error) {
	if p.Role == amqpwire.RoleSender {
		switch {
		case p.Target == nil || !p.Target.Coordinator && !p.Target.Address.Set:
			return nowhere, problem(condNotFound, "the sender has no target address")
		case p.Target.Coordinator:
			return nowhere, problem(condNotImplemented, "the hub has no transactions")
		}
		switch a := address(p.Target.Address.Value); a {
		case "$cbs":
			return cbsRequests, nil
		case "messages/devicebound":
			return deviceBound, nil
		default:
			return nowhere, problem(condNotFound, "nothing takes messages at %q", p.Target.Address.Value)
		}
	}
	if p.Source == nil || !p.Source.Address.Set {
		return nowhere, problem(condNotFound, "the receiver has no source address")
	}
	switch a := address(p.Source.Address.Value); a {
	case "$cbs":
		return cbsReplies, nil
	case "messages/servicebound/feedback":
		return feedbackBatches, nil
	case "messages/servicebound/filenotifications":
		return nowhere, problem(condNotImplemented, "this hub does not offer %q", p.Source.Address.Value)
	default:
		return nowhere, problem(condNotFound, "nothing sends messages from %q", p.Source.Address.Value)
	}
}

func (s *session) attach(p *amqpwire.Attach) {
	c := s.c
	switch {
	case p.Handle > maxHandle:
		// §2.7.2: the connection, not the session.
		c.fail(problem(condFraming, "handle %d is above handle-max %d", p.Handle, maxHandle), lingerTime)
		return
	case p.Handle < uint32(len(s.links)) && s.links[p.Handle] != nil:
		s.end(problem(condHandleInUse, "handle %d is in use", p.Handle))
		return
	}
	for _, l := range s.links {
		if l != nil && !l.detaching && l.name == p.Name && l.role == p.Role {
			l.detach(problem(condStolen, "another link has this one's name"))
		}
	}
	l := &link{s: s, name: p.Name, role: p.Role, handle: p.Handle, sendUnsettled: p.SenderSettleMode == amqpwire.Some(amqpwire.SenderUnsettled)}
	for uint32(len(s.links)) <= p.Handle {
		s.links = append(s.links, nil)
	}
	s.links[p.Handle] = l
	c.links++
	l.counted = true
	n, refusal := resolve(p)
	if refusal == nil && c.links > maxLinks {
		refusal = problem(condLimit, "more than %d links on a connection", maxLinks)
	}
	if refusal == nil && (n == deviceBound || n == feedbackBatches) {
		point := fault.AttachSender
		if n == feedbackBatches {
			point = fault.AttachReceiver
			// Feedback is the client's to settle, unless it asked not to.
			l.sendUnsettled = p.SenderSettleMode != amqpwire.Some(amqpwire.SenderSettled)
		}
		if act, ok := c.srv.o.Faults.Next(point, ""); ok {
			switch act.Kind {
			case fault.Drop:
				c.cut()
				return
			case fault.Withhold:
				l.silent = true
				return
			case fault.Delay:
				l.silent = true
				c.after(act.Delay, func() {
					if !l.gone {
						l.silent = false
						l.attached(p, n, c.refuses(n))
					}
				})
				return
			default:
				refusal = scripted(act)
			}
		} else {
			refusal = c.refuses(n)
		}
	}
	l.attached(p, n, refusal)
}

// refuses says why a link to n, which takes a token, is refused; nil: it is not.
func (c *conn) refuses(n node) *amqpwire.Error {
	if c.maySend() {
		if n == feedbackBatches && c.srv.o.Feedback == nil {
			return problem(condNotImplemented, "this hub has no feedback")
		}
		return nil
	}
	return problem(condUnauthorized, "no valid token with ServiceConnect was put on this connection")
}

// attached answers ATTACH. A refused link is attached without its remote terminus and then
// detached with the reason (§2.6.3); every other answer has source and target, or uamqp waits for ever.
func (l *link) attached(p *amqpwire.Attach, n node, refusal *amqpwire.Error) {
	s := l.s
	if p.Source != nil {
		// Only what is in force is echoed (§3.5.3), and neither filter nor default outcome is.
		p.Source.Filter, p.Source.DefaultOutcome = nil, nil
	}
	a := &amqpwire.Attach{
		Name: p.Name, Handle: l.handle, Role: !p.Role, SenderSettleMode: p.SenderSettleMode, ReceiverSettleMode: p.ReceiverSettleMode,
		Source: p.Source, Target: p.Target,
	}
	if a.Source == nil {
		a.Source = &amqpwire.Source{}
	}
	if a.Target == nil {
		a.Target = &amqpwire.Target{}
	}
	if p.Role == amqpwire.RoleReceiver {
		a.InitialDeliveryCount = amqpwire.Some[uint32](0) // mandatory for a sender (§2.7.3)
		if a.Target.Address.Set {
			l.replyTo = a.Target.Address.Value
		}
	} else {
		a.MaxMessageSize = maxMessageSize
		l.deliveryCount = p.InitialDeliveryCount.Value
	}
	if refusal != nil {
		if p.Role == amqpwire.RoleReceiver {
			a.Source = nil
		} else {
			a.Target = nil
		}
		s.emit(a, nil)
		l.detach(refusal)
		return
	}
	l.node = n
	s.emit(a, nil)
	if p.Role == amqpwire.RoleSender {
		l.credit = s.c.srv.o.Behaviour.Credit
		s.sendFlow(l, false)
		return
	}
	if n == feedbackBatches {
		s.c.feed()
		return
	}
	waiting := s.c.replies
	s.c.replies = nil
	for _, m := range waiting {
		l.send(m)
	}
}

// detach ends the link from our side.
func (l *link) detach(e *amqpwire.Error) {
	l.s.c.log.Debug("detaching a link", "err", e)
	l.s.emit(&amqpwire.Detach{Handle: l.handle, Closed: true, Error: e}, nil)
	l.detaching = true
	l.drop()
}

func (l *link) peerDetached(p *amqpwire.Detach) {
	if l.silent {
		// Whoever gave up on an unanswered ATTACH still gets both answers.
		l.s.emit(&amqpwire.Attach{Name: l.name, Handle: l.handle, Role: !l.role, InitialDeliveryCount: amqpwire.Some[uint32](0)}, nil)
	}
	if !l.detaching {
		l.s.emit(&amqpwire.Detach{Handle: l.handle, Closed: p.Closed}, nil)
	}
	l.s.links[l.handle] = nil
	l.remove()
}

// drop gives back what the link holds of the connection's limits.
func (l *link) drop() {
	c := l.s.c
	c.partial -= len(l.buf)
	c.held -= l.held
	l.buf, l.active, l.held, l.queue = nil, false, 0, nil
	if l.sending != nil && !l.sendUnsettled {
		c.settled(l.sending, amqpwire.Released{}) // cut off in the middle
	}
	l.sending = nil
	for id, d := range l.s.unsettled {
		if d.l == l {
			delete(l.s.unsettled, id)
			c.settled(d, amqpwire.Released{})
		}
	}
}

func (l *link) remove() {
	l.drop()
	l.gone = true
	if l.counted {
		l.s.c.links--
		l.counted = false
	}
}
