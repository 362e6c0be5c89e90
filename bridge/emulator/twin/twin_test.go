package twin_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"downlink/bridge/emulator/twin"
)

func at() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 678900000, time.UTC) }

func TestReport(t *testing.T) {
	s := twin.New(at)
	require.JSONEq(t, `{"desired":{"$version":1},"reported":{"$version":1}}`, string(s.Get("d", "1").DeviceJSON()))
	v, err := s.Report("d", "1", []byte(`{"a":1,"o":{"x":true,"y":[1,{"z":"t"}]},"gone":"soon"}`))
	require.NoError(t, err)
	require.Equal(t, int64(2), v)
	v, err = s.Report("d", "1", []byte(`{"gone":null,"o":{"x":null,"n":1.5}}`))
	require.NoError(t, err)
	require.Equal(t, int64(3), v)
	require.JSONEq(t, `{"desired":{"$version":1},"reported":{"a":1,"o":{"y":[1,{"z":"t"}],"n":1.5},"$version":3}}`, string(s.Get("d", "1").DeviceJSON()))
	require.Equal(t, int64(3), s.Get("d", "1").Version)
	require.Equal(t, int64(1), s.Get("d", "2").Version, "another device of the same name")
	_, err = s.Report("d", "2", []byte(`{"b":1}`))
	require.NoError(t, err)
	require.JSONEq(t, `{"desired":{"$version":1},"reported":{"b":1,"$version":2}}`, string(s.Get("d", "2").DeviceJSON()))
}

func TestUpdate(t *testing.T) {
	s := twin.New(at)
	var told []string
	tell := func(version int64, patch []byte) { told = append(told, fmt.Sprint(version, " ", string(patch))) }
	_, err := s.Update("d", "1", twin.Change{Tags: []byte(`{"site":"b"}`)}, tell)
	require.NoError(t, err)
	require.Empty(t, told, "devices do not see tags")
	_, err = s.Update("d", "1", twin.Change{Desired: []byte(`{"a":{"b":1,"c":2},"$version":1,"$metadata":{"$lastUpdated":"then"}}`)}, tell)
	require.NoError(t, err)
	got, err := s.Update("d", "1", twin.Change{Tags: []byte(`{"floor":3}`), Desired: []byte(`{"a":{"b":null}}`)}, tell)
	require.NoError(t, err)
	require.Equal(t, []string{`2 {"$version":2,"a":{"b":1,"c":2}}`, `3 {"$version":3,"a":{"b":null}}`}, told)
	require.Equal(t, map[string]any{"site": "b", "floor": json.Number("3")}, got.Tags)
	text, err := json.Marshal(got.Desired)
	require.NoError(t, err)
	const when = `"$lastUpdated":"2026-01-02T03:04:05.6789000Z"`
	require.JSONEq(t, `{"a":{"c":2},"$version":3,"$metadata":{`+when+`,"$lastUpdatedVersion":3,"a":{`+when+`,"$lastUpdatedVersion":3,"c":{`+when+`,"$lastUpdatedVersion":2}}}}`, string(text))
	require.Equal(t, int64(4), got.Version)

	told = nil
	got, err = s.Update("d", "1", twin.Change{Desired: []byte(`{"n":1}`), Tags: []byte(`{}`), Replace: true}, tell)
	require.NoError(t, err)
	require.Equal(t, []string{`4 {"$version":4,"a":null,"n":1}`}, told)
	require.Equal(t, map[string]any{"n": json.Number("1")}, got.Desired.Properties)
	require.Empty(t, got.Tags)

	s.Forget(func(device, generation string) bool { return device == "d" && generation == "1" })
	require.Equal(t, int64(1), s.Get("d", "1").Version)
}

func TestBadPatches(t *testing.T) {
	s := twin.New(nil)
	deep := strings.Repeat(`{"a":`, 11) + `1` + strings.Repeat(`}`, 11)
	for patch, why := range map[string]string{
		`x`:                          "no JSON",
		``:                           "no JSON",
		`[1]`:                        "no JSON object",
		`{} {}`:                      "text after",
		`{"a.b":1}`:                  "the name",
		`{"$version":1}`:             "the name",
		`{"a b":1}`:                  "the name",
		`{"a\u0001":1}`:              "the name",
		`{"":1}`:                     "empty",
		`{"a":[null]}`:               "null",
		`{"a":4503599627370496}`:     "out of range",
		`{"a":99999999999999999999}`: "out of range",
		"{\"a\":\"\xff\"}":           "UTF-8",
		deep:                         "deeper than 10",
		`{"` + strings.Repeat("a", 1025) + `":1}`:   "longer than 1024",
		`{"a":"` + strings.Repeat("a", 4097) + `"}`: "longer than 4096",
		`{"a":[` + strings.Repeat(`"`+strings.Repeat("a", 4000)+`",`, 8) + `"` + strings.Repeat("a", 4000) + `"]}`: "larger than 32 KB",
		`{"a":1` + strings.Repeat(" ", 256*1024) + `}`:                                                             "larger than 32 KB",
	} {
		_, err := s.Report("d", "1", []byte(patch))
		require.ErrorContains(t, err, why, "%.60s", patch)
		_, err = s.Update("d", "1", twin.Change{Tags: []byte(patch)}, nil)
		require.ErrorContains(t, err, "tags: ", "%.60s", patch)
	}
	ok := strings.Repeat(`{"a":`, 10) + `1` + strings.Repeat(`}`, 10)
	_, err := s.Report("d", "1", []byte(ok))
	require.NoError(t, err)
	// Many good patches do not add up to a bad section.
	for i := range 20 {
		_, err = s.Report("d", "1", fmt.Appendf(nil, `{"k%d":%q}`, i, strings.Repeat("a", 4000)))
		if err != nil {
			break
		}
	}
	require.ErrorContains(t, err, "larger than 32 KB")
	require.Len(t, s.Get("d", "1").Reported.Properties, 1+8)
}

func FuzzUpdate(f *testing.F) {
	f.Add([]byte(`{"a":{"b":1,"c":[true,"x",1.5e3]}}`), []byte(`{"a":{"b":null},"d":null}`))
	f.Add([]byte(`{"a":1}`), []byte(`{"a":{"b":{}}}`))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		s := twin.New(at)
		for _, patch := range [][]byte{first, second} {
			_, _ = s.Report("d", "1", patch)
			_, _ = s.Update("d", "1", twin.Change{Tags: patch, Desired: patch}, func(_ int64, patch []byte) {
				if !json.Valid(patch) {
					t.Fatalf("%q", patch)
				}
			})
		}
		got := s.Get("d", "1")
		if !json.Valid(got.DeviceJSON()) {
			t.Fatal("not JSON")
		}
		if _, err := json.Marshal(got.Desired); err != nil {
			t.Fatal(err)
		}
	})
}
