package config

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"downlink/mapping"
)

// setScalar reads one value as text, from wherever it comes: the file, the
// environment, a flag or the table of defaults. The error shows the value.
func setScalar(v reflect.Value, text string) error {
	switch p := v.Addr().Interface().(type) {
	case *Secret:
		*p = NewSecret(strings.TrimRight(text, "\r\n"))
	case *string:
		*p = text
	case **bool:
		b, err := parseBool(text)
		*p = &b
		return err
	case *bool:
		var err error
		*p, err = parseBool(text)
		return err
	case *time.Duration:
		var err error
		*p, err = parseDuration(text)
		return err
	case *int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%s is not a whole number", show(text))
		}
		*p = n
	case *int64:
		var err error
		*p, err = parseSize(text)
		return err
	case *float64:
		if !decimal.MatchString(text) {
			return fmt.Errorf("%s is not a number, such as 2 or 0.5", show(text))
		}
		var err error
		if *p, err = strconv.ParseFloat(text, 64); err != nil {
			return fmt.Errorf("%s is too large a number", show(text))
		}
	default:
		return fmt.Errorf("a field of type %s cannot be read", v.Type())
	}
	return nil
}

// decimal is a number without exponent and sign tricks: nobody paces a hub at 1e3 or NaN.
var decimal = regexp.MustCompile(`^-?\d+(\.\d+)?$`)

func parseBool(text string) (bool, error) {
	switch text {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%s is neither true nor false", show(text))
}

var (
	days     = regexp.MustCompile(`^(\d+)d(.*)$`)
	duration = regexp.MustCompile(`^[-+]?((\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h))+$`) // Go's, however large
)

// parseDuration takes Go's durations and whole days before them: 90s, 1h30m, 7d, 1d12h.
func parseDuration(text string) (time.Duration, error) {
	wrong := fmt.Errorf("%s is not a duration; write a number with its unit, such as 500ms, 10s, 1h30m or 7d", show(text))
	large := fmt.Errorf("%s is too large; a duration has at most 106751d", show(text))
	rest, total := text, time.Duration(0)
	if m := days.FindStringSubmatch(text); m != nil {
		if rest = m[2]; strings.HasPrefix(rest, "-") || strings.HasPrefix(rest, "+") || rest != "" && !duration.MatchString(rest) {
			return 0, wrong
		}
		n, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil || n > math.MaxInt64/int64(24*time.Hour) {
			return 0, large
		}
		total = time.Duration(n) * 24 * time.Hour
		if rest == "" {
			return total, nil
		}
	}
	d, err := time.ParseDuration(rest)
	switch {
	case err != nil && !duration.MatchString(rest):
		return 0, wrong
	case err != nil, total+d < total && total > 0: // only its size is wrong
		return 0, large
	}
	return total + d, nil
}

// ParseDuration reads a duration as the file has it: Go's, with whole days before them, such as 90s or 1d12h.
func ParseDuration(text string) (time.Duration, error) { return parseDuration(text) }

// FormatDuration writes what ParseDuration reads, as an operator would: 1h, not 1h0m0s.
func FormatDuration(d time.Duration) string { return formatDuration(d) }

var (
	size      = regexp.MustCompile(`^(\d+) ?([A-Za-z]*)$`)
	sizeUnits = map[string]int64{
		"": 1, "B": 1,
		"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
		"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40,
	}
)

// parseSize takes bytes as a whole number or with a unit: 1048576, 64KiB, 1GiB, 2GB.
func parseSize(text string) (int64, error) {
	wrong := fmt.Errorf("%s is not a size; write bytes as a whole number, or with a unit such as 64KiB, 512MiB or 1GiB", show(text))
	m := size.FindStringSubmatch(text)
	if m == nil {
		return 0, wrong
	}
	unit, ok := sizeUnits[strings.ToUpper(m[2])]
	n, err := strconv.ParseInt(m[1], 10, 64)
	if !ok || err != nil || n > math.MaxInt64/unit {
		return 0, wrong
	}
	return n * unit, nil
}

// formatDuration writes a duration as an operator would: 720h0m0s is 30d.
func formatDuration(d time.Duration) string {
	if d >= 24*time.Hour && d%(24*time.Hour) == 0 {
		return strconv.FormatInt(int64(d/(24*time.Hour)), 10) + "d"
	}
	return mapping.DurationText(d)
}

// oneLine refuses what no text of this file may hold.
func oneLine(text string) error {
	for _, r := range text {
		if r < ' ' || r == 0x7f {
			return errors.New("the text has a control character or more than one line; write one line")
		}
	}
	return nil
}
