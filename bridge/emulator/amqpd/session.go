package amqpd

import (
	"cmp"
	"slices"

	"downlink/bridge/internal/amqpwire"
)

// session is one session. Its links are found by the peer's handles; ours are the same numbers, since only
// the peer attaches.
type session struct {
	c       *conn
	channel uint16
	ending  bool // END with an error is on its way: all but the peer's END is discarded

	nextIncoming uint32 // transfer-id of the next frame from the peer
	window       uint32 // frames it may still send
	links        []*link

	nextOutgoing uint32
	nextDelivery uint32
	peerWindow   int64                // frames it still takes
	unsettled    map[uint32]*delivery // sent to the client

	// Accepted deliveries with consecutive IDs that are not told yet: one disposition serves them all.
	run             bool
	runFrom, runEnd uint32
}

func (c *conn) begin(channel uint16, old *session, p *amqpwire.Begin) {
	if old != nil || p.RemoteChannel.Set {
		c.fail(problem(condNotAllowed, "begin on channel %d, which is in use or never was ours", channel), lingerTime)
		return
	}
	s := &session{c: c, channel: channel, nextIncoming: p.NextOutgoingID, window: incomingWindow, peerWindow: int64(p.IncomingWindow)}
	c.sessions[channel] = s
	s.emit(&amqpwire.Begin{
		RemoteChannel: amqpwire.Some(channel), IncomingWindow: incomingWindow, OutgoingWindow: incomingWindow, HandleMax: maxHandle,
	}, nil)
}

// emit sends a frame after all dispositions that are due, so that the peer learns of things in their order.
func (s *session) emit(p amqpwire.Performative, payload []byte) {
	s.flush()
	s.c.send(s.channel, p, payload)
}

// accepted notes a disposition to be sent with its neighbours.
func (s *session) accepted(id uint32) {
	if s.run && id == s.runEnd+1 {
		s.runEnd = id
		return
	}
	s.flush()
	s.run, s.runFrom, s.runEnd = true, id, id
}

func (s *session) flush() {
	if !s.run {
		return
	}
	s.run = false
	// Settled at once: uamqp ignores dispositions that are not, also on links with
	// rcv-settle-mode second.
	d := amqpwire.Disposition{Role: amqpwire.RoleReceiver, First: s.runFrom, Settled: true, State: amqpwire.Accepted{}}
	if s.runEnd != s.runFrom {
		d.Last = amqpwire.Some(s.runEnd)
	}
	s.c.send(s.channel, &d, nil)
}

// end ends the session because the peer broke its rules (§2.5.3).
func (s *session) end(e *amqpwire.Error) {
	s.c.log.Debug("ending a session", "err", e)
	s.emit(&amqpwire.End{Error: e}, nil)
	s.ending = true
	s.release()
}

func (s *session) peerEnded(p *amqpwire.End) {
	if !s.ending {
		s.emit(&amqpwire.End{}, nil)
		s.release()
	}
	s.c.sessions[s.channel] = nil
	if p.Error != nil {
		s.c.log.Debug("the client ended a session", "err", p.Error)
	}
}

func (s *session) release() {
	for _, l := range s.links {
		if l != nil {
			l.remove()
		}
	}
	s.links, s.unsettled = nil, nil
}

func (s *session) handle(perf amqpwire.Performative, payload []byte) {
	switch p := perf.(type) {
	case *amqpwire.Attach:
		s.attach(p)
	case *amqpwire.Flow:
		s.flow(p)
	case *amqpwire.Transfer:
		s.transfer(p, payload)
	case *amqpwire.Disposition:
		s.disposition(p)
	case *amqpwire.Detach:
		if l := s.link(p.Handle); l != nil {
			l.peerDetached(p)
		}
	default:
		s.end(problem(condNotAllowed, "%T within a session", perf))
	}
}

// link finds a link, or ends the session: the peer speaks of one that does not exist.
func (s *session) link(handle uint32) *link {
	if handle < uint32(len(s.links)) && s.links[handle] != nil {
		return s.links[handle]
	}
	s.end(problem(condUnattached, "no link has handle %d", handle))
	return nil
}

// sendFlow tells the session's state and, with a link, the link's. All session fields are
// always there: rhea computes with them, and uamqp detaches without a word if delivery-count or link-credit is missing.
func (s *session) sendFlow(l *link, drain bool) {
	s.window = incomingWindow
	f := amqpwire.Flow{
		NextIncomingID: amqpwire.Some(s.nextIncoming), IncomingWindow: s.window,
		NextOutgoingID: s.nextOutgoing, OutgoingWindow: incomingWindow,
	}
	if l != nil {
		f.Handle, f.DeliveryCount, f.LinkCredit = amqpwire.Some(l.handle), amqpwire.Some(l.deliveryCount), amqpwire.Some(l.credit)
		f.Drain = drain
		if l.sends() {
			f.Available = amqpwire.Some(uint32(len(l.queue)))
		}
	}
	s.emit(&f, nil)
}

func (s *session) flow(p *amqpwire.Flow) {
	s.nextIncoming = p.NextOutgoingID
	// Without next-incoming-id the peer has not seen our BEGIN, whose next-outgoing-id was 0 (§2.5.6).
	s.peerWindow = int64(int32(p.NextIncomingID.Value-s.nextOutgoing)) + int64(p.IncomingWindow)
	if p.Handle.Set {
		l := s.link(p.Handle.Value)
		switch {
		case l == nil:
			return
		case l.detaching, l.silent:
		case l.sends():
			l.credited(p)
		default:
			l.senderState(p)
		}
	} else if p.Echo {
		s.sendFlow(nil, false)
	}
	for _, l := range s.links {
		if l != nil && l.sends() {
			l.pump()
		}
	}
}

// disposition is the peer's word on deliveries: as the sender it settles what we have settled already, as
// the receiver it settles what we sent.
func (s *session) disposition(p *amqpwire.Disposition) {
	if p.Role == amqpwire.RoleSender || len(s.unsettled) == 0 {
		return
	}
	last := p.First
	if p.Last.Set {
		last = p.Last.Value
	}
	var ids []uint32
	for id := range s.unsettled {
		if id-p.First <= last-p.First { // serial numbers: RFC 1982
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b uint32) int { return cmp.Compare(a-p.First, b-p.First) })
	for _, id := range ids {
		if !p.Settled && !terminal(p.State) {
			continue // how far it got, not what became of it
		}
		d := s.unsettled[id]
		delete(s.unsettled, id)
		state := s.c.settled(d, p.State)
		if !p.Settled {
			// The client waits for our word, as C# does: rcv-settle-mode second.
			s.emit(&amqpwire.Disposition{Role: amqpwire.RoleSender, First: id, Settled: true, State: state}, nil)
		}
	}
	if len(ids) > 0 {
		for _, l := range s.links {
			if l != nil && l.sends() {
				l.pump() // there may be room for more now
			}
		}
	}
}

func terminal(state amqpwire.DeliveryState) bool {
	switch state.(type) {
	case amqpwire.Accepted, *amqpwire.Rejected, amqpwire.Released, *amqpwire.Modified:
		return true
	}
	return false
}
