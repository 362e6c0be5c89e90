package app_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"downlink/bridge/bridgetest"
)

const lookupsYAML = `
version: 1
http: "off"
bridge:
  nats: {url: [%q]}
  hubs: [{name: main, embedded: true}]
  lookups:
    - {name: aliases, bucket: aliases}
    - {name: groups, file: %q}
  routes:
    - {name: all, subject: "all.{kind}", stream: COMMANDS, devices: "{group(kind)}"}
    - {name: rest, default: true, stream: COMMANDS, device: s-a, when: 'subject != "other.no"'}
    - {name: one, subject: "one.{alias}", stream: COMMANDS, start: all, device: '{lookup("aliases", alias)}'}
`

func TestNothingIsMappedBeforeTheLookups(t *testing.T) {
	t.Parallel()
	cloud, edge := bridgetest.RunNATS(t), bridgetest.RunNATS(t)
	hub := bridgetest.RunHub(t, "s-a", "s-b", "s-c")
	js := cloud.JetStream(t)
	cloud.CreateStream(t, "COMMANDS", "all.>", "one.>", "other.>")
	groups := filepath.Join(t.TempDir(), "groups.yaml")
	require.NoError(t, os.WriteFile(groups, []byte("pumps: [s-a, s-b, s-a]\n"), 0o600))
	publish(t, js, nats.NewMsg("one.c"))
	publish(t, js, nats.NewMsg("all.pumps"))

	b := runApp(t, hub, fmt.Sprintf(lookupsYAML, cloud.URL(), groups))
	waitReady(t, runApp(t, hub, relayConfig(edge, "s-a", "s-b", "s-c")))
	notReady(t, b, "lookup aliases: bucket aliases does not exist", "no message is mapped before it is read")
	kv, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "aliases"})
	require.NoError(t, err)
	_, err = kv.PutString(t.Context(), "c", "s-c")
	require.NoError(t, err)
	waitReady(t, b)

	subjects := map[string]string{}
	for _, m := range read(t, edge.JetStream(t), "EDGE", 3) {
		subjects[m.Headers().Get("Downlink-Device")] = m.Headers().Get("Downlink-Message-Id")
	}
	require.Len(t, subjects, 3)
	require.Equal(t, subjects["s-a"], subjects["s-b"])
	require.Regexp(t, `^COMMANDS:2:[0-9a-z]+:all$`, subjects["s-a"])

	// What no route takes goes to the default route, whose subject is all that the stream has.
	publish(t, js, nats.NewMsg("other.no"))
	publish(t, js, nats.NewMsg("other.x"))
	require.Equal(t, "COMMANDS:4:", read(t, edge.JetStream(t), "EDGE", 4)[3].Headers().Get("Downlink-Message-Id")[:11])

	publish(t, js, nats.NewMsg("one.nobody"))
	dead := read(t, js, "DOWNLINK_DEAD", 1)[0]
	require.Equal(t, "downlink.dead.absent.one", dead.Subject())
}
