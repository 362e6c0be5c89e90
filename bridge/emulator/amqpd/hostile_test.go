package amqpd_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/amqpd"
	"downlink/bridge/internal/amqpwire"
)

// closedWith expects CLOSE with a condition and then the end of the stream.
func (p *peer) closedWith(condition string) {
	p.t.Helper()
	for {
		perf, _, _ := p.read()
		if c, ok := perf.(*amqpwire.Close); ok {
			require.NotNil(p.t, c.Error)
			require.EqualValues(p.t, condition, c.Error.Condition)
			break
		}
	}
	p.send(0, &amqpwire.Close{})
	if c, ok := p.nc.(*tls.Conn); ok {
		c.CloseWrite() // after a framing error our CLOSE is noise to the hub
	}
	p.gone()
}

// endedWith expects END with a condition; the connection goes on.
func (p *peer) endedWith(condition string) {
	p.t.Helper()
	for {
		perf, _, _ := p.read()
		if e, ok := perf.(*amqpwire.End); ok {
			require.NotNil(p.t, e.Error)
			require.EqualValues(p.t, condition, e.Error.Condition)
			break
		}
	}
	p.send(0, transferOf(5, 7), 1, 2, 3) // on its way when we ended the session
	p.send(0, &amqpwire.End{})
	p.send(0, &amqpwire.Begin{IncomingWindow: 10, OutgoingWindow: 10})
	expect[*amqpwire.Begin](p)
}

// detachedWith expects DETACH with a condition; the session goes on.
func (p *peer) detachedWith(condition string) {
	p.t.Helper()
	for {
		perf, _, _ := p.read()
		if d, ok := perf.(*amqpwire.Detach); ok {
			require.NotNil(p.t, d.Error)
			require.EqualValues(p.t, condition, d.Error.Condition)
			break
		}
	}
	p.send(0, transferOf(0, 99), 1, 2, 3) // on its way when we detached
	p.send(0, &amqpwire.Detach{Handle: 0, Closed: true})
	p.send(0, senderAttach("again", 0, "/messages/devicebound"))
	expect[*amqpwire.Attach](p)
	fullFlow(p, 0)
}

func TestBrokenConnectionRules(t *testing.T) {
	e := runEndpoint(t)
	for name, c := range map[string]struct {
		bytes     []byte
		condition string
	}{
		"oversized frame":     {unhex(t, "00010001 02 00 0000 00"), "amqp:connection:framing-error"},
		"frame of 4 GiB":      {unhex(t, "ffffffff 02 00 0000 00"), "amqp:connection:framing-error"},
		"size below header":   {unhex(t, "00000004 02 00 0000"), "amqp:connection:framing-error"},
		"doff below 2":        {unhex(t, "00000008 01 00 0000"), "amqp:connection:framing-error"},
		"garbage":             {unhex(t, "00000009 02 00 0000 ff"), "amqp:decode-error"},
		"unknown performativ": {unhex(t, "0000000c 02 00 0000 00 53 19 45"), "amqp:decode-error"},
		"nested too deep":     {amqpwire.AppendFrame(nil, 0, nil, bytes.Repeat([]byte{0}, 5000)), "amqp:decode-error"},
		"channel too high":    {amqpwire.AppendFrame(nil, 64, &amqpwire.Begin{}, nil), "amqp:connection:framing-error"},
		"no session":          {amqpwire.AppendFrame(nil, 1, &amqpwire.Flow{}, nil), "amqp:connection:framing-error"},
		"second open":         {amqpwire.AppendFrame(nil, 0, &amqpwire.Open{ContainerID: "x"}, nil), "amqp:not-allowed"},
		"begin twice":         {amqpwire.AppendFrame(nil, 0, &amqpwire.Begin{}, nil), "amqp:not-allowed"},
		"begin of ours":       {amqpwire.AppendFrame(nil, 1, &amqpwire.Begin{RemoteChannel: amqpwire.Some[uint16](1)}, nil), "amqp:not-allowed"},
		"handle too high":     {amqpwire.AppendFrame(nil, 0, senderAttach("x", 256, "$cbs"), nil), "amqp:connection:framing-error"},
		"SASL after open":     {amqpwire.AppendSASLFrame(nil, &amqpwire.SASLInit{Mechanism: "PLAIN"}), ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t, dialRaw(t, e))
			p.open()
			p.raw(c.bytes)
			if c.condition == "" {
				p.endedWith("amqp:not-allowed")
				return
			}
			p.closedWith(c.condition)
		})
	}
}

func TestBrokenHandshakes(t *testing.T) {
	e := runEndpoint(t)
	for name, b := range map[string][]byte{
		"garbage for open":        append([]byte(amqpwire.HeaderAMQP), 0, 0, 0, 9, 2, 0, 0, 0, 0xff),
		"begin for open":          amqpwire.AppendFrame([]byte(amqpwire.HeaderAMQP), 0, &amqpwire.Begin{}, nil),
		"oversized open":          append([]byte(amqpwire.HeaderAMQP), 0xff, 0, 0, 9, 2, 0, 0, 0, 0xff),
		"open for sasl-init":      amqpwire.AppendFrame([]byte(amqpwire.HeaderSASL), 0, &amqpwire.Open{}, nil),
		"garbage for sasl-init":   append([]byte(amqpwire.HeaderSASL), 0, 0, 0, 9, 2, 1, 0, 0, 0xff),
		"unknown mechanism":       append([]byte(amqpwire.HeaderSASL), amqpwire.AppendSASLFrame(nil, &amqpwire.SASLInit{Mechanism: "CRAM-MD5"})...),
		"PLAIN without response":  append([]byte(amqpwire.HeaderSASL), amqpwire.AppendSASLFrame(nil, &amqpwire.SASLInit{Mechanism: "PLAIN"})...),
		"SASL twice":              append(append([]byte(amqpwire.HeaderSASL), amqpwire.AppendSASLFrame(nil, &amqpwire.SASLInit{Mechanism: "ANONYMOUS"})...), amqpwire.HeaderSASL...),
		"sasl-mechanisms as init": append([]byte(amqpwire.HeaderSASL), amqpwire.AppendSASLFrame(nil, &amqpwire.SASLMechanisms{})...),
		"close for open":          amqpwire.AppendFrame([]byte(amqpwire.HeaderAMQP), 0, &amqpwire.Close{}, nil),
	} {
		t.Run(name, func(t *testing.T) {
			nc := dialRaw(t, e)
			_, err := nc.Write(b)
			require.NoError(t, err)
			got, _ := io.ReadAll(nc)
			require.NotContains(t, string(got), "DeviceGateway")
		})
	}
	p := newPeer(t, dialRaw(t, e))
	p.raw([]byte(amqpwire.HeaderAMQP))
	p.header(amqpwire.HeaderAMQP)
	p.send(0, &amqpwire.Open{ContainerID: "c", MaxFrameSize: 511})
	p.closedWith("amqp:invalid-field")
}

func TestBrokenSessionRules(t *testing.T) {
	e := runEndpoint(t)
	for name, c := range map[string]struct {
		condition string
		do        func(p *peer)
	}{
		"transfer without link": {"amqp:session:unattached-handle", func(p *peer) { p.send(0, transferOf(5, 1)) }},
		"flow without link": {"amqp:session:unattached-handle", func(p *peer) {
			p.send(0, &amqpwire.Flow{Handle: amqpwire.Some[uint32](200)})
		}},
		"detach without link": {"amqp:session:unattached-handle", func(p *peer) { p.send(0, &amqpwire.Detach{Handle: 5}) }},
		"handle in use":       {"amqp:session:handle-in-use", func(p *peer) { p.send(0, senderAttach("x", 0, "$cbs")) }},
		"transfer to a receiver": {"amqp:session:errant-link", func(p *peer) {
			p.send(0, receiverAttach("r", 7, "$cbs"))
			expect[*amqpwire.Attach](p)
			p.send(0, transferOf(7, 1))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := ready(t, e)
			c.do(p)
			p.endedWith(c.condition)
		})
	}
}

func TestBrokenLinkRules(t *testing.T) {
	e := runEndpoint(t)
	for name, c := range map[string]struct {
		condition string
		do        func(p *peer)
	}{
		"no delivery-id": {"amqp:invalid-field", func(p *peer) { p.send(0, &amqpwire.Transfer{}) }},
		"another delivery within": {"amqp:invalid-field", func(p *peer) {
			tr := transferOf(0, 1)
			tr.More = true
			p.send(0, tr, 1)
			p.send(0, transferOf(0, 2), 1)
		}},
		"larger than max-message-size": {"amqp:link:message-size-exceeded", func(p *peer) {
			tr := transferOf(0, 1)
			tr.More = true
			for range 18 {
				p.send(0, tr, make([]byte, 60<<10)...)
			}
		}},
		"no credit": {"amqp:link:transfer-limit-exceeded", func(p *peer) {
			// All unfinished, so that none is topped up; each on a link of its own costs one.
			tr := transferOf(0, 1)
			tr.Aborted = true
			p.send(0, &amqpwire.Flow{NextIncomingID: amqpwire.Some[uint32](0), NextOutgoingID: 1, Handle: amqpwire.Some[uint32](0), DeliveryCount: amqpwire.Some[uint32](100)})
			expect[*amqpwire.Flow](p)
			e.withhold(p)
			for id := range uint32(2200) {
				p.raw(amqpwire.AppendFrame(nil, 0, transferOf(0, id+1), c2dMessage("/devices/mute/messages/devicebound", "")))
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := ready(t, e)
			c.do(p)
			p.detachedWith(c.condition)
		})
	}
}

func TestTooManyLinks(t *testing.T) {
	e := runEndpoint(t)
	p := newPeer(t, dialRaw(t, e))
	p.open()
	for n := range uint32(256) {
		p.send(0, receiverAttach("r"+string(rune('a'+n)), n, "$cbs"))
		a, _ := expect[*amqpwire.Attach](p)
		require.NotNil(t, a.Source)
	}
	p.send(1, &amqpwire.Begin{IncomingWindow: 1})
	expect[*amqpwire.Begin](p)
	p.send(1, receiverAttach("one more", 0, "$cbs"))
	a, _ := expect[*amqpwire.Attach](p)
	require.Nil(t, a.Source)
	d, _ := expect[*amqpwire.Detach](p)
	require.EqualValues(t, "amqp:resource-limit-exceeded", d.Error.Condition)
}

func TestUnfinishedMessagesAreBounded(t *testing.T) {
	e := runEndpoint(t)
	p := ready(t, e)
	for n := range uint32(6) {
		p.send(0, senderAttach("more"+string(rune('a'+n)), n+1, "/messages/devicebound"))
		expect[*amqpwire.Attach](p)
		fullFlow(p, n+1)
	}
	go func() {
		for n := range uint32(6) {
			tr := transferOf(n+1, n+1)
			tr.More = true
			for range 16 {
				p.nc.Write(amqpwire.AppendFrame(nil, 0, tr, make([]byte, 60<<10)))
			}
		}
	}()
	d, _ := expect[*amqpwire.Detach](p)
	require.EqualValues(t, "amqp:resource-limit-exceeded", d.Error.Condition)
}

func TestTooManyConnections(t *testing.T) {
	e := runEndpoint(t, func(o *amqpd.Options) { o.MaxConnections = 2 })
	one, two := newPeer(t, dialRaw(t, e)), newPeer(t, dialRaw(t, e))
	one.open()
	two.open()
	_, err := tls.Dial("tcp", e.addr, e.tls)
	require.Error(t, err, "closed before its handshake")
	one.send(0, &amqpwire.Close{})
	expect[*amqpwire.Close](one)
	one.gone()
	require.Eventually(t, func() bool { return e.srv.Connections() == 1 }, wait, time.Millisecond)
	newPeer(t, dialRaw(t, e)).open()
}

func TestAnswerLargerThanTheClientsFrames(t *testing.T) {
	e := runEndpoint(t)
	p := newPeer(t, dialRaw(t, e))
	p.raw([]byte(amqpwire.HeaderAMQP))
	p.header(amqpwire.HeaderAMQP)
	p.send(0, &amqpwire.Open{ContainerID: "c", MaxFrameSize: 512})
	p.send(0, &amqpwire.Begin{IncomingWindow: 1})
	p.send(0, senderAttach(strings.Repeat("n", 600), 0, "$cbs"))
	p.closedWith("amqp:frame-size-too-small")
}

func TestErrorTextsAreBounded(t *testing.T) {
	e := runEndpoint(t)
	p := ready(t, e)
	p.send(0, senderAttach("x", 1, strings.Repeat("long", 10000)))
	expect[*amqpwire.Attach](p)
	d, _ := expect[*amqpwire.Detach](p)
	require.Less(t, len(d.Error.Description), 300)
}

// withhold makes the hub never answer for the device "mute", for the rest of the test.
func (e *endpoint) withhold(p *peer) {
	p.t.Cleanup(e.faults.Add("transfer", 0, on("mute"), muteAction))
}
