package mapping

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// valueText writes a result as a text; false for nil.
func valueText(v any) (string, bool, error) {
	switch v := v.(type) {
	case nil:
		return "", false, nil
	case string:
		return v, true, nil
	case bool:
		return strconv.FormatBool(v), true, nil
	case int:
		return strconv.Itoa(v), true, nil
	case int64:
		return strconv.FormatInt(v, 10), true, nil
	case uint64:
		return strconv.FormatUint(v, 10), true, nil
	case float64:
		return floatText(v)
	case time.Time:
		return v.Format(time.RFC3339Nano), true, nil
	case []byte:
		return "", false, errors.New("gives bytes; a field takes text, a number, true or false")
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int: // such as time.Month
		return strconv.FormatInt(r.Int(), 10), true, nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return strconv.FormatUint(r.Uint(), 10), true, nil
	case reflect.Float32:
		return floatText(r.Float())
	case reflect.Slice, reflect.Array:
		return "", false, errors.New("gives a list; a field takes text, a number, true or false (pick one entry, or use join or toJSON)")
	case reflect.Map:
		return "", false, errors.New("gives an object; a field takes text, a number, true or false (pick one entry, or use toJSON)")
	}
	return "", false, fmt.Errorf("gives a value of type %T; a field takes text, a number, true or false", v)
}

// DurationText writes a duration as an operator would: 49h, not 49h0m0s.
func DurationText(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// floatText writes the shortest text that reads back the same, in JSON's style.
func floatText(f float64) (string, bool, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return "", false, errors.New("is not a finite number")
	}
	format := byte('f')
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	text := strconv.FormatFloat(f, format, -1, 64)
	if format == 'e' { // e-07 becomes e-7, as in JSON
		text = strings.Replace(text, "e-0", "e-", 1)
	}
	return text, true, nil
}

// decodeJSON decodes one JSON value with integers kept as integers.
func decodeJSON(b []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	err := d.Decode(&v)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errors.New("more after the value")
		}
	}
	if err != nil {
		// The decoder's text quotes the payload.
		at := d.InputOffset()
		if bad := (*json.SyntaxError)(nil); errors.As(err, &bad) {
			at = bad.Offset
		}
		return nil, fmt.Errorf("not valid JSON near byte %d", at)
	}
	return plainNumbers(v), nil
}

func plainNumbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		return plainNumber(v)
	case map[string]any:
		for k, e := range v {
			v[k] = plainNumbers(e)
		}
	case []any:
		for i, e := range v {
			v[i] = plainNumbers(e)
		}
	}
	return v
}

func plainNumber(n json.Number) any {
	s := string(n)
	if !strings.ContainsAny(s, ".eE") {
		if i, err := strconv.Atoi(s); err == nil {
			return i
		}
		return s // beyond 64 bits a float would change the digits
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return s
	}
	return f
}
