package amqpd_test

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"downlink/bridge/emulator/amqpd"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/throttle"
	"downlink/bridge/internal/amqpwire"
)

// transcript is all that a well-behaved client says in a short life.
func transcript(t testing.TB) []byte {
	b := []byte(amqpwire.HeaderSASL)
	b = append(b, amqpwire.AppendSASLFrame(nil, &amqpwire.SASLInit{Mechanism: "PLAIN", Response: []byte("\x00service@sas.root.hub\x00good")})...)
	b = append(b, amqpwire.HeaderAMQP...)
	frame := func(p amqpwire.Performative, payload []byte) { b = amqpwire.AppendFrame(b, 0, p, payload) }
	frame(&amqpwire.Open{ContainerID: "c", Hostname: "localhost", MaxFrameSize: 1024, ChannelMax: 7, IdleTimeout: 60000}, nil)
	frame(&amqpwire.Begin{IncomingWindow: 100, OutgoingWindow: 100, HandleMax: 10}, nil)
	frame(receiverAttach("r", 0, "$cbs"), nil)
	frame(&amqpwire.Flow{NextIncomingID: amqpwire.Some[uint32](0), IncomingWindow: 100, OutgoingWindow: 100, Handle: amqpwire.Some[uint32](0),
		LinkCredit: amqpwire.Some[uint32](10), Drain: true}, nil)
	frame(senderAttach("s", 1, "$cbs"), nil)
	frame(transferOf(1, 0), tokenMessage(t, unhex(t, "00 53 73 c0 02 01 44"), "good"))
	frame(senderAttach("d", 2, "amqps://localhost/messages/devicebound"), nil)
	more := transferOf(2, 1)
	more.More = true
	frame(more, []byte{0, 0x53})
	frame(transferOf(2, 1), []byte{0x75, 0xa0, 1, 'x'})
	m := (&amqpwire.Properties{To: "/devices/d1/messages/devicebound", MessageID: uint64(1), AbsoluteExpiryTime: amqpwire.Some(amqpwire.Timestamp(1))}).Append(nil)
	m, _ = amqpwire.AppendApplicationProperties(m, amqpwire.Map{{Key: "iothub-ack", Value: "full"}, {Key: "n", Value: int32(1)}})
	frame(transferOf(2, 2), amqpwire.AppendBodyData(m, []byte("body")))
	frame(&amqpwire.Disposition{Role: amqpwire.RoleReceiver, First: 0, State: amqpwire.Accepted{}}, nil)
	frame(receiverAttach("f", 3, "/messages/serviceBound/feedback"), nil)
	frame(&amqpwire.Flow{NextIncomingID: amqpwire.Some[uint32](0), IncomingWindow: 100, NextOutgoingID: 4, OutgoingWindow: 100, Handle: amqpwire.Some[uint32](3),
		DeliveryCount: amqpwire.Some[uint32](0), LinkCredit: amqpwire.Some[uint32](2)}, nil)
	frame(&amqpwire.Disposition{Role: amqpwire.RoleReceiver, First: 1, Last: amqpwire.Some[uint32](2), State: amqpwire.Released{}}, nil)
	frame(&amqpwire.Disposition{Role: amqpwire.RoleReceiver, First: 1, Last: amqpwire.Some[uint32](9), Settled: true, State: amqpwire.Accepted{}}, nil)
	frame(nil, nil)
	frame(&amqpwire.Detach{Handle: 2, Closed: true}, nil)
	frame(&amqpwire.End{}, nil)
	frame(&amqpwire.Close{}, nil)
	return b
}

// FuzzConnection plays bytes to a whole connection, which must end, without a panic and with
// nothing left running, when the bytes do.
func FuzzConnection(f *testing.F) {
	whole := transcript(f)
	f.Add(whole)
	f.Add(whole[bytes.Index(whole, []byte(amqpwire.HeaderAMQP)):])
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	// In a bubble: where the hub lingers for its peer, that takes no time.
	f.Fuzz(func(t *testing.T, b []byte) { synctest.Test(t, func(t *testing.T) { play(t, b) }) })
}

// play gives a connection of its own hub these bytes.
func play(t *testing.T, b []byte) {
	var log bytes.Buffer
	var q *feedback.Queue
	o := amqpd.Options{Backend: newHub(), HandshakeTimeout: 5 * time.Second,
		Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError}))}
	withFeedback(&q, feedback.Rules{})(&o)
	const batches = 8
	for range batches {
		q.Add(record("m1"))
	}
	limited, err := throttle.New(throttle.Options{Tier: throttle.S3, Burst: -1, Backlog: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	o.Throttle = limited
	srv := amqpd.New(o)
	client, server := net.Pipe()
	client.SetDeadline(time.Now().Add(10 * time.Second))
	ended := make(chan struct{})
	go func() { defer close(ended); srv.ServeConn(server) }()
	read := make(chan struct{})
	go func() { defer close(read); io.Copy(io.Discard, client) }()
	client.Write(b)
	client.Close()
	<-read
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the connection does not end")
	}
	srv.Close()
	if log.Len() > 0 {
		t.Fatal(log.String())
	}
	// Each batch is where it was, or had one end.
	if s := q.Status(); s.Locked != 0 || uint64(s.Batches)+s.Completed+s.Rejected+s.Lost != batches {
		t.Fatalf("%+v", s)
	}
}

func TestTranscriptIsUnderstood(t *testing.T) {
	h := newHub()
	srv := amqpd.New(amqpd.Options{Backend: h})
	client, server := net.Pipe()
	ended := make(chan struct{})
	go func() { defer close(ended); srv.ServeConn(server) }()
	go client.Write(transcript(t))
	answer, err := io.ReadAll(client)
	if err != nil || len(h.got()) != 2 {
		t.Fatalf("%v, %d messages, answer %q", err, len(h.got()), answer)
	}
	client.Close()
	<-ended
	srv.Close()
}
