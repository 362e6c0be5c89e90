package amqpd

import (
	"bytes"
	"errors"
	"strings"

	"downlink/bridge/internal/amqpwire"
)

// The mechanisms the hub offers. MSSBCBS and EXTERNAL are taken like ANONYMOUS: who the client is, it
// says afterwards on $cbs.
var mechanisms = []amqpwire.Symbol{"MSSBCBS", "PLAIN", "ANONYMOUS", "EXTERNAL"}

// handshake is what comes before OPEN: the protocol header, with or without a SASL exchange before it (§2.2, §5.3).
func (c *conn) handshake() error {
	h, err := c.in.Header()
	if err != nil {
		return err
	}
	if h == amqpwire.HeaderSASL {
		if err := c.sasl(); err != nil {
			return err
		}
		if h, err = c.in.Header(); err != nil {
			return err
		}
	}
	if h != amqpwire.HeaderAMQP {
		// Answer with what we do speak, then hang up (§2.2).
		c.out.raw([]byte(amqpwire.HeaderAMQP))
		return errors.New("amqpd: not the header of AMQP 1.0")
	}
	c.out.raw([]byte(amqpwire.HeaderAMQP))
	return nil
}

func (c *conn) sasl() error {
	c.out.raw([]byte(amqpwire.HeaderSASL))
	c.out.raw(amqpwire.AppendSASLFrame(nil, &amqpwire.SASLMechanisms{Mechanisms: mechanisms}))
	c.out.flush()
	fr, err := c.in.Next()
	if err != nil {
		return err
	}
	perf, _, err := c.parser.Parse(fr.Type, fr.Body)
	if err != nil {
		return err
	}
	init, ok := perf.(*amqpwire.SASLInit)
	if !ok || fr.Type != amqpwire.FrameSASL {
		return errors.New("amqpd: sasl-init expected")
	}
	code := amqpwire.SASLOk
	switch strings.ToUpper(string(init.Mechanism)) {
	case "ANONYMOUS", "MSSBCBS", "EXTERNAL":
	case "PLAIN":
		if !c.plain(init.Response) {
			code = amqpwire.SASLAuth
		}
	default:
		code = amqpwire.SASLAuth
	}
	c.out.raw(amqpwire.AppendSASLFrame(nil, &amqpwire.SASLOutcome{Code: code}))
	c.out.flush()
	if code != amqpwire.SASLOk {
		c.log.Debug("SASL refused", "mechanism", string(init.Mechanism))
		return errDone
	}
	return nil
}

// plain checks a PLAIN response (RFC 4616): the user {policy}@sas.root.{hub name}, the password a SAS
// token of that policy. Such a connection lives as long as its token: PLAIN has no renewal.
func (c *conn) plain(response []byte) bool {
	parts := bytes.Split(response, []byte{0})
	if len(parts) != 3 {
		return false
	}
	policy, hub, ok := strings.Cut(string(parts[1]), "@sas.root.")
	if !ok || !c.srv.named(hub) {
		return false
	}
	g, err := c.srv.o.Backend.Authorize(string(parts[2]))
	if err != nil || !strings.EqualFold(g.Policy, policy) || expired(g) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.accept(g)
	c.plainToken.Store(true)
	return true
}

// named says whether hub is the hub's name, which is the first label of a host name.
func (s *Server) named(hub string) bool {
	for _, h := range s.o.Hostnames {
		if label, _, _ := strings.Cut(h, "."); strings.EqualFold(label, hub) {
			return true
		}
	}
	return len(s.o.Hostnames) == 0
}
