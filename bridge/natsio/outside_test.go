package natsio

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/bridge/bridgetest"
	"downlink/mapping"
)

// One message whose subject its stream does not store, which a property may cause, must not
// stop the messages of all devices behind it: it is refused, and becomes a dead letter.
func TestOrderedPublisherRefusesASubjectOutsideItsStream(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "EDGE", "edge.*.reboot")
	p, _ := runOrdered(t, n.URL(), func(o *PublisherOptions) { o.Stream, o.Subjects = "EDGE", []string{"edge.>"} })
	answers := make(chan error, 3)
	for _, subject := range []string{"edge.d1.reboot", "edge.d2.typo", "edge.d3.reboot"} {
		require.NoError(t, p.Publish(t.Context(), &mapping.Publication{Subject: subject}, func(err error) { answers <- err }))
	}
	for i := range 3 {
		select {
		case err := <-answers:
			require.Equal(t, i == 1, err != nil, "%d: %v", i, err)
			if e, ok := errors.AsType[*bridge.Error](err); ok {
				require.Equal(t, bridge.Refused, e.Class)
				require.Equal(t, mapping.ReasonBadSubject, e.Reason)
				require.ErrorContains(t, e, "edge.d2.typo")
			}
		case <-time.After(30 * time.Second):
			require.FailNow(t, "blocked", "%v", p.Ready())
		}
	}
}

// A stream that can store nothing of what is published is a mistake in the configuration: nothing
// is refused, all waits, and Ready says so before the first message.
func TestOrderedPublisherIsNotReadyForAStreamOfOtherSubjects(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t)
	n.CreateStream(t, "EDGE", "other.>")
	p, _ := runOrdered(t, n.URL(), func(o *PublisherOptions) { o.Stream, o.Subjects = "EDGE", []string{"edge.>"} })
	require.Eventually(t, func() bool {
		err := p.Ready()
		return err != nil && strings.Contains(err.Error(), "stream EDGE stores other.>") && strings.Contains(err.Error(), "edge.>")
	}, 30*time.Second, 10*time.Millisecond)
}

// A login that may not ask for the stream gets no answer; the reason is told, not the silence.
func TestOrderedPublisherNamesAMissingPermission(t *testing.T) {
	t.Parallel()
	n := bridgetest.RunNATS(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"$JS.API.>"}}, Subscribe: &server.SubjectPermission{Allow: []string{">"}},
		}}}
	})
	password := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(password, []byte("p"), 0o600))
	p, _ := runOrdered(t, n.URL(), func(o *PublisherOptions) {
		o.Stream, o.Conn.User, o.Conn.PasswordFile = "EDGE", "u", password
	})
	require.Eventually(t, func() bool {
		err := p.Ready()
		return err != nil && strings.Contains(err.Error(), `missing NATS permission: publish to "$JS.API.`)
	}, 20*time.Second, 10*time.Millisecond)
}
