package config_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"downlink/bridge/config"
)

// TestWarnings: what is odd but not wrong is said with its place, and the rest is not.
func TestWarnings(t *testing.T) {
	text := []byte(`version: 1
bridge:
  hubs: [{embedded: true}, {name: deaf, feedback: never, connection_string: "HostName=h.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0"}]
  routes:
    - {subject: "z.>", drop: tests}
    - {subject: "a.{x}", stream: S, also: true, device: "{x}"}
    - {subject: "a.{y}", stream: S, device: "{y}"}
    - {subject: "a.{x}", stream: T, device: "{x}"}
    - subject: "a.b"
      stream: S
      device: b
      message: {correlation_id: "{{sequence}}", user_id: "{{{subject}}}"}
      properties:
        - {name: verb, value: "{{verb}}"}
        - {name: empty, value: ""}
        - {name: object, value: '{{"a": "{subject}"}}'}
        - {headers: "X-*", strip: "Y-"}
        - {headers: "X-*", strip: "X-"}
        - {headers: "*", strip: "Z-"}
        - {headers: "X-*", strip: "X-Y-"}
    - {subject: "z.{x}", source: core, device: "{x}"}
    - {subject: "y.{x}", source: core, device: "{x}", hub: deaf, message: {ack: full}}
    - {subject: "x.{x}", source: core, device: "{x}", hub: deaf, message: {ack: none}}
    - {subject: "w.{x}", source: core, device: "{x}", message: {ack: full}}
relay:
  devices: [{embedded: d}]
  publish: {subject: "edge.{device}.{{verb}}"}
`)
	want := []string{
		`c.yaml:9: bridge.routes[4].subject: "a.b": no message ever gets here: routes[2] (route-3) takes all of them; put this route before it, or set also: true there`,
		`c.yaml:12: bridge.routes[4].message.correlation_id: "{{sequence}}": doubled braces stand for literal ones: {{sequence}} is the text {sequence}; write {sequence} for a value`,
		`c.yaml:14: bridge.routes[4].properties[0].value: "{{verb}}": doubled braces stand for literal ones: {{verb}} is the text {verb}; write {verb} for a value`,
		`c.yaml:17: bridge.routes[4].properties[3].strip: "Y-": no header that matches "X-*" begins with it, so nothing is stripped (letter case counts)`,
		`c.yaml:21: bridge.routes[5].subject: "z.{x}": no message ever gets here: routes[0] (route-1) takes all of them; put this route before it, or set also: true there`,
		`c.yaml:22: bridge.routes[6].message.ack: full, but hub deaf has feedback: never, so what the hub tells is not read here and each outcome becomes unknown`,
		`c.yaml:27: relay.publish.subject: "edge.{device}.{{verb}}": doubled braces stand for literal ones: {{verb}} is the text {verb}; write {verb} for a value`,
	}
	c, err := config.Parse("c.yaml", text)
	require.NoError(t, err)
	require.Equal(t, want, lines(c.Warnings))
	c, err = config.LoadBytes("c.yaml", text, config.LoadOptions{NoEnvironment: true})
	require.NoError(t, err)
	require.Equal(t, want, lines(c.Warnings))
}

func lines(list []*config.Error) []string {
	var all []string
	for _, e := range list {
		all = append(all, e.Error())
	}
	return all
}

// TestExamplesAreNotOdd: what people copy gives no warning.
func TestExamplesAreNotOdd(t *testing.T) {
	files, err := filepath.Glob("../../configs/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		c, err := config.Parse(file, b)
		require.NoError(t, err)
		require.Empty(t, c.Warnings)
	}
}
