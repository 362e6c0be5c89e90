package hubservice

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/stretchr/testify/require"

	"downlink/bridge"
	"downlink/mapping"
)

func TestOutcome(t *testing.T) {
	reject := func(condition string) amqp.DeliveryState {
		return &amqp.StateRejected{Error: &amqp.Error{Condition: amqp.ErrCond(condition), Description: "because"}}
	}
	coded := func(condition string, code any) amqp.DeliveryState {
		return &amqp.StateRejected{Error: &amqp.Error{Condition: amqp.ErrCond(condition), Info: map[string]any{"com.microsoft:error-code": code}}}
	}
	for _, c := range []struct {
		state  amqp.DeliveryState
		class  bridge.Class
		reason mapping.Reason
		text   string
	}{
		{&amqp.StateReleased{}, bridge.Resend, "", "send: the hub did not take the message (released)"},
		{&amqp.StateModified{DeliveryFailed: true}, bridge.Resend, "", "send: the hub did not take the message (modified)"},
		{&amqp.StateReceived{}, bridge.Resend, "", "send: settled as received"},
		{nil, bridge.Resend, "", "send: settled as nothing"},
		{&amqp.StateRejected{}, bridge.Unknown, "", "send: rejected without an error"},
		{reject("amqp:not-found"), bridge.NoDevice, "", "send: amqp:not-found: because"},
		{reject("amqp:resource-limit-exceeded"), bridge.QueueFull, "", ""},
		{coded("amqp:resource-limit-exceeded", int32(403004)), bridge.QueueFull, "", "send: amqp:resource-limit-exceeded: (403004)"},
		{coded("amqp:resource-limit-exceeded", int32(403002)), bridge.Paused, "", ""},
		{coded("amqp:resource-limit-exceeded", "403002"), bridge.Paused, "", ""},
		{coded("amqp:not-found", int64(404001)), bridge.NoDevice, "", ""},
		{reject("com.microsoft:quota-exceeded"), bridge.Paused, "", ""},
		{reject("com.microsoft:iot-hub-suspended"), bridge.Paused, "", ""},
		{reject("com.microsoft:iot-hub-not-found-error"), bridge.Paused, "", ""},
		{reject("com.microsoft:device-container-throttled"), bridge.Throttled, "", ""},
		{reject("amqp:unauthorized-access"), bridge.Unauthorized, "", ""},
		{reject("amqp:link:message-size-exceeded"), bridge.Refused, mapping.ReasonTooLarge, ""},
		{reject("com.microsoft:argument-error"), bridge.Refused, mapping.ReasonBadProperty, ""},
		{reject("com.microsoft:argument-out-of-range"), bridge.Refused, mapping.ReasonBadProperty, ""},
		{reject("amqp:invalid-field"), bridge.Refused, mapping.ReasonBadProperty, ""},
		{reject("amqp:decode-error"), bridge.Refused, mapping.ReasonBadProperty, ""},
		{reject("amqp:not-allowed"), bridge.Refused, bridge.ReasonRefused, ""},
		{reject("amqp:not-implemented"), bridge.Refused, bridge.ReasonRefused, ""},
		{reject("amqp:internal-error"), bridge.Unknown, "", ""},
		{reject("com.microsoft:timeout"), bridge.Unknown, "", ""},
		{reject("com.microsoft:something-new"), bridge.Unknown, "", "send: com.microsoft:something-new: because"},
	} {
		err := outcome(c.state)
		var e *bridge.Error
		require.ErrorAs(t, err, &e, "%#v", c.state)
		require.Equal(t, c.class.String(), e.Class.String(), "%#v", c.state)
		require.Equal(t, c.reason, e.Reason, "%#v", c.state)
		if r, ok := c.state.(*amqp.StateRejected); ok && r.Error != nil {
			require.Equal(t, string(r.Error.Condition), e.Condition)
		}
		if c.text != "" {
			require.EqualError(t, err, c.text)
		}
	}
	require.NoError(t, outcome(&amqp.StateAccepted{}))
}

// A link's error unwraps to the peer's; it is no outcome of a message all the same.
func TestLocalAndLinkErrors(t *testing.T) {
	size := &amqp.Error{Condition: amqp.ErrCondMessageSizeExceeded, Description: "encoded message size exceeds max of 65536"}
	e, ok := local(size)
	require.True(t, ok)
	require.Equal(t, bridge.Refused, e.Class)
	require.Equal(t, mapping.ReasonTooLarge, e.Reason)

	for _, err := range []error{
		&amqp.LinkError{RemoteErr: size}, &amqp.SessionError{RemoteErr: size}, &amqp.ConnError{RemoteErr: size},
		fmt.Errorf("x: %w", &amqp.LinkError{RemoteErr: size}),
	} {
		_, ok := local(err)
		require.False(t, ok)
		require.True(t, isLinkLoss(err))
		require.Equal(t, "amqp:link:message-size-exceeded", condition(err))
		require.False(t, isUnauthorized(err))
	}
	denied := &amqp.Error{Condition: amqp.ErrCondUnauthorizedAccess}
	for _, err := range []error{denied, &amqp.LinkError{RemoteErr: denied}, &amqp.ConnError{RemoteErr: denied},
		fmt.Errorf("x: %w", &tokenError{status: 401})} {
		require.True(t, isUnauthorized(err))
	}
	for _, err := range []error{errors.New("x"), &tokenError{status: 500}, &amqp.ConnError{}, nil} {
		require.False(t, isUnauthorized(err))
	}
}

func TestLostClassifies(t *testing.T) {
	for _, c := range []struct {
		cause error
		again bool
		class bridge.Class
	}{
		{&amqp.LinkError{RemoteErr: &amqp.Error{Condition: "amqp:link:detach-forced"}}, false, bridge.LinkLost},
		{&amqp.ConnError{}, false, bridge.LinkLost},
		{&amqp.SessionError{}, false, bridge.LinkLost},
		{errStopped, false, bridge.LinkLost},
		{fmt.Errorf("%w for 60s", errStalled), false, bridge.Resend},
		{&amqp.ConnError{RemoteErr: &amqp.Error{Condition: amqp.ErrCondUnauthorizedAccess}}, true, 0},
		{fmt.Errorf("%w: %w", errTokenEnd, errors.New("x")), true, 0},
	} {
		l := &link{broken: make(chan struct{})}
		l.fail(c.cause)
		again, err := l.lost(&amqp.ConnError{}) // what the close that followed looks like
		require.Equal(t, c.again, again)
		if !again {
			var e *bridge.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, c.class.String(), e.Class.String())
		}
	}
}

func TestHubTextIsOneShortLineWithoutToken(t *testing.T) {
	err := rejected(&amqp.Error{Condition: "x", Description: "a\nb\x00 \xff SharedAccessSignature sr=h&sig=secret"})
	require.EqualError(t, err, "send: x: a b  ? <redacted>")
	err = rejected(&amqp.Error{Condition: "x", Description: strings.Repeat("long ", 1000)})
	require.Less(t, len(err.Error()), 300)
}

func TestReadable(t *testing.T) {
	denied := &amqp.Error{Condition: amqp.ErrCondUnauthorizedAccess, Description: "Put token\nfailed", Info: map[string]any{"com.microsoft:error-code": int32(401003)}}
	err := readable(fmt.Errorf("attach to x: %w", denied))
	require.EqualError(t, err, "attach to x: amqp:unauthorized-access: Put token failed (401003)")
	require.True(t, isUnauthorized(err))
	err = readable(&amqp.ConnError{RemoteErr: denied})
	require.EqualError(t, err, "amqp:unauthorized-access: Put token failed (401003)")
	require.True(t, isLinkLoss(err))
	require.EqualError(t, readable(errors.New("EOF")), "EOF")
}

// TestLate: a message that expires on its way is no bad message.
func TestLate(t *testing.T) {
	now := time.Now()
	reason := func(condition amqp.ErrCond, expires time.Time) mapping.Reason {
		var e *bridge.Error
		require.ErrorAs(t, late(outcome(&amqp.StateRejected{Error: &amqp.Error{Condition: condition}}), expires, now), &e)
		return e.Reason
	}
	require.Equal(t, bridge.ReasonExpired, reason(condArgument, now))
	require.Equal(t, mapping.ReasonBadProperty, reason(condArgument, now.Add(time.Second)))
	require.Equal(t, mapping.ReasonBadProperty, reason(condArgument, time.Time{}))
	require.Empty(t, reason(amqp.ErrCondNotFound, now))
	require.NoError(t, late(nil, now, now))
}
