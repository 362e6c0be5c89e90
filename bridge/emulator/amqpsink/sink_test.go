package amqpsink_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"downlink/bridge/emulator/amqpsink"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// With SASL and without, messages of one frame and of several, more than the credit: all are accepted.
func TestAcceptsEverything(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &amqpsink.Sink{}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for _, o := range []*amqp.ConnOptions{nil, {SASLType: amqp.SASLTypeAnonymous()}, {SASLType: amqp.SASLTypePlain("u", "p")}} {
		conn, err := amqp.Dial(ctx, "amqp://"+l.Addr().String(), o)
		require.NoError(t, err)
		session, err := conn.NewSession(ctx, nil)
		require.NoError(t, err)
		sender, err := session.NewSender(ctx, "anything", nil)
		require.NoError(t, err)
		for i := range 6000 {
			size := 10
			if i%1000 == 0 {
				size = 200_000
			}
			receipt, err := sender.SendWithReceipt(ctx, amqp.NewMessage(make([]byte, size)), nil)
			require.NoError(t, err)
			if i%100 == 0 {
				state, err := receipt.Wait(ctx)
				require.NoError(t, err)
				require.IsType(t, &amqp.StateAccepted{}, state)
			}
		}
		require.NoError(t, sender.Close(ctx))
		require.NoError(t, session.Close(ctx))
		require.NoError(t, conn.Close())
	}
	require.NoError(t, s.Close())
	require.NoError(t, <-served)
}
