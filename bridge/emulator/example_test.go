package emulator_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"log"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator"
	"downlink/bridge/emulator/virtual"
)

func Example_ownTests() {
	// docs:start
	hub, err := emulator.Start(emulator.Options{
		Devices: []string{"pump-7", "pump-8"},
		Virtual: []virtual.Rule{{Pattern: "pump-7"}}, // the hub plays pump-7, which completes every message; pump-8 is away
	})
	if err != nil {
		log.Fatal(err)
	}
	defer hub.Close()
	connectionString, err := hub.ConnectionString("service")
	if err != nil {
		log.Fatal(err)
	}

	// The code under test. It gets what it would get for a real hub, and the address and CA of this one.
	for _, device := range []string{"pump-7", "pump-8", "pump-9"} {
		fmt.Println(device, reboot(connectionString, hub.AMQPAddr(), hub.RootCAs(), device))
	}

	// What became of it.
	fmt.Println("for pump-7 the hub took", hub.Counts("pump-7").Accepted)
	for _, m := range hub.Queue("pump-8") {
		fmt.Printf("pump-8 has yet to take %s: %s\n", m.Message.MessageID, m.Message.Body)
	}
	// docs:end

	// Output:
	// pump-7 accepted
	// pump-8 accepted
	// pump-9 amqp:not-found
	// for pump-7 the hub took 1
	// pump-8 has yet to take reboot-1: now
}

// reboot stands for a service that sends commands with go-amqp.
func reboot(connectionString, address string, roots *x509.CertPool, device string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	part := map[string]string{}
	for p := range strings.SplitSeq(connectionString, ";") {
		name, value, _ := strings.Cut(p, "=")
		part[name] = value
	}
	host, policy := part["HostName"], part["SharedAccessKeyName"]
	hubName, _, _ := strings.Cut(host, ".")
	conn, err := amqp.Dial(ctx, "amqps://"+address, &amqp.ConnOptions{
		HostName: host, TLSConfig: &tls.Config{RootCAs: roots, ServerName: host},
		SASLType: amqp.SASLTypePlain(policy+"@sas.root."+hubName, signed(host, policy, part["SharedAccessKey"])),
	})
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		return err.Error()
	}
	sender, err := session.NewSender(ctx, "/messages/devicebound", nil)
	if err != nil {
		return err.Error()
	}
	to := "/devices/" + device + "/messages/devicebound"
	message := amqp.NewMessage([]byte("now"))
	message.Properties = &amqp.MessageProperties{MessageID: "reboot-1", To: &to}
	receipt, err := sender.SendWithReceipt(ctx, message, nil)
	if err != nil {
		return err.Error()
	}
	state, err := receipt.Wait(ctx)
	switch state := state.(type) {
	case *amqp.StateAccepted:
		return "accepted"
	case *amqp.StateRejected:
		return string(state.Error.Condition)
	}
	return fmt.Sprint(state, err)
}

// signed is a SAS token of a policy (IoT Hub developer guide, "Control access to IoT Hub with SAS tokens").
func signed(host, policy, key string) string {
	secret, _ := base64.StdEncoding.DecodeString(key)
	expiry := time.Now().Add(time.Hour).Unix()
	mac := hmac.New(sha256.New, secret)
	fmt.Fprintf(mac, "%s\n%d", host, expiry)
	signature := url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	return fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&se=%d&skn=%s", host, signature, expiry, policy)
}

// The page shows the example as it is compiled and run here.
func TestOwnTestsPage(t *testing.T) {
	source, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	_, code, _ := strings.Cut(string(source), "\t// docs:start\n")
	code, _, _ = strings.Cut(code, "\t// docs:end\n")
	code = strings.ReplaceAll("\n"+code, "\n\t", "\n")
	page, err := os.ReadFile("../../docs/testing-with-the-hub.md")
	require.NoError(t, err)
	require.Contains(t, string(page), "```go"+code+"```")
}
