package amqpd_test

import (
	"io"
	"math"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/amqpd"
	"downlink/bridge/emulator/fault"
	"downlink/bridge/internal/amqpwire"
)

// bubbled is a connection over net.Pipe in a bubble, whose clock is faked.
type bubbled struct {
	*hub
	*peer
	faults *fault.Injector
	ended  chan struct{}
}

func bubble(t *testing.T, f func(t *testing.T, b *bubbled), change ...func(*amqpd.Options)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		b := &bubbled{hub: newHub(), peer: newPeer(t, client), faults: new(fault.Injector), ended: make(chan struct{})}
		o := amqpd.Options{Backend: b.hub, Faults: b.faults}
		for _, f := range change {
			f(&o)
		}
		srv := amqpd.New(o)
		go func() { defer close(b.ended); srv.ServeConn(server) }()
		f(t, b)
		client.Close()
		<-b.ended
		srv.Close()
	})
}

// ready opens the connection, puts a token and attaches a sender, handle 0 of channel 0.
func (b *bubbled) ready(t *testing.T) *peer {
	t.Helper()
	b.open()
	b.putToken("forever", 0)
	b.send(0, senderAttach("d", 0, "/messages/devicebound"))
	expect[*amqpwire.Attach](b.peer)
	fullFlow(b.peer, 0)
	return b.peer
}

// putToken uses a link of its own, so id is the only one in flight; the reply is not waited for.
func (b *bubbled) putToken(token string, id uint32) {
	b.t.Helper()
	b.send(0, senderAttach("s", 9, "$cbs"))
	expect[*amqpwire.Attach](b.peer)
	fullFlow(b.peer, 9)
	b.send(0, transferOf(9, id), tokenMessage(b.t, nil, token)...)
	expect[*amqpwire.Disposition](b.peer)
	b.send(0, &amqpwire.Detach{Handle: 9, Closed: true})
	expect[*amqpwire.Detach](b.peer)
}

func TestTokenExpiryClosesTheConnection(t *testing.T) {
	bubble(t, func(t *testing.T, b *bubbled) {
		b.open()
		b.allow("one minute", amqpd.Grant{ServiceConnect: true, Expires: time.Now().Add(time.Minute)})
		b.allow("three minutes", amqpd.Grant{ServiceConnect: true, Expires: time.Now().Add(3 * time.Minute)})
		b.putToken("one minute", 0)
		start := time.Now()
		time.Sleep(59 * time.Second)
		b.putToken("three minutes", 1)
		b.putToken("registry", 2) // takes nothing away
		time.Sleep(2 * time.Minute)
		b.send(0, nil)
		c, _ := expect[*amqpwire.Close](b.peer)
		require.EqualValues(t, "amqp:unauthorized-access", c.Error.Condition)
		require.Equal(t, 3*time.Minute, time.Since(start))
	})
}

func TestSilentHandshakesAreCut(t *testing.T) {
	for name, first := range map[string]string{"nothing": "", "half a header": "AMQ", "no open": amqpwire.HeaderAMQP, "no sasl-init": amqpwire.HeaderSASL} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, b *bubbled) {
				start := time.Now()
				go io.Copy(io.Discard, b.nc)
				b.raw([]byte(first))
				<-b.ended
				require.Equal(t, 30*time.Second, time.Since(start))
			})
		})
	}
}

func TestSilentPeerIsCut(t *testing.T) {
	bubble(t, func(t *testing.T, b *bubbled) {
		b.open()
		start := time.Now()
		time.Sleep(7 * time.Minute)
		b.send(0, nil) // a heartbeat
		c, _ := expect[*amqpwire.Close](b.peer)
		require.EqualValues(t, "amqp:resource-limit-exceeded", c.Error.Condition)
		<-b.ended
		require.Equal(t, 15*time.Minute, time.Since(start).Round(time.Second))
	})
}

func TestTricklingPeerIsCut(t *testing.T) {
	bubble(t, func(t *testing.T, b *bubbled) {
		b.open()
		start := time.Now()
		go io.Copy(io.Discard, b.nc)
		var trickle sync.WaitGroup
		trickle.Go(func() {
			for _, one := range amqpwire.AppendFrame(nil, 0, nil, make([]byte, 100)) {
				time.Sleep(time.Minute)
				if _, err := b.nc.Write([]byte{one}); err != nil {
					return
				}
			}
		})
		<-b.ended
		took := time.Since(start)
		trickle.Wait()
		require.Equal(t, 8*time.Minute, took.Round(time.Second))
	})
}

func TestPeerThatDoesNotReadIsCut(t *testing.T) {
	bubble(t, func(t *testing.T, b *bubbled) {
		b.open()
		start := time.Now()
		b.nc.Write(amqpwire.AppendFrame(nil, 0, senderAttach("s", 0, "$cbs"), nil))
		<-b.ended
		require.Equal(t, 30*time.Second, time.Since(start).Round(time.Second))
	})
}

func TestHeartbeatsAtHalfTheClientsTimeout(t *testing.T) {
	bubble(t, func(t *testing.T, b *bubbled) {
		b.raw([]byte(amqpwire.HeaderAMQP))
		b.header(amqpwire.HeaderAMQP)
		go b.nc.Write(amqpwire.AppendFrame(nil, 0, &amqpwire.Open{ContainerID: "c", IdleTimeout: 60000, MaxFrameSize: math.MaxUint32}, nil))
		expect[*amqpwire.Open](b.peer)
		start := time.Now()
		for n := range 3 {
			fr, err := b.in.Next()
			require.NoError(t, err)
			require.Empty(t, fr.Body)
			require.Equal(t, time.Duration(n+1)*30*time.Second, time.Since(start))
		}
	})
}

func TestNoHeartbeatsUnasked(t *testing.T) {
	bubble(t, func(t *testing.T, b *bubbled) {
		b.open()
		b.nc.SetReadDeadline(time.Now().Add(7 * time.Minute))
		_, err := b.in.Next()
		require.ErrorContains(t, err, "timeout")
	})
}

func TestPeerThatIgnoresCloseIsCut(t *testing.T) {
	bubble(t, func(t *testing.T, b *bubbled) {
		b.open()
		start := time.Now()
		b.send(9, &amqpwire.Flow{})
		c, _ := expect[*amqpwire.Close](b.peer)
		require.NotNil(t, c.Error)
		<-b.ended
		require.Equal(t, 2*time.Second, time.Since(start).Round(time.Second))
	})
}
