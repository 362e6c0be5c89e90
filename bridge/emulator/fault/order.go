package fault

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// The application properties with which Azure's own SDK tests make a hub
// misbehave (azure-iot-sdk-csharp, e2e/test/helpers/templates/FaultInjection.cs;
// the Node, Java, C and Python tests use the same). A device sends them in a
// device-to-cloud message and means itself.
const (
	orderType     = "AzIoTHub_FaultOperationType"
	orderReason   = "AzIoTHub_FaultOperationCloseReason"
	orderDelay    = "AzIoTHub_FaultOperationDelayInSecs"
	orderDuration = "AzIoTHub_FaultOperationDurationInSecs"
)

// Order is what such a message asks for: Delay from now on the device is in
// fault mode, for Duration.
type Order struct {
	Type            string
	Reason          string // free text
	Delay, Duration time.Duration
}

// The types of orders that concern a device on MQTT.
const (
	KillTCP       = "KillTcp"               // cuts the connection
	ShutDownMQTT  = "ShutDownMqtt"          // closes it in good order
	Throttling    = "InvokeThrottling"      // refuses telemetry: the device is over its throttle
	QuotaExceeded = "InvokeMaxMessageQuota" // refuses telemetry: the daily quota is used up
	AuthError     = "InvokeAuthError"       // cuts the connection and refuses to let the device sign in
)

// ForAMQP are the types that cut or close a device's AMQP connection, session or
// links. This hub has no AMQP devices: on MQTT they ask for nothing.
func ForAMQP() []string {
	return []string{
		"KillAmqpConnection", "KillAmqpSession", "KillAmqpCBSLinkReq", "KillAmqpCBSLinkResp", "KillAmqpD2CLink", "KillAmqpC2DLink",
		"KillAmqpTwinLinkReq", "KillAmqpTwinLinkResp", "KillAmqpMethodReqLink", "KillAmqpMethodRespLink", "ShutDownAmqp",
	}
}

// longest bounds an order's times.
const longest = time.Hour

// ParseOrder reads an order from a message's application properties, which
// lookup returns by name; false: the message is an ordinary one.
func ParseOrder(lookup func(name string) (string, bool)) (Order, bool, error) {
	var o Order
	var ok bool
	if o.Type, ok = lookup(orderType); !ok {
		return o, false, nil
	}
	o.Reason, _ = lookup(orderReason)
	var err error
	if o.Delay, err = seconds(lookup, orderDelay); err == nil {
		o.Duration, err = seconds(lookup, orderDuration)
	}
	return o, true, err
}

// seconds reads a property of seconds; absent is 0. C# writes fractions, too.
func seconds(lookup func(string) (string, bool), name string) (time.Duration, error) {
	text, ok := lookup(name)
	if text = strings.TrimSpace(text); !ok || text == "" {
		return 0, nil
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(n) || n < 0 || n > longest.Seconds() {
		return 0, fmt.Errorf("%s: %.40q is not a number of seconds up to %.0f", name, text, longest.Seconds())
	}
	return time.Duration(n * float64(time.Second)), nil
}
