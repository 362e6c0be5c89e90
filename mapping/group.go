package mapping

import (
	"errors"
	"fmt"
	"strings"
)

// maxDevices bounds what one message can become.
const maxDevices = 100_000

// several maps a message for each device of a route with devices. What is wrong with
// one device is that one's result alone.
func (t *Table) several(r *route, s *cloudScope, results []Result) []Result {
	res := Result{Route: r.name}
	if res.Drop, res.Err = t.before(r, s); res.Drop != "" || res.Err != nil {
		return append(results, t.ended(r, s, res))
	}
	list, err := r.deviceList(s)
	if err != nil {
		return append(results, t.failed(r, s, res, err))
	}
	if len(list) == 0 {
		res.Drop = string(ReasonNoDevices)
		return append(results, t.ended(r, s, res))
	}
	seen := make(map[string]struct{}, len(list))
	var first *Envelope // whose fields the others share, unless something depends on the device
	for i, v := range list {
		res := Result{Route: r.name}
		id, err := r.listed(i, v)
		if id != "" {
			if _, twice := seen[id]; twice {
				continue
			}
			seen[id] = struct{}{}
			res.Device = id
		}
		if err != nil {
			results = append(results, t.failed(r, s, res, err))
			continue
		}
		e := &Envelope{}
		if first != nil && !r.perTarget {
			*e = *first
			e.Device = id
			err = checkSize(e)
		} else if err = t.fill(e, nil, r, s, id); err == nil {
			first = e
		}
		if err != nil {
			results = append(results, t.failed(r, s, res, err))
			continue
		}
		res.Envelope = e
		results = append(results, res)
	}
	return results
}

// deviceList gives the entries of a route's devices, unchecked.
func (r *route) deviceList(s scope) ([]any, *RouteError) {
	fail := func(reason Reason, err error) *RouteError {
		return &RouteError{Field: "devices", Reason: reason, Err: err}
	}
	var list []any
	if v, ok, verr := r.devices.value(s); verr != nil {
		return nil, fail(verr.reason, verr.err)
	} else if !ok {
		return nil, fail(ReasonAbsent, r.devices.parts[0].absent().err)
	} else if many, isList := asList(v); isList {
		list = many
	} else {
		text, _, err := valueText(v)
		if err != nil {
			return nil, fail(ReasonExpression, err)
		}
		for _, id := range splitDevices(text) {
			list = append(list, id)
		}
	}
	if len(list) > maxDevices {
		return nil, fail(ReasonManyDevices, fmt.Errorf("gives %d devices; one message goes to at most %d", len(list), maxDevices))
	}
	return list, nil
}

// listed checks one entry of the list. The ID is empty if there is none.
func (r *route) listed(i int, v any) (string, *RouteError) {
	field := fmt.Sprintf("devices[%d]", i)
	id, ok, err := valueText(v)
	switch {
	case err != nil:
		return "", &RouteError{Field: field, Reason: ReasonBadDevice, Err: err}
	case !ok:
		return "", &RouteError{Field: field, Reason: ReasonAbsent, Err: errors.New("is null; a list of devices has texts")}
	}
	if err := r.checkDevice(field, id); err != nil {
		if err.Reason == ReasonBadDevice {
			id = "" // it may be anything
		}
		return id, err
	}
	return id, nil
}

// asList returns a list's entries; false if v is none.
func asList(v any) ([]any, bool) {
	switch v := v.(type) {
	case []any:
		return v, true
	case []string:
		list := make([]any, len(v))
		for i, s := range v {
			list[i] = s
		}
		return list, true
	}
	return nil, false
}

// splitDevices takes a text of device IDs apart at its commas.
func splitDevices(s string) []string {
	var ids []string
	for id := range strings.SplitSeq(s, ",") {
		if id = strings.TrimSpace(id); id != "" {
			ids = append(ids, id)
		}
	}
	return ids
}
