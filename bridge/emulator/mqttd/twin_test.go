package mqttd_test

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/fault"
	"downlink/bridge/emulator/mqttd"
	"downlink/bridge/emulator/twin"
)

func (f *fixture) generation() string {
	f.t.Helper()
	d, err := f.store.Get("d1")
	require.NoError(f.t, err)
	return d.GenerationID
}

// Strings as the developer guide has them.
func TestTwin(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{})
	p, _ := f.connect()
	p.publish("$iothub/twin/GET/?$rid=1", 0, "")
	p.publish("$iothub/twin/PATCH/properties/reported/?$rid=2", 0, `{"before":1}`)
	p.ping() // no subscription, no answer
	p.subscribe(0, "$iothub/twin/res/#")
	p.publish("$iothub/twin/GET/?$rid=ab1", 0, "")
	body, m := p.next()
	require.Equal(t, "$iothub/twin/res/200/?$rid=ab1", m.TopicName)
	require.JSONEq(t, `{"desired":{"$version":1},"reported":{"before":1,"$version":2}}`, body)
	p.publish("$iothub/twin/PATCH/properties/reported/?$rid=2", 0, `{"a":1,"before":null}`)
	body, m = p.next()
	require.Equal(t, "$iothub/twin/res/204/?$rid=2&$version=3", m.TopicName)
	require.Empty(t, body)
	p.publish("$iothub/twin/PATCH/properties/reported/?$rid=3", 0, `{"$a":1}`)
	_, m = p.next()
	require.Equal(t, "$iothub/twin/res/400/?$rid=3", m.TopicName)
	p.publish("$iothub/twin/PATCH/properties/reported/?$rid=4", 1, `{"b":1}`)
	_, m = p.next()
	require.Equal(t, "$iothub/twin/res/204/?$rid=4&$version=4", m.TopicName)
	require.IsType(t, &packets.PubackPacket{}, p.read())
	p.publish("$iothub/twin/GET/", 0, "")
	require.Empty(t, p.cut(), "a request without $rid")
}

func TestDesiredPropertiesAreTold(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{})
	desire := func(patch string) twin.Twin {
		got, err := f.server.UpdateTwin("d1", f.generation(), twin.Change{Desired: []byte(patch)})
		require.NoError(t, err)
		return got
	}
	desire(`{"nobody":"there"}`)
	p, _ := f.connect()
	desire(`{"not":"subscribed"}`)
	p.subscribe(1, "$iothub/twin/PATCH/properties/desired/#", "$iothub/twin/res/#")
	require.Equal(t, int64(4), desire(`{"a":{"b":1}}`).Desired.Version)
	body, m := p.next()
	require.Equal(t, "$iothub/twin/PATCH/properties/desired/?$version=4", m.TopicName)
	require.JSONEq(t, `{"a":{"b":1},"$version":4}`, body)
	p.publish("$iothub/twin/GET/?$rid=9", 0, "")
	body, _ = p.next()
	require.JSONEq(t, `{"desired":{"a":{"b":1},"nobody":"there","not":"subscribed","$version":4},"reported":{"$version":1}}`, body)

	// A persistent session's subscription stands; versions come in order.
	p.Close()
	f.offline()
	p, _ = f.connect()
	var writers sync.WaitGroup
	for range 20 {
		writers.Go(func() {
			_, err := f.server.UpdateTwin("d1", f.generation(), twin.Change{Desired: []byte(`{"n":1}`)})
			require.NoError(t, err)
		})
	}
	for version := 5; version < 25; version++ {
		_, m = p.next()
		require.True(t, strings.HasSuffix(m.TopicName, "?$version="+strconv.Itoa(version)), "%d: %s", version, m.TopicName)
	}
	writers.Wait()

	// The twin goes with its device.
	require.NoError(t, f.store.Delete("d1", "*"))
	f.create("d1")
	p, _ = f.connect()
	p.subscribe(0, "$iothub/twin/res/#")
	p.publish("$iothub/twin/GET/?$rid=9", 0, "")
	body, _ = p.next()
	require.JSONEq(t, `{"desired":{"$version":1},"reported":{"$version":1}}`, body)
}

func TestMethod(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{})
	type answer struct {
		mqttd.MethodResult
		err error
	}
	invoke := func(m mqttd.Method) <-chan answer {
		out := make(chan answer, 1)
		go func() {
			r, err := f.server.Invoke(t.Context(), "d1", m)
			out <- answer{r, err}
		}()
		return out
	}
	require.ErrorIs(t, (<-invoke(mqttd.Method{Name: "m"})).err, mqttd.ErrNotOnline)
	p, _ := f.connect()
	require.ErrorIs(t, (<-invoke(mqttd.Method{Name: "m"})).err, mqttd.ErrNotOnline, "it takes no methods")
	require.ErrorIs(t, (<-invoke(mqttd.Method{Name: "m", ConnectTimeout: time.Millisecond})).err, mqttd.ErrNotOnline)
	require.ErrorIs(t, (<-invoke(mqttd.Method{Name: "m", Payload: make([]byte, 128*1024+1)})).err, mqttd.ErrMethodTooLarge)
	require.ErrorContains(t, (<-invoke(mqttd.Method{})).err, "no name")

	early := invoke(mqttd.Method{Name: "re boot", Payload: []byte(`{"in":5}`), ConnectTimeout: wait})
	p.subscribe(0, "$iothub/methods/POST/#")
	body, m := p.next()
	require.Equal(t, "$iothub/methods/POST/re%20boot/?$rid=1", m.TopicName)
	require.Equal(t, byte(0), m.Qos)
	require.Equal(t, `{"in":5}`, body)

	// Answers go by their request's $rid, whatever the order; others have no effect.
	later := invoke(mqttd.Method{Name: "second"})
	_, m = p.next()
	require.Equal(t, "$iothub/methods/POST/second/?$rid=2", m.TopicName)
	p.publish("$iothub/methods/res/200/?$rid=77", 0, "{}")
	p.publish("$iothub/methods/res/200/?$rid=x", 0, "{}")
	p.publish("$iothub/methods/res/404/?$rid=2", 0, `"no"`)
	require.Equal(t, answer{mqttd.MethodResult{Status: 404, Payload: []byte(`"no"`)}, nil}, <-later)
	p.published("$iothub/methods/res/200/?$rid=1", `{}`)
	require.Equal(t, 200, (<-early).Status)

	require.ErrorIs(t, (<-invoke(mqttd.Method{Name: "slow", ResponseTimeout: time.Millisecond})).err, mqttd.ErrNoAnswer)
	p.next()
	p.publish("$iothub/methods/res/200/?$rid=3", 0, "too late")
	p.ping()

	gone := invoke(mqttd.Method{Name: "gone"})
	p.next()
	p.Close()
	require.ErrorIs(t, (<-gone).err, mqttd.ErrNoAnswer)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := f.server.Invoke(ctx, "d2", mqttd.Method{Name: "m", ConnectTimeout: wait})
	require.ErrorIs(t, err, context.Canceled)
	for _, topic := range []string{"$iothub/methods/res/ok/?$rid=1", "$iothub/methods/res/200/"} {
		f.offline()
		p, _ = f.connect()
		p.publish(topic, 0, "")
		require.Empty(t, p.cut())
	}
}

func TestOnlyTheDocumentedFilters(t *testing.T) {
	f := newFixture(t, mqttd.Behaviour{})
	p, _ := f.connect()
	require.Equal(t, []byte{1, 0x80, 1, 1, 0x80, 1, 0x80, 0x80, 0x80}, p.subscribe(2, devicebound, "devices/d2/messages/devicebound/#",
		"$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#", "#", "$iothub/methods/POST/#", "$iothub/methods/POST/+/#",
		"devices/d1/#", "devices/+/messages/devicebound/#"))
	require.Equal(t, []byte{0}, p.subscribe(0, devicebound))
	f.send("1")
	_, m := p.next()
	require.Equal(t, byte(0), m.Qos, "the newest subscription counts")
}

// The hub cuts a silent device after one and a half times its keep-alive, and
// after 1767 seconds whatever it asked for.
func TestKeepAlive(t *testing.T) {
	for asked, silence := range map[uint16]time.Duration{
		0: 1767 * time.Second, 60: 90 * time.Second, 1177: 1765500 * time.Millisecond, 1178: 1767 * time.Second, 65535: 1767 * time.Second,
	} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			f := newPipe(t, start.Add(24*time.Hour))
			p := f.pipe()
			p.write(hello(func(c *packets.ConnectPacket) { c.Keepalive = asked }))
			p.read()
			require.Empty(t, p.cut())
			require.Equal(t, silence, time.Since(start))
		})
	}
}

// A subscription's first message comes after the packet that tells the device of it, whoever has one for it at
// that moment: after the SUBACK, and for a session that is resumed after the CONNACK.
func TestNothingComesBeforeItsAcknowledgement(t *testing.T) {
	const methods = "$iothub/methods/POST/#"
	f := newFixture(t, mqttd.Behaviour{})
	stop := make(chan struct{})
	var busy sync.WaitGroup
	busy.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = f.server.UpdateTwin("d1", f.generation(), twin.Change{Desired: []byte(`{"n":1}`)})
			}
		}
	})
	for range 50 {
		p, _ := f.connect(clean)
		p.subscribe(0, "$iothub/twin/PATCH/properties/desired/#") // reads the SUBACK first of all
		p.Close()
	}
	close(stop)
	busy.Wait()

	p, _ := f.connect()
	p.subscribe(0, methods)
	p.Close()
	f.offline()
	f.faults.Add(fault.MQTTConnect, 1, nil, fault.Action{Kind: fault.Delay, Delay: 300 * time.Millisecond, After: true})
	p = f.dial()
	p.write(hello())
	require.Eventually(t, func() bool { return len(f.server.Connections()) == 1 }, wait, time.Millisecond, "on its way in")
	called := make(chan error, 1)
	go func() {
		_, err := f.server.Invoke(t.Context(), "d1", mqttd.Method{Name: "m", ConnectTimeout: wait})
		called <- err
	}()
	require.IsType(t, &packets.ConnackPacket{}, p.read())
	_, m := p.next()
	require.Equal(t, "$iothub/methods/POST/m/?$rid=1", m.TopicName)
	p.publish("$iothub/methods/res/200/?$rid=1", 0, "{}")
	require.NoError(t, <-called)
}
