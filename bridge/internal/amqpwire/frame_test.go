package amqpwire

import (
	"bytes"
	"errors"
	"io"
	"math"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// Frames as §2.3, §2.7 and §5.3 lay them out, written down byte by byte.
var frameVectors = []struct {
	name  string
	bytes string
	kind  byte
	ch    uint16
	perf  Performative
	rest  string
}{
	{"heartbeat", "00000008 02 00 0000", FrameAMQP, 0, nil, ""},
	{"open", "0000002a 02 00 0000 00 53 10 c0 1d 05 a1 02 6964 a1 09 6c6f63616c686f7374 70 00010000 60 ffff 70 0003a980",
		FrameAMQP, 0, &Open{ContainerID: "id", Hostname: "localhost", MaxFrameSize: 65536, ChannelMax: 65535, IdleTimeout: 240000}, ""},
	{"begin", "0000001b 02 00 0003 00 53 11 c0 0e 04 40 52 01 70 00010000 70 00010000",
		FrameAMQP, 3, &Begin{NextOutgoingID: 1, IncomingWindow: 65536, OutgoingWindow: 65536, HandleMax: math.MaxUint32}, ""},
	{"attach of a sender", "00000044 02 00 0000 00 53 12 c0 37 0b a1 01 73 43 42 50 00 50 01 00 53 28 45 " +
		"00 53 29 c0 18 01 a1 15 2f6d657373616765732f646576696365626f756e64 40 40 43 80 0000000000100000",
		FrameAMQP, 0, nil, ""}, // checked by hand below
	{"flow with handle", "0000001b 02 00 0000 00 53 13 c0 0e 07 43 70 00010000 43 52 64 43 43 52 64",
		FrameAMQP, 0, &Flow{NextIncomingID: Some[uint32](0), IncomingWindow: 65536, OutgoingWindow: 100,
			Handle: Some[uint32](0), DeliveryCount: Some[uint32](0), LinkCredit: Some[uint32](100)}, ""},
	{"transfer", "0000001c 02 00 0000 00 53 14 c0 09 05 43 52 01 a0 01 74 43 42 00 53 75 a0 01 78",
		FrameAMQP, 0, &Transfer{DeliveryID: Some[uint32](1), DeliveryTag: []byte("t"), MessageFormat: Some[uint32](0), Settled: Some(false)},
		"00 53 75 a0 01 78"},
	{"disposition", "00000018 02 00 0000 00 53 15 c0 0b 05 41 52 02 52 04 41 00 53 24 45",
		FrameAMQP, 0, &Disposition{Role: RoleReceiver, First: 2, Last: Some[uint32](4), Settled: true, State: Accepted{}}, ""},
	{"rejected", "00000028 02 00 0000 00 53 15 c0 1b 05 41 43 40 41 00 53 25 c0 11 01 00 53 1d c0 0b 02 a3 04 613a6262 a1 02 6e6f",
		FrameAMQP, 0, nil, ""},
	{"released", "00000017 02 00 0000 00 53 15 c0 0a 05 41 52 02 40 41 00 53 26 45",
		FrameAMQP, 0, &Disposition{Role: RoleReceiver, First: 2, Settled: true, State: Released{}}, ""},
	{"modified", "0000001b 02 00 0000 00 53 15 c0 0e 05 41 52 02 40 41 00 53 27 c0 03 02 41 42",
		FrameAMQP, 0, &Disposition{Role: RoleReceiver, First: 2, Settled: true, State: &Modified{DeliveryFailed: true}}, ""},
	{"received", "0000001c 02 00 0000 00 53 15 c0 0f 05 41 52 02 40 42 00 53 23 c0 04 02 52 03 44",
		FrameAMQP, 0, &Disposition{Role: RoleReceiver, First: 2, State: &Received{SectionNumber: 3}}, ""},
	{"flow of a session, drained", "0000001c 02 00 0000 00 53 13 c0 0f 09 40 70 00010000 43 52 64 40 40 40 40 41",
		FrameAMQP, 0, &Flow{IncomingWindow: 65536, OutgoingWindow: 100, Drain: true}, ""},
	{"detach", "00000011 02 00 0000 00 53 16 c0 04 02 52 07 41", FrameAMQP, 0, &Detach{Handle: 7, Closed: true}, ""},
	{"end", "0000000c 02 00 0001 00 53 17 45", FrameAMQP, 1, &End{}, ""},
	{"close", "0000000c 02 00 0000 00 53 18 45", FrameAMQP, 0, &Close{}, ""},
	{"sasl-mechanisms", "00000024 02 01 0000 00 53 40 c0 17 01 e0 14 02 a3 09 414e4f4e594d4f5553 07 4d535342434253",
		FrameSASL, 0, &SASLMechanisms{Mechanisms: []Symbol{"ANONYMOUS", "MSSBCBS"}}, ""},
	{"sasl-init", "00000019 02 01 0000 00 53 41 c0 0c 02 a3 05 504c41494e a0 02 0061",
		FrameSASL, 0, &SASLInit{Mechanism: "PLAIN", Response: []byte("\x00a")}, ""},
	{"sasl-challenge", "00000012 02 01 0000 00 53 42 c0 05 01 a0 02 0102", FrameSASL, 0, &SASLChallenge{Challenge: []byte{1, 2}}, ""},
	{"sasl-response", "00000011 02 01 0000 00 53 43 c0 04 01 a0 01 09", FrameSASL, 0, &SASLResponse{Response: []byte{9}}, ""},
	{"sasl-outcome", "00000010 02 01 0000 00 53 44 c0 03 01 50 00", FrameSASL, 0, &SASLOutcome{}, ""},
}

func TestFrameVectors(t *testing.T) {
	var p Parser
	for _, v := range frameVectors {
		t.Run(v.name, func(t *testing.T) {
			b := unhex(t, v.bytes)
			fr, err := NewFrameReader(bytes.NewReader(b), 65536).Next()
			require.NoError(t, err)
			require.Equal(t, v.kind, fr.Type)
			require.Equal(t, v.ch, fr.Channel)
			if v.name == "heartbeat" {
				require.Empty(t, fr.Body)
				require.Equal(t, b, AppendFrame(nil, 0, nil, nil))
				return
			}
			perf, rest, err := p.Parse(fr.Type, fr.Body)
			require.NoError(t, err)
			require.Equal(t, unhex(t, v.rest), append([]byte{}, rest...))
			switch v.name {
			case "attach of a sender":
				a := perf.(*Attach)
				require.Equal(t, "s", a.Name)
				require.Equal(t, RoleSender, a.Role)
				require.Equal(t, Some(ReceiverSecond), a.ReceiverSettleMode)
				require.NotNil(t, a.Source)
				require.False(t, a.Source.Address.Set)
				require.Equal(t, Some("/messages/devicebound"), a.Target.Address)
				require.Equal(t, Some[uint32](0), a.InitialDeliveryCount)
				require.EqualValues(t, 1<<20, a.MaxMessageSize)
			case "rejected":
				require.Equal(t, &Rejected{Error: &Error{Condition: "a:bb", Description: "no"}}, perf.(*Disposition).State)
			default:
				require.Equal(t, v.perf, perf)
				// Our own encoding may leave defaults out, so compare what it means.
				var again []byte
				if v.kind == FrameSASL {
					again = AppendSASLFrame(nil, perf)
				} else {
					again = AppendFrame(nil, v.ch, perf, rest)
				}
				fr, err := NewFrameReader(bytes.NewReader(again), 65536).Next()
				require.NoError(t, err)
				perf, _, err = new(Parser).Parse(fr.Type, fr.Body)
				require.NoError(t, err)
				require.Equal(t, v.perf, perf)
			}
		})
	}
}

func TestExactEncodings(t *testing.T) {
	for _, v := range []struct {
		bytes string
		got   []byte
	}{
		{"00000018 02 00 0000 00 53 15 c0 0b 05 41 52 02 52 04 41 00 53 24 45",
			AppendFrame(nil, 0, &Disposition{Role: RoleReceiver, First: 2, Last: Some[uint32](4), Settled: true, State: Accepted{}}, nil)},
		{"00000024 02 01 0000 00 53 40 c0 17 01 e0 14 02 a3 09 414e4f4e594d4f5553 07 4d535342434253",
			AppendSASLFrame(nil, &SASLMechanisms{Mechanisms: []Symbol{"ANONYMOUS", "MSSBCBS"}})},
		// one mechanism is an array too: uamqp takes nothing else
		{"0000001c 02 01 0000 00 53 40 c0 0f 01 e0 0c 01 a3 09 414e4f4e594d4f5553",
			AppendSASLFrame(nil, &SASLMechanisms{Mechanisms: []Symbol{"ANONYMOUS"}})},
		{"00000010 02 01 0000 00 53 44 c0 03 01 50 01", AppendSASLFrame(nil, &SASLOutcome{Code: SASLAuth})},
		{"0000000c 02 00 0000 00 53 18 45", AppendFrame(nil, 0, &Close{}, nil)},
	} {
		require.Equal(t, unhex(t, v.bytes), v.got)
	}
}

func TestRoundTripsOfWhatOnlyServersSend(t *testing.T) {
	info := Map{{Symbol("com.microsoft:error-code"), int32(404001)}}
	for _, p := range []Performative{
		&Open{ContainerID: "c", MaxFrameSize: math.MaxUint32, ChannelMax: math.MaxUint16, OfferedCapabilities: []Symbol{"x"},
			DesiredCapabilities: []Symbol{"y", "z"}, Properties: Map{{Symbol("product"), "downlink"}}},
		&Begin{RemoteChannel: Some[uint16](1), IncomingWindow: 5, HandleMax: 63, OfferedCapabilities: []Symbol{}, Properties: Map{}},
		&Attach{Name: "n", Role: RoleReceiver, SenderSettleMode: Some(SenderMixed), Source: &Source{Address: Some("a"), Durable: 1,
			ExpiryPolicy: "never", Timeout: 4, Dynamic: true, DistributionMode: "move", Filter: Map{{Symbol("f"), "v"}}, DefaultOutcome: Released{},
			Outcomes: []Symbol{"amqp:accepted:list"}, Capabilities: []Symbol{"q"}}, Target: &Target{Address: Some("t"), Capabilities: []Symbol{"c"}},
			InitialDeliveryCount: Some[uint32](0), MaxMessageSize: 1 << 20, Properties: Map{{Symbol("p"), true}}},
		&Attach{Name: "tx", Target: &Target{Coordinator: true}},
		&Flow{IncomingWindow: 1, Available: Some[uint32](2), Drain: true, Echo: true},
		&Transfer{Handle: 3, Settled: Some(true), More: true, ReceiverSettleMode: Some(ReceiverSecond), State: &Received{1, 2}, Resume: true, Aborted: true, Batchable: true},
		&Disposition{Role: RoleReceiver, State: &Rejected{Error: &Error{Condition: "amqp:not-found", Description: "x", Info: info}}, Batchable: true},
		&Disposition{Role: RoleSender, State: &Modified{DeliveryFailed: true, UndeliverableHere: true, MessageAnnotations: Map{{Symbol("a"), uint64(1)}}}},
		&Disposition{State: Released{}}, &Disposition{State: &Rejected{}},
		&Disposition{State: &Other{Described{Symbol("x:y:list"), List{}}}},
		&Detach{Handle: 300, Closed: true, Error: &Error{Condition: "amqp:link:stolen"}},
		&End{Error: &Error{Condition: "amqp:session:window-violation"}},
		&Close{Error: &Error{Condition: "amqp:connection:forced", Description: "bye"}},
	} {
		fr, err := NewFrameReader(bytes.NewReader(AppendFrame(nil, 9, p, []byte("pay"))), 65536).Next()
		require.NoError(t, err)
		got, rest, err := new(Parser).Parse(fr.Type, fr.Body)
		require.NoError(t, err)
		require.Equal(t, p, got)
		require.Equal(t, "pay", string(rest))
	}
	for _, p := range []Performative{&SASLInit{Mechanism: "M", Hostname: "h"}, &SASLChallenge{Challenge: []byte("c")}, &SASLResponse{Response: []byte{}},
		&SASLOutcome{Code: 2, AdditionalData: []byte("x")}} {
		got, _, err := new(Parser).Parse(FrameSASL, AppendSASLFrame(nil, p)[8:])
		require.NoError(t, err)
		require.Equal(t, p, got)
	}
}

func TestSymbolicDescriptorsAndSingleSymbol(t *testing.T) {
	// a peer may name types instead of numbering them, and send one symbol for an array of one
	b := append([]byte{codeDescribed, codeSymbol8, 25}, "amqp:sasl-mechanisms:list"...)
	b = append(b, unhex(t, "c0 08 01 a3 05 504c41494e")...)
	p, _, err := new(Parser).Parse(FrameSASL, b)
	require.NoError(t, err)
	require.Equal(t, &SASLMechanisms{Mechanisms: []Symbol{"PLAIN"}}, p)
}

func TestBadPerformatives(t *testing.T) {
	for name, s := range map[string]string{
		"empty":                       "",
		"not described":               "40",
		"unknown performative":        "00 53 19 45",
		"unknown symbol":              "00 a3 01 78 45",
		"sasl in an AMQP frame":       "00 53 41 45",
		"not a list":                  "00 53 18 a1 00",
		"open without container":      "00 53 10 45",
		"open with null container":    "00 53 10 c0 02 01 40",
		"open with bad max-frame":     "00 53 10 c0 08 03 a1 01 61 40 a1 01 62",
		"begin without windows":       "00 53 11 c0 03 02 40 43",
		"attach without role":         "00 53 12 c0 05 02 a1 01 61 43",
		"transfer without handle":     "00 53 14 45",
		"error without condition":     "00 53 18 c0 05 01 00 53 1d 45",
		"error of another type":       "00 53 18 c0 05 01 00 53 24 45",
		"source of another type":      "00 53 12 c0 0d 06 a1 01 61 43 42 40 40 00 53 29 45",
		"target of another type":      "00 53 12 c0 0e 07 a1 01 61 43 42 40 40 40 00 53 28 45",
		"a field too many":            "00 53 17 c0 03 02 40 40",
		"list size beyond the frame":  "00 53 17 c0 09 01 40",
		"disposition state malformed": "00 53 15 c0 07 05 41 43 40 41 00 53 25 46",
	} {
		_, _, err := new(Parser).Parse(FrameAMQP, unhex(t, s))
		require.Error(t, err, name)
	}
	_, _, err := new(Parser).Parse(7, unhex(t, "00 53 18 45"))
	require.Error(t, err)
	_, _, err = new(Parser).Parse(FrameSASL, unhex(t, "00 53 18 45"))
	require.Error(t, err)
}

func TestFrameReader(t *testing.T) {
	stream := append([]byte(HeaderAMQP), AppendFrame(AppendFrame(nil, 1, &End{}, nil), 2, nil, nil)...)
	for name, wrap := range map[string]func(io.Reader) io.Reader{"at once": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader, "data with EOF": iotest.DataErrReader} {
		t.Run(name, func(t *testing.T) {
			r := NewFrameReader(wrap(bytes.NewReader(stream)), 512)
			h, err := r.Header()
			require.NoError(t, err)
			require.Equal(t, HeaderAMQP, h)
			fr, err := r.Next()
			require.NoError(t, err)
			require.EqualValues(t, 1, fr.Channel)
			require.Equal(t, name != "byte by byte", r.Ready())
			fr, err = r.Next()
			require.NoError(t, err)
			require.EqualValues(t, 2, fr.Channel)
			require.False(t, r.Ready())
			_, err = r.Next()
			require.Equal(t, io.EOF, err)
		})
	}
}

func TestFrameReaderManySizes(t *testing.T) {
	var stream []byte
	for n := range 500 {
		stream = AppendFrame(stream, uint16(n), nil, bytes.Repeat([]byte{byte(n)}, n*370%60000))
	}
	r := NewFrameReader(iotest.HalfReader(bytes.NewReader(stream)), 65536)
	for n := range 500 {
		fr, err := r.Next()
		require.NoError(t, err)
		require.EqualValues(t, n, fr.Channel)
		require.Len(t, fr.Body, n*370%60000)
		if len(fr.Body) > 0 {
			require.Equal(t, byte(n), fr.Body[len(fr.Body)-1])
		}
	}
}

func TestFrameReaderRefuses(t *testing.T) {
	for name, s := range map[string]string{
		"too large":       "00010001 02 00 0000",
		"claims 4 GiB":    "ffffffff 02 00 0000",
		"size 0":          "00000000 02 00 0000",
		"size below 8":    "00000007 02 00 0000",
		"offset below 2":  "00000010 01 00 0000 0000000000000000",
		"offset too high": "00000010 05 00 0000 0000000000000000",
	} {
		_, err := NewFrameReader(bytes.NewReader(unhex(t, s)), 65536).Next()
		require.ErrorIs(t, err, ErrMalformedFrame, name)
	}
	for name, s := range map[string]string{"cut header": "0000", "cut body": "00000010 02 00 0000 00"} {
		_, err := NewFrameReader(bytes.NewReader(unhex(t, s)), 65536).Next()
		require.Equal(t, io.ErrUnexpectedEOF, err, name)
	}
	_, err := NewFrameReader(iotest.ErrReader(errors.New("broken")), 512).Next()
	require.EqualError(t, err, "broken")
	_, err = NewFrameReader(readerFunc(func([]byte) (int, error) { return 0, nil }), 512).Next()
	require.Equal(t, io.ErrNoProgress, err)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestExtendedHeaderIsSkipped(t *testing.T) {
	fr, err := NewFrameReader(bytes.NewReader(unhex(t, "00000010 03 00 0000 deadbeef 00 53 18 45")), 512).Next()
	require.NoError(t, err)
	require.Equal(t, unhex(t, "00 53 18 45"), fr.Body)
}

func TestHotFramesDoNotAllocate(t *testing.T) {
	body := AppendFrame(nil, 0, &Transfer{DeliveryID: Some[uint32](1), DeliveryTag: []byte("tag0"), MessageFormat: Some[uint32](0), Settled: Some(false)}, []byte("payload"))[8:]
	var p Parser
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if _, _, err := p.Parse(FrameAMQP, body); err != nil {
			t.Fatal(err)
		}
	}))
	out := make([]byte, 0, 256)
	d := &Disposition{Role: RoleReceiver, First: 1, Last: Some[uint32](50), Settled: true, State: Accepted{}}
	require.Zero(t, testing.AllocsPerRun(100, func() { out = AppendFrame(out[:0], 0, d, nil) }))
}

func BenchmarkParseTransfer(b *testing.B) {
	body := AppendFrame(nil, 0, &Transfer{DeliveryID: Some[uint32](1), DeliveryTag: []byte("tag0"), MessageFormat: Some[uint32](0), Settled: Some(false)}, []byte("payload"))[8:]
	var p Parser
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := p.Parse(FrameAMQP, body); err != nil {
			b.Fatal(err)
		}
	}
}
