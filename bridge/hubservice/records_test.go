package hubservice

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge"
)

var at = time.Date(2015, 7, 28, 16, 24, 48, 789e6, time.UTC)

// Bodies as documentation shows them, and what other hubs and versions may send.
var batches = []struct {
	name, body string
	want       []bridge.Record
	bad        int
}{
	{
		"the developer guide's example",
		`[{"originalMessageId":"0987654321","enqueuedTimeUtc":"2015-07-28T16:24:48.789Z","statusCode":"Success","description":"Success","deviceId":"123","deviceGenerationId":"abcdefghijklmnopqrstuvwxyz"},
		  {"originalMessageId":"m2","enqueuedTimeUtc":"2015-07-28T16:24:48.789Z","statusCode":"Expired","description":"Expired","deviceId":"d.1","deviceGenerationId":"x"}]`,
		[]bridge.Record{
			{MessageID: "0987654321", Device: "123", Status: bridge.StatusCompleted, At: at},
			{MessageID: "m2", Device: "d.1", Status: bridge.StatusExpired, At: at},
		}, 0,
	},
	{
		"each status code",
		`[{"originalMessageId":"a","statusCode":"DeliveryCountExceeded","description":"the delivery count is exceeded","deviceId":"d"},
		  {"originalMessageId":"b","statusCode":"Rejected","deviceId":"d"},{"originalMessageId":"c","statusCode":"Purged","deviceId":"d"}]`,
		[]bridge.Record{
			{MessageID: "a", Device: "d", Status: bridge.StatusExceeded, Text: "the delivery count is exceeded"},
			{MessageID: "b", Device: "d", Status: bridge.StatusRejected}, {MessageID: "c", Device: "d", Status: bridge.StatusPurged},
		}, 0,
	},
	{
		"the first documentation: PascalCase, numbers",
		`[{"OriginalMessageId":"m","EnqueuedTimeUtc":"2015-07-28T16:24:48.789","StatusCode":0,"Description":"Success","DeviceId":"123","DeviceGenerationId":"x"},
		  {"OriginalMessageId":"n","StatusCode":1,"DeviceId":"123"},{"OriginalMessageId":"o","StatusCode":2,"DeviceId":"123"},
		  {"OriginalMessageId":"p","StatusCode":3,"DeviceId":"123"},{"OriginalMessageId":"q","StatusCode":"4","DeviceId":"123"}]`,
		[]bridge.Record{
			{MessageID: "m", Device: "123", Status: bridge.StatusCompleted, At: at}, {MessageID: "n", Device: "123", Status: bridge.StatusExpired},
			{MessageID: "o", Device: "123", Status: bridge.StatusExceeded}, {MessageID: "p", Device: "123", Status: bridge.StatusRejected},
			{MessageID: "q", Device: "123", Status: bridge.StatusPurged},
		}, 0,
	},
	{
		"only a description, a new code, no ID, an odd time",
		`[{"originalMessageId":"a","description":"success","deviceId":"d"},
		  {"originalMessageId":"b","statusCode":"Teleported","description":"to\r\nMars","deviceId":"d"},
		  {"originalMessageId":null,"statusCode":"Success","deviceId":"d","enqueuedTimeUtc":"yesterday"}]`,
		[]bridge.Record{
			{MessageID: "a", Device: "d", Status: bridge.StatusCompleted},
			{MessageID: "b", Device: "d", Status: bridge.StatusUnknown, Text: "the hub says Teleported to Mars"},
			{Device: "d", Status: bridge.StatusCompleted},
		}, 0,
	},
	{
		"bad records do not spoil the others",
		`[1,null,{"originalMessageId":"a"},{"statusCode":{},"deviceId":"d"},{"deviceId":7},{"originalMessageId":"ok","statusCode":"Success","deviceId":"d"}]`,
		[]bridge.Record{{MessageID: "ok", Device: "d", Status: bridge.StatusCompleted}}, 5,
	},
	{"nothing", `[]`, nil, 0},
}

func TestParseFeedback(t *testing.T) {
	for _, b := range batches {
		t.Run(b.name, func(t *testing.T) {
			got, bad, err := parseFeedback([]byte(b.body))
			require.NoError(t, err)
			require.Equal(t, b.want, got)
			require.Equal(t, b.bad, bad)
		})
	}
	for _, body := range []string{"", "{}", "secret", `[{"deviceId":`, `{"deviceId":"d"}`} {
		_, _, err := parseFeedback([]byte(body))
		require.EqualError(t, err, "the batch is no JSON array", body)
	}
	long := strings.Repeat("x", 257)
	_, bad, err := parseFeedback([]byte(`[{"deviceId":"` + long + `"},{"deviceId":"d","originalMessageId":"` + long + `"}]`))
	require.NoError(t, err)
	require.Equal(t, 2, bad)
}

func FuzzParseFeedback(f *testing.F) {
	for _, b := range batches {
		f.Add([]byte(b.body))
	}
	f.Add([]byte(`[{"deviceId":"d","statusCode":1e400,"description":"\u0000SharedAccessSignature sr=x&sig=y"}]`))
	known := map[string]bool{bridge.StatusUnknown: true}
	for _, s := range statuses {
		known[s] = true
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		records, bad, err := parseFeedback(body)
		if err != nil && (len(records) > 0 || bad > 0) {
			t.Fatal("records beside an error")
		}
		for _, r := range records {
			if r.Device == "" || len(r.Device) > maxFeedbackID || len(r.MessageID) > maxFeedbackID || !known[r.Status] ||
				strings.ContainsAny(r.Text, "\r\n\x00") || strings.Contains(r.Text, "SharedAccessSignature") {
				t.Fatalf("%+v", r)
			}
		}
	})
}
