package emulator_test

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator"
	"downlink/bridge/internal/sas"
)

// Which of Azure's default policies may do what (IoT Hub developer guide, "Control access").
func TestWhatEachPolicyMayDo(t *testing.T) {
	h := runHub(t, emulator.Options{Devices: []string{"d1"}})
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: h.RootCAs(), ServerName: "localhost"}}}
	t.Cleanup(client.CloseIdleConnections)
	type rights struct{ send, feedback, read, write, purge, feedbackREST, device bool }
	for policy, want := range map[string]rights{
		"iothubowner":       {send: true, feedback: true, read: true, write: true, purge: true, feedbackREST: true, device: true},
		"service":           {send: true, feedback: true, purge: true, feedbackREST: true},
		"device":            {device: true},
		"registryRead":      {read: true},
		"registryReadWrite": {read: true, write: true},
	} {
		t.Run(policy, func(t *testing.T) {
			request := func(method, path, body string) bool {
				t.Helper()
				r, err := http.NewRequestWithContext(t.Context(), method, "https://"+h.HTTPAddr()+path+"?api-version=2021-04-12", strings.NewReader(body))
				require.NoError(t, err)
				r.Header.Set("Authorization", policyToken(t, h, policy))
				r.Header.Set("If-Match", "*")
				res, err := client.Do(r)
				require.NoError(t, err)
				res.Body.Close()
				if res.StatusCode != http.StatusUnauthorized {
					require.Less(t, res.StatusCode, 300, "%s %s", method, path)
				}
				return res.StatusCode != http.StatusUnauthorized
			}
			attached := func(attach func(*amqp.Session) error) bool {
				t.Helper()
				s := dialSession(t, h)
				require.EqualValues(t, 200, putToken(t, s, h.Hostname(), policyToken(t, h, policy)), "the token is good for what it is")
				err := attach(s)
				if err == nil {
					return true
				}
				var e *amqp.Error
				require.ErrorAs(t, err, &e)
				require.Equal(t, amqp.ErrCondUnauthorizedAccess, e.Condition)
				return false
			}
			got := rights{
				send: attached(func(s *amqp.Session) error {
					_, err := s.NewSender(t.Context(), "/messages/devicebound", nil)
					return err
				}),
				feedback: attached(func(s *amqp.Session) error {
					_, err := s.NewReceiver(t.Context(), "/messages/serviceBound/feedback", nil)
					return err
				}),
				read:         request(http.MethodGet, "/devices/d1", ""),
				write:        request(http.MethodPut, "/devices/d1", `{"deviceId":"d1"}`),
				purge:        request(http.MethodDelete, "/devices/d1/commands", ""),
				feedbackREST: request(http.MethodGet, "/messages/serviceBound/feedback", ""),
			}
			text, err := h.ConnectionString(policy)
			require.NoError(t, err)
			cs, err := sas.Parse(text)
			require.NoError(t, err)
			o := options(t, h, "d1").SetPassword(sas.Sign("localhost/devices/d1", policy, cs.Key, time.Now().Add(time.Hour)))
			_, err = connect(t, o)
			got.device = err == nil
			require.Equal(t, want, got)
		})
	}
}
