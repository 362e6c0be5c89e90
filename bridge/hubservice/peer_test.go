package hubservice

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"io"
	"math/big"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/stretchr/testify/require"
)

// peer is a scripted AMQP 1.0 container: it says exactly what a test tells it to,
// also what no decent hub would (no credit, silence, a link closed while idle).
// Its codec is its own, written from the specification, and knows only what the
// client sends.
type peer struct {
	ln    net.Listener
	roots *x509.CertPool
	wg    sync.WaitGroup

	mu     sync.Mutex
	script script
	conns  []*peerConn
	tokens []string // as received, over all connections
	opens  int
}

// script holds the hooks; nil means the decent answer. They are called one at a
// time for each connection, from its reader.
type script struct {
	noCredit bool                                         // none for the data link
	open     func(c *peerConn, n int)                     // after OPEN number n (from 1) was answered
	putToken func(c *peerConn, n int) (status int)        // 0: no answer
	attach   func(c *peerConn, n int) (condition string)  // "" lets the data link be
	attached func(c *peerConn)                            // after credit was granted
	transfer func(c *peerConn, id uint32, message []byte) // settles it, or not
}

func runPeer(t *testing.T, s script) *peer {
	t.Helper()
	cert, roots := selfSigned(t)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	require.NoError(t, err)
	p := &peer{ln: ln, roots: roots, script: s}
	p.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			pc := &peerConn{peer: p, Conn: c, addresses: map[uint32]string{}}
			p.mu.Lock()
			p.conns = append(p.conns, pc)
			p.mu.Unlock()
			p.wg.Go(func() { pc.serve() })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *peer) set(change func(*script)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.script)
}

func (p *peer) get() script {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.script
}

func (p *peer) opened() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opens
}

func (p *peer) tokensSeen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.tokens...)
}

func (p *peer) last() *peerConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := len(p.conns) - 1; ; i-- {
		if p.conns[i].spoke {
			return p.conns[i] // else it is somebody who looks for another server, which had this port before
		}
	}
}

type peerConn struct {
	*peer
	net.Conn
	wmu        sync.Mutex
	addresses  map[uint32]string // our handle (the client's too) -> address
	cbsReply   uint32            // handle of our sender to the client's $cbs receiver
	data       uint32            // handle of the data link
	outgoing   uint32            // delivery-id of our next transfer
	incoming   uint32            // transfers received
	partial    []byte
	deliveryID uint64
	spoke      bool        // AMQP; guarded by peer.mu
	detached   sync.Map    // handles that we detached
	ended      atomic.Bool // by us: what comes back is the answer
}

func (c *peerConn) serve() {
	defer c.Conn.Close()
	var header [8]byte
	if _, err := io.ReadFull(c.Conn, header[:]); err != nil || string(header[:]) != "AMQP\x00\x01\x00\x00" {
		return
	}
	c.mu.Lock()
	c.spoke = true
	c.mu.Unlock()
	_, _ = c.Conn.Write(header[:])
	for {
		var head [8]byte
		if _, err := io.ReadFull(c.Conn, head[:]); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[:])-8)
		if _, err := io.ReadFull(c.Conn, body); err != nil {
			return
		}
		if len(body) > 0 && !c.onFrame(body) {
			return
		}
	}
}

func (c *peerConn) onFrame(body []byte) bool {
	v, payload := decode(body)
	d := v.(described)
	f := func(i int) any {
		if list := d.value.([]any); i < len(list) {
			return list[i]
		}
		return nil
	}
	switch d.code {
	case 0x10: // open
		c.mu.Lock()
		c.opens++
		n := c.opens
		c.mu.Unlock()
		c.send(0x10, nil, str("peer"), null, uint4(65536))
		if h := c.get().open; h != nil {
			h(c, n)
		}
	case 0x11: // begin
		c.send(0x11, nil, []byte{0x60, 0, 0}, uint4(0), uint4(1<<30), uint4(1<<30))
	case 0x12:
		c.onAttach(f)
	case 0x13: // flow: nothing of it concerns us
	case 0x14:
		c.incoming++
		handle := f(0).(uint64)
		if id, ok := f(1).(uint64); ok { // in the first frame of a message only
			c.deliveryID = id
		}
		c.partial = append(c.partial, payload...)
		if more, _ := f(5).(bool); more {
			return true
		}
		message, id := c.partial, c.deliveryID
		c.partial = nil
		if c.addresses[uint32(handle)] == "$cbs" {
			c.onPutToken(uint32(id), message)
			return true
		}
		if h := c.get().transfer; h != nil {
			h(c, uint32(id), message)
		} else {
			c.settle(uint32(id), accepted)
		}
	case 0x16: // detach
		handle := uint32(f(0).(uint64))
		if _, ours := c.detached.LoadAndDelete(handle); !ours {
			c.send(0x16, nil, uint4(handle), []byte{0x41})
		}
	case 0x17: // end
		if !c.ended.Load() {
			c.send(0x17, nil)
		}
	case 0x18: // close
		c.send(0x18, nil)
		return false
	}
	return true
}

func (c *peerConn) onAttach(f func(int) any) {
	name, handle, receives := f(0).(string), uint32(f(1).(uint64)), f(2).(bool)
	terminus := f(6) // target
	if receives {
		terminus = f(5)
	}
	address, _ := terminus.(described).value.([]any)[0].(string)
	c.addresses[handle] = address
	source, target := describe(0x28, list(str(address))), describe(0x29, list(str(address)))
	if receives {
		c.cbsReply = handle
		c.send(0x12, nil, str(name), uint4(handle), []byte{0x42}, null, null, source, target, null, null, uint4(0))
		return
	}
	if address != "$cbs" {
		if h := c.get().attach; h != nil {
			if cond := h(c, c.opened()); cond != "" {
				c.send(0x12, nil, str(name), uint4(handle), []byte{0x41}, null, null, null, null)
				c.detached.Store(handle, true)
				c.send(0x16, nil, uint4(handle), []byte{0x41}, amqpError(cond, "scripted"))
				return
			}
		}
		c.data = handle
	}
	// In one write: a test may end the session as soon as the client is attached,
	// and nothing follows an end.
	s := c.get()
	frames := frame(0x12, nil, str(name), uint4(handle), []byte{0x41}, null, null, source, target)
	if address == "$cbs" || !s.noCredit {
		frames = append(frames, c.credit(handle)...)
	}
	c.write(frames)
	if address != "$cbs" && s.attached != nil {
		s.attached(c)
	}
}

func (c *peerConn) credit(handle uint32) []byte {
	return frame(0x13, nil, uint4(c.incoming), uint4(1<<30), uint4(c.outgoing), uint4(1<<30), uint4(handle), uint4(0), uint4(1<<30))
}

func (c *peerConn) onPutToken(id uint32, b []byte) {
	var m amqp.Message
	if m.UnmarshalBinary(b) != nil {
		return
	}
	c.mu.Lock()
	c.tokens = append(c.tokens, m.Value.(string))
	n := len(c.tokens)
	c.mu.Unlock()
	status := 200
	if h := c.get().putToken; h != nil {
		status = h(c, n)
	}
	c.settle(id, accepted)
	if status == 0 {
		return
	}
	answer, _ := (&amqp.Message{
		Properties:            &amqp.MessageProperties{CorrelationID: m.Properties.MessageID},
		ApplicationProperties: map[string]any{"status-code": int32(status), "status-description": "scripted"},
	}).MarshalBinary()
	c.send(0x14, answer, uint4(c.cbsReply), uint4(c.outgoing), []byte{0xa0, 1, byte(c.outgoing)}, uint4(0), []byte{0x42})
	c.outgoing++
}

// settle answers a transfer.
func (c *peerConn) settle(id uint32, state []byte) {
	c.send(0x15, nil, []byte{0x41}, uint4(id), uint4(id), []byte{0x41}, state)
}

// settleUnsettled leaves the settled flag out, as one does who waits for a confirmation.
func (c *peerConn) settleUnsettled(id uint32, state []byte) {
	c.send(0x15, nil, []byte{0x41}, uint4(id), uint4(id), []byte{0x42}, state)
}

func (c *peerConn) detach(condition string) {
	c.detached.Store(c.data, true)
	c.send(0x16, nil, uint4(c.data), []byte{0x41}, amqpError(condition, "scripted"))
}

// detachAnswers closes the link on which $cbs answers.
func (c *peerConn) detachAnswers() {
	c.detached.Store(c.cbsReply, true)
	c.send(0x16, nil, uint4(c.cbsReply), []byte{0x41})
}

func (c *peerConn) end(condition string) {
	c.ended.Store(true)
	c.send(0x17, nil, amqpError(condition, "scripted"))
}

func (c *peerConn) close(condition string) { c.send(0x18, nil, amqpError(condition, "scripted")) }

func (c *peerConn) send(code byte, payload []byte, fields ...[]byte) {
	c.write(frame(code, payload, fields...))
}

func (c *peerConn) write(frames []byte) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	_, _ = c.Conn.Write(frames)
}

func frame(code byte, payload []byte, fields ...[]byte) []byte {
	body := append(describe(code, list(fields...)), payload...)
	b := binary.BigEndian.AppendUint32(nil, uint32(len(body)+8))
	return append(append(b, 2, 0, 0, 0), body...)
}

// Encoding: AMQP 1.0 part 1, section 1.6.

var (
	null     = []byte{0x40}
	accepted = describe(0x24, list())
	released = describe(0x26, list())
	modified = describe(0x27, list([]byte{0x41}))
)

func rejectedWith(condition string) []byte {
	return describe(0x25, list(amqpError(condition, "scripted")))
}

func amqpError(condition, text string) []byte {
	return describe(0x1d, list(append([]byte{0xa3, byte(len(condition))}, condition...), str(text)))
}

func describe(code byte, value []byte) []byte { return append([]byte{0x00, 0x53, code}, value...) }

func str(s string) []byte { return append([]byte{0xa1, byte(len(s))}, s...) }

func uint4(n uint32) []byte { return binary.BigEndian.AppendUint32([]byte{0x70}, n) }

func list(items ...[]byte) []byte {
	var body []byte
	for _, i := range items {
		body = append(body, i...)
	}
	b := binary.BigEndian.AppendUint32([]byte{0xd0}, uint32(len(body)+4))
	return append(binary.BigEndian.AppendUint32(b, uint32(len(items))), body...)
}

type described struct {
	code  uint64
	value any
}

// decode reads one value and returns the rest. It trusts its input.
func decode(b []byte) (any, []byte) {
	c, b := b[0], b[1:]
	number := func(n int) (uint64, []byte) {
		var v uint64
		for _, x := range b[:n] {
			v = v<<8 | uint64(x)
		}
		return v, b[n:]
	}
	switch c {
	case 0x00:
		code, rest := decode(b)
		value, rest := decode(rest)
		return described{code.(uint64), value}, rest
	case 0x40:
		return nil, b
	case 0x41, 0x42:
		return c == 0x41, b
	case 0x43, 0x44:
		return uint64(0), b
	case 0x45:
		return []any{}, b
	case 0x50, 0x52, 0x53, 0x54, 0x55:
		v, b := number(1)
		return v, b
	case 0x60, 0x61:
		v, b := number(2)
		return v, b
	case 0x70, 0x71:
		v, b := number(4)
		return v, b
	case 0x80, 0x81, 0x83:
		v, b := number(8)
		return v, b
	case 0xa0, 0xa1, 0xa3:
		n, b := number(1)
		return string(b[:n]), b[n:]
	case 0xb0, 0xb1, 0xb3:
		n, b := number(4)
		return string(b[:n]), b[n:]
	case 0xc0, 0xd0, 0xc1, 0xd1:
		width := 1
		if c >= 0xd0 {
			width = 4
		}
		_, rest := number(width)
		b = rest
		count, rest := number(width)
		var items []any
		for range count {
			var v any
			v, rest = decode(rest)
			items = append(items, v)
		}
		return items, rest
	default:
		panic("peer: constructor not known")
	}
}

func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "peer"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}
