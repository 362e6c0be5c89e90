package hubservice

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/Azure/go-amqp"

	"downlink/bridge"
	"downlink/mapping"
)

// The conditions with which IoT Hub refuses a C2D message, beside those of AMQP
// itself (Azure/azure-iot-sdk-csharp, IotHubAmqpErrorCode.cs; the numbers are the
// hub's own codes, "Understand and resolve IoT Hub errors").
const (
	condThrottled       = "com.microsoft:device-container-throttled" // 429001
	condQuotaExceeded   = "com.microsoft:quota-exceeded"             // 403002
	condSuspended       = "com.microsoft:iot-hub-suspended"          // 403001
	condHubNotFound     = "com.microsoft:iot-hub-not-found-error"    // 404xxx: the hub, not the device
	condArgument        = "com.microsoft:argument-error"             // 400004
	condArgumentRange   = "com.microsoft:argument-out-of-range"
	infoErrorCode       = "com.microsoft:error-code"
	codeSuspended       = "403001"
	codeQuotaExceeded   = "403002"
	longestHubErrorText = 200
)

// outcome says what the hub's delivery state means. nil is accepted: the message
// is in the device's queue (not more than that). Everything else is an error
// about this message alone; the link stays.
func outcome(state amqp.DeliveryState) error {
	switch s := state.(type) {
	case *amqp.StateAccepted:
		return nil
	case *amqp.StateRejected:
		return rejected(s.Error)
	case *amqp.StateReleased, *amqp.StateModified:
		// AMQP 1.0 §3.4.4, §3.4.5: not acted upon. go-amqp's plain Send calls this success.
		return &bridge.Error{Class: bridge.Resend, Op: "send", Err: fmt.Errorf("the hub did not take the message (%s)", stateName(s))}
	default:
		return &bridge.Error{Class: bridge.Resend, Op: "send", Err: fmt.Errorf("settled as %s", stateName(s))}
	}
}

// late gives a message that expired on its way to the hub its reason: the hub has
// one condition for that and for any value that it does not like.
func late(err error, expires, now time.Time) error {
	if e, ok := err.(*bridge.Error); ok && e.Condition == condArgument && !expires.IsZero() && !now.Before(expires) {
		e.Reason = bridge.ReasonExpired
	}
	return err
}

func rejected(e *amqp.Error) error {
	if e == nil {
		return &bridge.Error{Class: bridge.Unknown, Op: "send", Err: errors.New("rejected without an error")}
	}
	class, reason := classOf(string(e.Condition), errorCode(e))
	return &bridge.Error{
		Class:     class,
		Op:        "send",
		Condition: string(e.Condition),
		Reason:    reason,
		Err:       errors.New(hubText(e)),
	}
}

// classOf is the table. Descriptions are not documented, so only the condition
// counts, and the numeric code where one condition carries several.
func classOf(condition, code string) (bridge.Class, mapping.Reason) {
	switch condition {
	case string(amqp.ErrCondNotFound):
		return bridge.NoDevice, ""

	case string(amqp.ErrCondResourceLimitExceeded):
		// The device's queue (403004), and by some accounts also the daily quota
		// (403002). Where the hub gives the number we need not guess; where it does
		// not, the engine takes many in a row for the quota.
		if code == codeQuotaExceeded || code == codeSuspended {
			return bridge.Paused, ""
		}
		return bridge.QueueFull, ""

	case condQuotaExceeded, condSuspended, condHubNotFound:
		return bridge.Paused, "" // nothing is wrong with the message

	case condThrottled:
		return bridge.Throttled, ""

	case string(amqp.ErrCondUnauthorizedAccess):
		return bridge.Unauthorized, ""

	case string(amqp.ErrCondMessageSizeExceeded):
		return bridge.Refused, mapping.ReasonTooLarge

	case condArgument, condArgumentRange,
		string(amqp.ErrCondInvalidField), string(amqp.ErrCondDecodeError):
		return bridge.Refused, mapping.ReasonBadProperty

	case string(amqp.ErrCondNotAllowed), string(amqp.ErrCondNotImplemented):
		return bridge.Refused, bridge.ReasonRefused

	default: // amqp:internal-error, com.microsoft:timeout, what is yet to come
		return bridge.Unknown, ""
	}
}

// local tells an error that go-amqp raised about one message, before the wire,
// from the end of the link, which is not an outcome. A link's error unwraps to
// the peer's *amqp.Error, so the order of the questions matters.
func local(err error) (*bridge.Error, bool) {
	if isLinkLoss(err) {
		return nil, false
	}
	e, ok := errors.AsType[*amqp.Error](err)
	if !ok || e.Condition != amqp.ErrCondMessageSizeExceeded {
		return nil, false
	}
	return &bridge.Error{
		Class:  bridge.Refused,
		Op:     "send",
		Reason: mapping.ReasonTooLarge, // and no condition: the hub has not said anything
		Err:    fmt.Errorf("larger than the hub's link takes: %s", e.Description),
	}, true
}

// isLinkLoss reports whether err means that link, session or connection is gone.
func isLinkLoss(err error) bool {
	_, link := errors.AsType[*amqp.LinkError](err)
	_, session := errors.AsType[*amqp.SessionError](err)
	_, conn := errors.AsType[*amqp.ConnError](err)
	return link || session || conn
}

// isUnauthorized reports whether the hub refused our credential: on $cbs, at
// attach, or by closing link or connection.
func isUnauthorized(err error) bool {
	if t, ok := errors.AsType[*tokenError](err); ok {
		return t.status == 401
	}
	if t, ok := errors.AsType[*entraError](err); ok {
		return t.refused
	}
	e, ok := errors.AsType[*amqp.Error](err)
	return ok && e.Condition == amqp.ErrCondUnauthorizedAccess
}

// readable says the peer's *amqp.Error in err as its condition and one short line
// of its text, in place of go-amqp's rendering of the struct. It unwraps to err.
func readable(err error) error {
	e, ok := errors.AsType[*amqp.Error](err)
	if !ok {
		return err
	}
	return readableError{err, strings.ReplaceAll(err.Error(), e.Error(), string(e.Condition)+": "+hubText(e))}
}

type readableError struct {
	error
	text string
}

func (e readableError) Error() string { return e.text }

func (e readableError) Unwrap() error { return e.error }

// condition is the peer's condition in err, or "".
func condition(err error) string {
	if e, ok := errors.AsType[*amqp.Error](err); ok {
		return string(e.Condition)
	}
	return ""
}

func errorCode(e *amqp.Error) string {
	code, ok := e.Info[infoErrorCode]
	if !ok {
		return ""
	}
	return fmt.Sprint(code) // an int on some paths, a string on others
}

// hubText is the hub's description as one short line for humans.
func hubText(e *amqp.Error) string {
	text := oneLine(e.Description)
	if code := errorCode(e); code != "" {
		text = strings.TrimSpace(text + " (" + oneLine(code) + ")")
	}
	if text == "" {
		text = "the hub gave no reason"
	}
	return text
}

// oneLine makes what the peer wrote fit for an error or a log line. A peer that
// echoes our token does not get it into a log.
func oneLine(s string) string { return shortened(s, longestHubErrorText) }

func shortened(s string, limit int) string {
	for _, mark := range []string{"SharedAccessSignature", entraPrefix + "ey"} { // a JWT begins with {"
		if i := strings.Index(s, mark); i >= 0 {
			s = s[:i] + "<redacted>"
		}
	}
	runes := []rune(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?")))
	if len(runes) > limit {
		return string(runes[:limit]) + "…"
	}
	return strings.TrimSpace(string(runes))
}

func stateName(s amqp.DeliveryState) string {
	switch s.(type) {
	case *amqp.StateReleased:
		return "released"
	case *amqp.StateModified:
		return "modified"
	case *amqp.StateReceived:
		return "received"
	case nil:
		return "nothing"
	default:
		return fmt.Sprintf("%T", s)
	}
}
