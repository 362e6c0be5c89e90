package amqpd

import (
	"errors"
	"strings"
	"time"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/internal/amqpwire"
)

const maxWaitingReplies = 16

func expired(g Grant) bool { return !g.Expires.IsZero() && !g.Expires.After(time.Now()) }

// accept makes g what the connection may do. A token that cannot connect services never takes the place of
// one that can: a client may put several for different purposes.
func (c *conn) accept(g Grant) {
	if c.granted && c.grant.ServiceConnect && !g.ServiceConnect && !expired(c.grant) {
		return
	}
	c.grant, c.granted = g, true
	c.out.setTimers(func(t *timers) { t.expiry = g.Expires })
}

// maySend says whether the connection's token allows what services do.
func (c *conn) maySend() bool { return c.granted && c.grant.ServiceConnect && !expired(c.grant) }

// request handles one request to $cbs (AMQP Claims-Based Security 1.0, working draft 6, §4). The request is accepted before the
// reply goes out: uamqp takes a reply to an unconfirmed request for a failure.
func (l *link) request(id uint32, settled bool, message []byte) {
	c := l.s.c
	// What is kept beyond this call must not alias the reader's buffers.
	r, err := c.parseRequest(message)
	if err != nil {
		l.answer(id, settled, &amqpwire.Rejected{Error: problem(condDecode, "%v", err)})
		return
	}
	act, faulty := c.srv.o.Faults.Next(fault.PutToken, "")
	reply := func() {
		code, text := c.putToken(r)
		l.answer(id, settled, amqpwire.Accepted{})
		c.reply(l.s, r, code, text)
	}
	if !faulty {
		reply()
		return
	}
	if act.After && act.Kind != fault.Delay && act.Kind != fault.Expire {
		c.putToken(r)
	}
	switch act.Kind {
	case fault.Drop:
		c.cut()
	case fault.Withhold:
		l.hold(1)
	case fault.Delay:
		l.hold(1)
		c.after(act.Delay, func() {
			if l.gone || l.detaching {
				return
			}
			l.hold(-1)
			reply()
			c.topUp()
		})
	case fault.Expire:
		reply()
		if c.granted {
			c.grant.Expires = time.Now().Add(act.Delay)
			c.out.setTimers(func(t *timers) { t.expiry = c.grant.Expires })
		}
	case fault.Release:
		l.answer(id, settled, amqpwire.Released{})
	case fault.Modify:
		l.answer(id, settled, &amqpwire.Modified{DeliveryFailed: true})
	default:
		e := scripted(act)
		l.answer(id, settled, amqpwire.Accepted{})
		c.reply(l.s, r, statusOf(string(e.Condition)), e.Description)
	}
}

func statusOf(condition string) int32 {
	switch condition {
	case condUnauthorized:
		return 401
	case condNotFound:
		return 404
	case condLimit, condCredit:
		return 403
	case condArgument, condInvalidField:
		return 400
	}
	return 500
}

// tokenRequest is a request to $cbs.
type tokenRequest struct {
	messageID any
	replyTo   string
	operation string
	kind      string
	token     string
}

func (c *conn) parseRequest(message []byte) (r tokenRequest, err error) {
	if err := c.sections.Split(message); err != nil {
		return r, err
	}
	if c.sections.Properties != nil {
		var p amqpwire.Properties
		if err := p.Decode(c.sections.Properties); err != nil {
			return r, err
		}
		r.messageID, r.replyTo = p.MessageID, p.ReplyTo
		if b, ok := p.MessageID.([]byte); ok {
			r.messageID = append([]byte{}, b...)
		}
	}
	if c.sections.ApplicationProperties != nil {
		m, err := amqpwire.DecodeMap(c.sections.ApplicationProperties)
		if err != nil {
			return r, err
		}
		r.operation, r.kind = text(m.Get("operation")), text(m.Get("type"))
	}
	switch c.sections.Body {
	case amqpwire.BodyValue:
		v, err := amqpwire.DecodeValue(c.sections.Value)
		if err != nil {
			return r, err
		}
		r.token = text(v)
	case amqpwire.BodyData:
		for _, b := range c.sections.Data {
			r.token += string(b)
		}
	}
	return r, nil
}

func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case amqpwire.Symbol:
		return string(v)
	case []byte:
		return string(v)
	}
	return ""
}

// bearer comes before the text of an Entra token.
const bearer = "bearer "

// putToken carries the request out and gives status code and description.
func (c *conn) putToken(r tokenRequest) (int32, string) {
	if !strings.EqualFold(r.operation, "put-token") {
		return 400, "the operation is not put-token"
	}
	switch strings.ToLower(r.kind) {
	case "servicebus.windows.net:sastoken": // Node's SDK puts Entra tokens under this name too
	case "bearer":
		if r.token != "" && !strings.HasPrefix(strings.ToLower(r.token), bearer) {
			r.token = bearer + r.token // C# leaves it out
		}
	case "jwt":
		return 401, "this hub takes Entra tokens as bearer, not as jwt" // whether IoT Hub takes it, nobody outside knows
	default:
		return 400, "the token type is not servicebus.windows.net:sastoken"
	}
	if r.token == "" {
		return 400, "the token is missing from the body"
	}
	g, err := c.srv.o.Backend.Authorize(r.token)
	var refusal *c2d.Refusal
	switch {
	case errors.As(err, &refusal) && refusal.Code >= 100000:
		return int32(refusal.Code / 1000), refusal.Text
	case errors.As(err, &refusal):
		return statusOf(refusal.Condition), refusal.Text
	case err != nil:
		return 401, "the token is not valid for this hub"
	case expired(g):
		return 401, "the token has expired"
	}
	c.accept(g)
	return 200, "OK"
}

// reply sends the answer on the client's receiver from $cbs: the one that reply-to names, else the one of
// the same session, else any.
func (c *conn) reply(from *session, r tokenRequest, code int32, description string) {
	// status-code must be an int: uamqp takes no other type, Node compares it with 200.
	b := (&amqpwire.Properties{CorrelationID: r.messageID}).Append(nil)
	b, err := amqpwire.AppendApplicationProperties(b, amqpwire.Map{
		{Key: "status-code", Value: code}, {Key: "status-description", Value: description}})
	if err == nil {
		b, err = amqpwire.AppendBodyValue(b, nil)
	}
	if err != nil {
		panic(err) // all of it is ours
	}
	if l := c.replyLink(from, r.replyTo); l != nil {
		l.send(b)
		return
	}
	if len(c.replies) < maxWaitingReplies {
		c.replies = append(c.replies, b)
	}
}

func (c *conn) replyLink(from *session, replyTo string) *link {
	var best *link
	rank := 0
	for _, s := range c.sessions {
		if s == nil || s.ending {
			continue
		}
		for _, l := range s.links {
			if l == nil || l.detaching || l.node != cbsReplies {
				continue
			}
			n := 1
			if s == from {
				n += 1
			}
			if replyTo != "" && l.replyTo == replyTo {
				n += 2
			}
			if n > rank {
				best, rank = l, n
			}
		}
	}
	return best
}
