package httpd

import (
	"io"
	"net/http"
	"time"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/fault"
)

// nameOf is the name that goes with a hub's code in an error's body.
func nameOf(code int) string {
	switch code {
	case 400004:
		return "ArgumentInvalid"
	case 401002:
		return "IotHubUnauthorizedAccess"
	case 403001:
		return "IotHubSuspended"
	case 403002:
		return "IotHubQuotaExceeded"
	case 403004:
		return "DeviceMaximumQueueDepthExceeded"
	case 404001:
		return "DeviceNotFound"
	case 404103:
		return "DeviceNotOnline"
	case 409001:
		return "DeviceAlreadyExists"
	case 412001:
		return "PreconditionFailed"
	case 412002:
		return "DeviceMessageLockLost"
	case 413001:
		return "MessageTooLarge"
	case 429001:
		return "ThrottlingException"
	case 503001:
		return "ServiceUnavailable"
	case 504101:
		return "GatewayTimeout"
	default:
		return "ServerError"
	}
}

// codeOf is the hub's code for an AMQP condition, in whose terms faults are scripted.
func codeOf(condition string) int {
	switch condition {
	case "amqp:not-found":
		return 404001
	case "amqp:unauthorized-access":
		return 401002
	case "amqp:resource-limit-exceeded", "com.microsoft:quota-exceeded":
		return 403002
	case "amqp:link:message-size-exceeded":
		return 413001
	case "com.microsoft:argument-error":
		return 400004
	case "com.microsoft:precondition-failed":
		return 412001
	case "com.microsoft:device-already-exists":
		return 409001
	case "com.microsoft:device-container-throttled":
		return 429001
	case "com.microsoft:iot-hub-suspended":
		return 403001
	case "com.microsoft:timeout":
		return 503001
	default:
		return 500001
	}
}

// misbehave carries out a scripted fault; true: the request is dealt with.
func (s *Server) misbehave(w http.ResponseWriter, r *http.Request, device string) bool {
	a, ok := s.faults.Next(fault.Request, device)
	if !ok {
		return false
	}
	switch a.Kind {
	case fault.Delay:
		t := time.NewTimer(a.Delay)
		defer t.Stop()
		select {
		case <-t.C:
			return false
		case <-r.Context().Done():
			return true
		case <-s.done:
			return true
		}
	case fault.Drop:
		panic(http.ErrAbortHandler) // cuts the connection without an answer
	case fault.Withhold:
		_, _ = io.Copy(io.Discard, r.Body) // only then does the server notice that the peer has gone
		select {
		case <-r.Context().Done():
		case <-s.done:
		}
		panic(http.ErrAbortHandler)
	}
	code := codeOf(a.Condition)
	text := a.Text
	if text == "" {
		text = "refused on request"
	}
	s.refuse(w, &c2d.Refusal{Condition: a.Condition, Code: code, Text: text})
	return true
}
