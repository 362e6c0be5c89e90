package amqpd_test

import (
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"downlink/bridge/internal/amqpwire"
)

// peer is a client written out frame by frame.
type peer struct {
	t      testing.TB
	nc     net.Conn
	in     *amqpwire.FrameReader
	parser amqpwire.Parser
}

func newPeer(t testing.TB, nc net.Conn) *peer {
	return &peer{t: t, nc: nc, in: amqpwire.NewFrameReader(nc, 64<<10)}
}

func (p *peer) raw(b []byte) {
	p.t.Helper()
	_, err := p.nc.Write(b)
	require.NoError(p.t, err)
}

func (p *peer) send(channel uint16, perf amqpwire.Performative, payload ...byte) {
	p.t.Helper()
	p.raw(amqpwire.AppendFrame(nil, channel, perf, payload))
}

func (p *peer) header(want string) {
	p.t.Helper()
	h, err := p.in.Header()
	require.NoError(p.t, err)
	require.Equal(p.t, want, h)
}

// read gives the next performative that is no heartbeat.
func (p *peer) read() (amqpwire.Performative, uint16, []byte) {
	p.t.Helper()
	for {
		fr, err := p.in.Next()
		require.NoError(p.t, err)
		if len(fr.Body) == 0 {
			continue
		}
		perf, payload, err := p.parser.Parse(fr.Type, fr.Body)
		require.NoError(p.t, err)
		return perf, fr.Channel, payload
	}
}

func expect[T amqpwire.Performative](p *peer) (T, []byte) {
	p.t.Helper()
	perf, _, payload := p.read()
	got, ok := perf.(T)
	require.True(p.t, ok, "%T wanted, got %T %+v", got, perf, perf)
	return got, payload
}

// gone expects the end of the stream.
func (p *peer) gone() {
	p.t.Helper()
	for {
		if _, err := p.in.Next(); err != nil {
			return
		}
	}
}

// open goes as far as an open session on channel 0.
func (p *peer) open() {
	p.t.Helper()
	p.raw([]byte(amqpwire.HeaderAMQP))
	p.send(0, &amqpwire.Open{ContainerID: "c", Hostname: "localhost", MaxFrameSize: 65536, ChannelMax: math.MaxUint16})
	p.send(0, &amqpwire.Begin{IncomingWindow: 65536, OutgoingWindow: 65536, HandleMax: math.MaxUint32})
	p.header(amqpwire.HeaderAMQP)
	open, _ := expect[*amqpwire.Open](p)
	require.True(p.t, strings.HasPrefix(open.ContainerID, "DeviceGateway_"))
	require.EqualValues(p.t, 240000, open.IdleTimeout)
	require.EqualValues(p.t, 65536, open.MaxFrameSize)
	begin, _ := expect[*amqpwire.Begin](p)
	require.Equal(p.t, amqpwire.Some[uint16](0), begin.RemoteChannel)
	require.NotZero(p.t, begin.IncomingWindow)
	require.NotZero(p.t, begin.OutgoingWindow)
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", "\n", "", "\t", "").Replace(s))
	require.NoError(t, err)
	return b
}

func senderAttach(name string, handle uint32, address string) *amqpwire.Attach {
	return &amqpwire.Attach{Name: name, Handle: handle, Role: amqpwire.RoleSender, Source: &amqpwire.Source{},
		Target: &amqpwire.Target{Address: amqpwire.Some(address)}, InitialDeliveryCount: amqpwire.Some[uint32](0)}
}

func receiverAttach(name string, handle uint32, address string) *amqpwire.Attach {
	return &amqpwire.Attach{Name: name, Handle: handle, Role: amqpwire.RoleReceiver,
		Source: &amqpwire.Source{Address: amqpwire.Some(address)}, Target: &amqpwire.Target{}}
}

func transferOf(handle, id uint32) *amqpwire.Transfer {
	return &amqpwire.Transfer{Handle: handle, DeliveryID: amqpwire.Some(id), DeliveryTag: []byte{byte(id), 0, 0, 0},
		MessageFormat: amqpwire.Some[uint32](0), Settled: amqpwire.Some(false)}
}

func tokenMessage(t testing.TB, properties []byte, token string) []byte {
	t.Helper()
	b, err := amqpwire.AppendApplicationProperties(properties, amqpwire.Map{{Key: "operation", Value: "put-token"},
		{Key: "type", Value: "servicebus.windows.net:sastoken"}, {Key: "name", Value: "https://localhost"}})
	require.NoError(t, err)
	b, err = amqpwire.AppendBodyValue(b, token)
	require.NoError(t, err)
	return b
}

func c2dMessage(to, body string) []byte {
	return amqpwire.AppendBodyData((&amqpwire.Properties{To: to, MessageID: "m"}).Append(nil), []byte(body))
}

// The way of uamqp: SASL MSSBCBS, absolute addresses, ulong message-id, rcv-settle-mode second, everything in one session.
func TestPeerLikeUAMQP(t *testing.T) {
	e := runEndpoint(t)
	p := newPeer(t, dialRaw(t, e))
	p.raw([]byte("AMQP\x03\x01\x00\x00"))
	p.header("AMQP\x03\x01\x00\x00")
	fr, err := p.in.Next()
	require.NoError(t, err)
	require.Equal(t, amqpwire.FrameSASL, fr.Type)
	// an array of symbols: c0 size count e0
	require.Equal(t, byte(0xe0), fr.Body[6])
	require.Contains(t, string(fr.Body), "MSSBCBS")
	p.raw(amqpwire.AppendSASLFrame(nil, &amqpwire.SASLInit{Mechanism: "MSSBCBS"}))
	outcome, _ := expect[*amqpwire.SASLOutcome](p)
	require.Equal(t, amqpwire.SASLOk, outcome.Code)
	p.open()

	for handle, a := range []*amqpwire.Attach{senderAttach("$cbs-sender", 0, "amqps://localhost/$cbs"), receiverAttach("$cbs-receiver", 1, "$cbs")} {
		p.send(0, a)
		got, _ := expect[*amqpwire.Attach](p)
		require.Equal(t, a.Name, got.Name)
		require.NotNil(t, got.Source)
		require.NotNil(t, got.Target)
		require.Equal(t, !a.Role, got.Role)
		if handle == 0 {
			fullFlow(p, 0)
		} else {
			require.True(t, got.InitialDeliveryCount.Set)
		}
	}
	p.send(0, &amqpwire.Flow{NextIncomingID: amqpwire.Some[uint32](0), IncomingWindow: 65536, OutgoingWindow: 65536,
		Handle: amqpwire.Some[uint32](1), DeliveryCount: amqpwire.Some[uint32](0), LinkCredit: amqpwire.Some[uint32](10000)})
	// message-id ulong 0, in its one-byte form
	p.send(0, transferOf(0, 0), tokenMessage(t, unhex(t, "00 53 73 c0 02 01 44"), "good")...)
	d, _ := expect[*amqpwire.Disposition](p)
	require.True(t, d.Settled && d.Role == amqpwire.RoleReceiver && d.First == 0, "accepted before the reply: %+v", d)
	tr, payload := expect[*amqpwire.Transfer](p)
	require.Equal(t, amqpwire.Some[uint32](0), tr.DeliveryID)
	require.Equal(t, amqpwire.Some[uint32](0), tr.MessageFormat)
	// properties with nothing but correlation-id ulong0, then status-code as a full int
	require.Equal(t, unhex(t, "00 53 73 c0 07 06 40 40 40 40 40 44"), payload[:12])
	require.Contains(t, string(payload), "status-code\x71\x00\x00\x00\xc8")

	a := senderAttach("sender-link-1", 2, "amqps://localhost/messages/devicebound")
	a.SenderSettleMode, a.ReceiverSettleMode, a.MaxMessageSize = amqpwire.Some(amqpwire.SenderUnsettled), amqpwire.Some(amqpwire.ReceiverSecond), 1<<20
	a.Source.Address = amqpwire.Some("container")
	p.send(0, a)
	got, _ := expect[*amqpwire.Attach](p)
	require.Equal(t, a.Target.Address, got.Target.Address)
	require.Equal(t, a.Source.Address, got.Source.Address)
	require.Equal(t, a.ReceiverSettleMode, got.ReceiverSettleMode)
	require.EqualValues(t, 1<<20, got.MaxMessageSize)
	fullFlow(p, 2)

	// its delivery-ids count frames: two frames for the first message, so the second has id 3
	first := c2dMessage("/devices/d 1/messages/devicebound", "one")
	part := transferOf(2, 1)
	part.More = true
	p.send(0, part, first[:10]...)
	p.send(0, transferOf(2, 1), first[10:]...)
	p.send(0, transferOf(2, 3), c2dMessage("/devices/d1/messages/devicebound", "two")...)
	settled := map[uint32]bool{}
	for len(settled) < 2 {
		d, _ := expect[*amqpwire.Disposition](p)
		require.True(t, d.Settled)
		require.Equal(t, amqpwire.Accepted{}, d.State)
		last := d.First
		if d.Last.Set {
			last = d.Last.Value
		}
		for id := d.First; id <= last; id++ {
			settled[id] = true
		}
	}
	require.Equal(t, map[uint32]bool{1: true, 3: true}, settled)
	require.Equal(t, "/devices/d 1/messages/devicebound", e.got()[0].To)
	require.Equal(t, "one", string(e.got()[0].Body))

	p.send(0, &amqpwire.Detach{Handle: 2, Closed: true})
	det, _ := expect[*amqpwire.Detach](p)
	require.EqualValues(t, 2, det.Handle)
	p.send(0, a) // the same name and handle again
	expect[*amqpwire.Attach](p)
	fullFlow(p, 2)
	p.send(0, &amqpwire.End{})
	expect[*amqpwire.End](p)
	p.send(0, &amqpwire.Close{})
	expect[*amqpwire.Close](p)
	p.gone()
}

func fullFlow(p *peer, handle uint32) *amqpwire.Flow {
	p.t.Helper()
	f, _ := expect[*amqpwire.Flow](p)
	require.True(p.t, f.NextIncomingID.Set)
	require.NotZero(p.t, f.IncomingWindow)
	require.NotZero(p.t, f.OutgoingWindow)
	require.Equal(p.t, amqpwire.Some(handle), f.Handle)
	require.True(p.t, f.DeliveryCount.Set)
	require.Equal(p.t, amqpwire.Some[uint32](100), f.LinkCredit)
	return f
}

// The way of rhea: no SASL, everything up to the attach in one write, empty source, uuid ids, replies addressed.
func TestPeerLikeRhea(t *testing.T) {
	e := runEndpoint(t)
	p := newPeer(t, dialRaw(t, e))
	b := []byte(amqpwire.HeaderAMQP)
	b = amqpwire.AppendFrame(b, 0, &amqpwire.Open{ContainerID: "rhea", Hostname: "localhost", MaxFrameSize: math.MaxUint32, ChannelMax: math.MaxUint16}, nil)
	b = amqpwire.AppendFrame(b, 0, &amqpwire.Begin{IncomingWindow: 2048, OutgoingWindow: math.MaxUint32, HandleMax: math.MaxUint32}, nil)
	r := receiverAttach("r", 0, "$cbs")
	r.Target.Address = amqpwire.Some("cbs")
	b = amqpwire.AppendFrame(b, 0, r, nil)
	b = amqpwire.AppendFrame(b, 0, senderAttach("s", 1, "$cbs"), nil)
	p.raw(b)
	p.header(amqpwire.HeaderAMQP)
	expect[*amqpwire.Open](p)
	expect[*amqpwire.Begin](p)
	got, _ := expect[*amqpwire.Attach](p)
	require.Equal(t, "r", got.Name)
	expect[*amqpwire.Attach](p)
	fullFlow(p, 1)
	props := (&amqpwire.Properties{MessageID: "a-b-c", To: "$cbs", ReplyTo: "cbs"}).Append(nil)
	p.send(0, transferOf(1, 0), tokenMessage(t, props, "good")...)
	expect[*amqpwire.Disposition](p)
	// the reply waits for credit
	p.send(0, &amqpwire.Flow{NextIncomingID: amqpwire.Some[uint32](0), IncomingWindow: 2048, OutgoingWindow: math.MaxUint32, NextOutgoingID: 1,
		Handle: amqpwire.Some[uint32](0), LinkCredit: amqpwire.Some[uint32](1000)})
	_, payload := expect[*amqpwire.Transfer](p)
	require.Contains(t, string(payload), "a-b-c")

	p.send(0, senderAttach("d", 2, "/messages/devicebound"))
	expect[*amqpwire.Attach](p)
	fullFlow(p, 2)
	for n := range uint32(120) { // past the credit of 100: it is topped up on the way
		p.send(0, transferOf(2, n+1), c2dMessage("/devices/d1/messages/devicebound", fmt.Sprint(n))...)
		for {
			perf, _, _ := p.read()
			if f, ok := perf.(*amqpwire.Flow); ok {
				require.LessOrEqual(t, n, uint32(51))
				require.Equal(t, amqpwire.Some[uint32](100), f.LinkCredit)
				require.Equal(t, amqpwire.Some(n+1), f.DeliveryCount)
				require.Equal(t, amqpwire.Some(n+2), f.NextIncomingID)
				continue
			}
			require.Equal(t, n+1, perf.(*amqpwire.Disposition).First)
			break
		}
		if n == 49 {
			f := fullFlow(p, 2)
			require.Equal(t, amqpwire.Some[uint32](50), f.DeliveryCount)
		}
		if n == 99 {
			fullFlow(p, 2)
		}
	}
}

func TestRepliesInSmallFramesAndWindows(t *testing.T) {
	e := runEndpoint(t)
	p := newPeer(t, dialRaw(t, e))
	p.raw([]byte(amqpwire.HeaderAMQP))
	p.send(0, &amqpwire.Open{ContainerID: "c", MaxFrameSize: 512, ChannelMax: 10})
	p.send(3, &amqpwire.Begin{NextOutgoingID: 7, IncomingWindow: 1, OutgoingWindow: 10, HandleMax: 4})
	p.header(amqpwire.HeaderAMQP)
	expect[*amqpwire.Open](p)
	_, ch, _ := p.read()
	require.EqualValues(t, 3, ch)
	p.send(3, senderAttach("s", 0, "$cbs"))
	expect[*amqpwire.Attach](p)
	fullFlow(p, 0)
	// The request comes before there is a receiver. Its id makes the reply larger than a frame.
	id := strings.Repeat("i", 600)
	msg := tokenMessage(t, (&amqpwire.Properties{MessageID: id}).Append(nil), "good")
	more := transferOf(0, 7)
	more.More = true
	p.send(3, more, msg[:300]...)
	p.send(3, transferOf(0, 7), msg[300:]...)
	expect[*amqpwire.Disposition](p)
	r := receiverAttach("r", 1, "$cbs")
	r.SenderSettleMode, r.ReceiverSettleMode = amqpwire.Some(amqpwire.SenderUnsettled), amqpwire.Some(amqpwire.ReceiverSecond)
	p.send(3, r)
	expect[*amqpwire.Attach](p)
	window := func(next uint32) {
		p.send(3, &amqpwire.Flow{NextIncomingID: amqpwire.Some(next), IncomingWindow: 1, NextOutgoingID: 9, OutgoingWindow: 10,
			Handle: amqpwire.Some[uint32](1), DeliveryCount: amqpwire.Some[uint32](0), LinkCredit: amqpwire.Some[uint32](1)})
	}
	window(0)
	tr, one := expect[*amqpwire.Transfer](p)
	require.True(t, tr.More)
	require.Equal(t, amqpwire.Some(false), tr.Settled)
	one = append([]byte{}, one...)
	require.Less(t, len(one), 512)
	window(1)
	tr, two := expect[*amqpwire.Transfer](p)
	require.False(t, tr.More)
	var s amqpwire.Sections
	require.NoError(t, s.Split(append(one, two...)))
	var props amqpwire.Properties
	require.NoError(t, props.Decode(s.Properties))
	require.Equal(t, id, props.CorrelationID)
	// rcv-settle-mode second: what is not settled waits for our word
	p.send(3, &amqpwire.Disposition{Role: amqpwire.RoleReceiver, First: 0, State: amqpwire.Accepted{}})
	d, _ := expect[*amqpwire.Disposition](p)
	require.Equal(t, amqpwire.RoleSender, d.Role)
	require.True(t, d.Settled)
	// drain: the credit is used up without a message
	p.send(3, &amqpwire.Flow{NextIncomingID: amqpwire.Some[uint32](2), IncomingWindow: 5, NextOutgoingID: 9, OutgoingWindow: 10,
		Handle: amqpwire.Some[uint32](1), DeliveryCount: amqpwire.Some[uint32](1), LinkCredit: amqpwire.Some[uint32](5), Drain: true})
	f, _ := expect[*amqpwire.Flow](p)
	require.Equal(t, amqpwire.Some[uint32](6), f.DeliveryCount)
	require.Equal(t, amqpwire.Some[uint32](0), f.LinkCredit)
	// echo, of the session alone
	p.send(3, &amqpwire.Flow{NextIncomingID: amqpwire.Some[uint32](2), IncomingWindow: 5, NextOutgoingID: 9, OutgoingWindow: 10, Echo: true})
	f, _ = expect[*amqpwire.Flow](p)
	require.False(t, f.Handle.Set)
	require.Equal(t, amqpwire.Some[uint32](9), f.NextIncomingID)
}

// ready gives a peer with a token and an attached sender, handle 0 of channel 0.
func ready(t testing.TB, e *endpoint) *peer {
	t.Helper()
	p := newPeer(t, dialRaw(t, e))
	p.open()
	p.send(0, senderAttach("s", 9, "$cbs"))
	expect[*amqpwire.Attach](p)
	fullFlow(p, 9)
	p.send(0, transferOf(9, 0), tokenMessage(t, nil, "forever")...)
	expect[*amqpwire.Disposition](p)
	p.send(0, senderAttach("d", 0, "/messages/devicebound"))
	expect[*amqpwire.Attach](p)
	fullFlow(p, 0)
	return p
}

func TestAbortedDelivery(t *testing.T) {
	e := runEndpoint(t)
	p := ready(t, e)
	more := transferOf(0, 1)
	more.More = true
	p.send(0, more, []byte("half a mess")...)
	aborted := transferOf(0, 1)
	aborted.Aborted = true
	p.send(0, aborted)
	p.send(0, transferOf(0, 2), c2dMessage("/devices/d1/messages/devicebound", "x")...)
	d, _ := expect[*amqpwire.Disposition](p)
	require.EqualValues(t, 2, d.First)
	require.Len(t, e.got(), 1)
}

func TestAcceptedRunsShareADisposition(t *testing.T) {
	e := runEndpoint(t)
	p := ready(t, e)
	var b []byte
	for n := range uint32(10) {
		to := "/devices/d1/messages/devicebound"
		if n == 4 {
			to = "/devices/nobody/messages/devicebound"
		}
		b = amqpwire.AppendFrame(b, 0, transferOf(0, n+1), c2dMessage(to, "x"))
	}
	p.raw(b)
	states := map[uint32]amqpwire.DeliveryState{}
	frames := 0
	for len(states) < 10 {
		d, _ := expect[*amqpwire.Disposition](p)
		frames++
		last := d.First
		if d.Last.Set {
			last = d.Last.Value
		}
		for id := d.First; id <= last; id++ {
			require.NotContains(t, states, id)
			states[id] = d.State
		}
	}
	require.Equal(t, 3, frames)
	for id, s := range states {
		if id == 5 {
			require.IsType(t, &amqpwire.Rejected{}, s)
		} else {
			require.Equal(t, amqpwire.Accepted{}, s)
		}
	}
}

func TestMalformedMessageIsRejectedAlone(t *testing.T) {
	e := runEndpoint(t)
	p := ready(t, e)
	p.send(0, transferOf(0, 1), 0x00, 0x53, 0x73, 0xff)
	d, _ := expect[*amqpwire.Disposition](p)
	require.EqualValues(t, "amqp:decode-error", d.State.(*amqpwire.Rejected).Error.Condition)
	p.send(0, transferOf(0, 2), c2dMessage("/devices/d1/messages/devicebound", "x")...)
	d, _ = expect[*amqpwire.Disposition](p)
	require.Equal(t, amqpwire.Accepted{}, d.State)
}

func TestSameNameStealsTheLink(t *testing.T) {
	e := runEndpoint(t)
	p := ready(t, e)
	p.send(0, senderAttach("d", 1, "/messages/devicebound"))
	det, _ := expect[*amqpwire.Detach](p)
	require.EqualValues(t, 0, det.Handle)
	require.EqualValues(t, "amqp:link:stolen", det.Error.Condition)
	expect[*amqpwire.Attach](p)
	fullFlow(p, 1)
	p.send(0, &amqpwire.Detach{Handle: 0, Closed: true})
	p.send(0, transferOf(1, 1), c2dMessage("/devices/d1/messages/devicebound", "x")...)
	expect[*amqpwire.Disposition](p)
}

func TestOtherProtocolHeaders(t *testing.T) {
	e := runEndpoint(t)
	for _, h := range []string{"AMQP\x02\x01\x00\x00", "AMQP\x00\x00\x09\x01", "GET / HT"} {
		nc := dialRaw(t, e)
		_, err := nc.Write([]byte(h))
		require.NoError(t, err)
		got, err := io.ReadAll(nc)
		require.NoError(t, err)
		require.Equal(t, amqpwire.HeaderAMQP, string(got))
	}
}
