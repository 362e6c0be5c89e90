package amqpd

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/internal/amqpwire"
)

// Error conditions (§2.8.15 to §2.8.18) and the hub's own.
const (
	condInternal       = "amqp:internal-error"
	condNotFound       = "amqp:not-found"
	condUnauthorized   = "amqp:unauthorized-access"
	condFrameSize      = "amqp:frame-size-too-small"
	condDecode         = "amqp:decode-error"
	condLimit          = "amqp:resource-limit-exceeded"
	condNotAllowed     = "amqp:not-allowed"
	condInvalidField   = "amqp:invalid-field"
	condNotImplemented = "amqp:not-implemented"
	condForced         = "amqp:connection:forced"
	condFraming        = "amqp:connection:framing-error"
	condWindow         = "amqp:session:window-violation"
	condHandleInUse    = "amqp:session:handle-in-use"
	condUnattached     = "amqp:session:unattached-handle"
	condErrant         = "amqp:session:errant-link"
	condCredit         = "amqp:link:transfer-limit-exceeded"
	condSize           = "amqp:link:message-size-exceeded"
	condStolen         = "amqp:link:stolen"
	condLockLost       = "com.microsoft:message-lock-lost"
	condArgument       = "com.microsoft:argument-error"
	condNoHub          = "com.microsoft:iot-hub-not-found-error"
)

// problem makes an error. Its text may quote the peer, so it is cut to what fits the smallest frame.
func problem(condition, format string, args ...any) *amqpwire.Error {
	text := fmt.Sprintf(format, args...)
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + " …"
	}
	return &amqpwire.Error{Condition: amqpwire.Symbol(condition), Description: text}
}

// refused is the state a message ends in that the hub did not take.
func refused(err error) *amqpwire.Rejected {
	var r *c2d.Refusal
	if !errors.As(err, &r) {
		return &amqpwire.Rejected{Error: problem(condInternal, "the hub failed to store the message")}
	}
	e := problem(r.Condition, "%s", r.Text)
	e.Info = amqpwire.Map{{Key: amqpwire.Symbol("com.microsoft:tracking-id"), Value: newGUID()}}
	if r.Code != 0 {
		e.Info = append(e.Info, amqpwire.Entry{Key: amqpwire.Symbol("com.microsoft:error-code"), Value: int32(r.Code)})
	}
	return &amqpwire.Rejected{Error: e}
}

// codeOf is the hub's code that usually comes with a condition; 0 if there is none.
func codeOf(condition string) int {
	switch condition {
	case condNotFound:
		return 404001
	case condLimit:
		return 403004
	case condUnauthorized:
		return 401002
	case condSize:
		return 413001
	case condArgument:
		return 400004
	case "com.microsoft:device-container-throttled":
		return 429001
	case "com.microsoft:iot-hub-suspended":
		return 403001
	case "com.microsoft:quota-exceeded":
		return 403002
	}
	return 0
}

func newGUID() string {
	var u amqpwire.UUID
	rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return u.String()
}
