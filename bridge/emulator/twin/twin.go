// Package twin keeps the device twins of the embedded hub in memory: for every
// device tags, desired and reported properties, with their versions, and the
// rules for changing them (developer guide, "Understand and use device twins").
// It knows no protocol.
package twin

import (
	"encoding/json"
	"maps"
	"sync"
	"time"
)

// Twin is a snapshot of one device's twin.
type Twin struct {
	Version           int64 // of the whole; 1 for a device whose twin nobody has touched
	Tags              map[string]any
	Desired, Reported Section
}

// Section is the desired or the reported properties.
type Section struct {
	Version    int64 // $version, from 1
	Properties map[string]any
	metadata   map[string]any
	updated    time.Time
}

// DeviceJSON is the twin as a device reads it over MQTT: both sections with
// their $version, and nothing else.
func (t Twin) DeviceJSON() []byte {
	text, err := json.Marshal(map[string]any{"desired": t.Desired.object(false), "reported": t.Reported.object(false)})
	if err != nil {
		panic(err) // it was decoded from JSON
	}
	return text
}

// MarshalJSON writes the section as the service reads it: the properties,
// $version and $metadata.
func (s Section) MarshalJSON() ([]byte, error) { return json.Marshal(s.object(true)) }

func (s Section) object(metadata bool) map[string]any {
	o := make(map[string]any, len(s.Properties)+2)
	maps.Copy(o, s.Properties)
	o["$version"] = s.Version
	if metadata {
		m := make(map[string]any, len(s.metadata)+1)
		maps.Copy(m, s.metadata)
		m["$lastUpdated"] = stamp(s.updated)
		o["$metadata"] = m
	}
	return o
}

// stamp is the service's date format.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.0000000Z") }

// Store keeps the twins. A twin belongs to a device and its generation: a device
// that is deleted and made again starts with a new one. Safe for concurrent use.
type Store struct {
	now func() time.Time

	mu    sync.Mutex
	twins map[string]*entry // by device; only those that were changed
}

type entry struct {
	generation string

	mu   sync.Mutex
	twin Twin // its maps are never changed, only replaced
}

// New makes an empty store; now may be nil for time.Now.
func New(now func() time.Time) *Store {
	if now == nil {
		now = time.Now
	}
	return &Store{now: now, twins: map[string]*entry{}}
}

func fresh() Twin {
	empty := func() Section { return Section{Version: 1, Properties: map[string]any{}} }
	return Twin{Version: 1, Tags: map[string]any{}, Desired: empty(), Reported: empty()}
}

// Get returns a device's twin. Its maps are shared: read only.
func (s *Store) Get(device, generation string) Twin {
	s.mu.Lock()
	e := s.twins[device]
	s.mu.Unlock()
	if e == nil || e.generation != generation {
		return fresh()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.twin
}

func (s *Store) entry(device, generation string) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.twins[device]
	if e == nil || e.generation != generation {
		e = &entry{generation: generation, twin: fresh()}
		s.twins[device] = e
	}
	return e
}

// Report merges a patch, a JSON object, into the reported properties and
// returns their new version.
func (s *Store) Report(device, generation string, patch []byte) (version int64, err error) {
	p, err := parse(patch, sectionLimit, false)
	if err != nil {
		return 0, err
	}
	e := s.entry(device, generation)
	e.mu.Lock()
	defer e.mu.Unlock()
	next, err := e.twin.Reported.merged(p, s.now(), 0)
	if err != nil {
		return 0, err
	}
	e.twin.Reported = next
	e.twin.Version++
	return next.Version, nil
}

// Change is what a service changes in a twin: nil fields stay as they are, the
// others are JSON objects.
type Change struct {
	Tags, Desired []byte
	// Replace puts the objects in the place of what is there; otherwise they are merged
	// into it, and null takes a property away.
	Replace bool
}

// Update changes a twin and returns it. If the desired properties change, told
// is called before Update returns, in the order of the versions, with the new version
// and the patch as a device gets it; it may be nil and must not use the store.
func (s *Store) Update(device, generation string, c Change, told func(version int64, patch []byte)) (Twin, error) {
	var tags, desired map[string]any
	var err error
	if c.Tags != nil {
		if tags, err = parse(c.Tags, tagsLimit, false); err != nil {
			return Twin{}, wrap("tags", err)
		}
	}
	if c.Desired != nil {
		if desired, err = parse(c.Desired, sectionLimit, true); err != nil {
			return Twin{}, wrap("desired properties", err)
		}
	}
	e := s.entry(device, generation)
	e.mu.Lock()
	defer e.mu.Unlock()
	next := e.twin
	if tags != nil {
		if c.Replace {
			next.Tags = merge(nil, tags)
		} else if next.Tags = merge(next.Tags, tags); size(next.Tags) > tagsLimit {
			return Twin{}, wrap("tags", errTooLarge(tagsLimit))
		}
	}
	if desired != nil {
		before := next.Desired
		if c.Replace {
			before.Properties, before.metadata = nil, nil
			for name := range next.Desired.Properties {
				if _, kept := desired[name]; !kept {
					desired[name] = nil // the device is told what went away
				}
			}
		}
		if next.Desired, err = before.merged(desired, s.now(), before.Version+1); err != nil {
			return Twin{}, wrap("desired properties", err)
		}
	}
	next.Version++
	e.twin = next
	if desired != nil && told != nil {
		desired["$version"] = next.Desired.Version
		text, err := json.Marshal(desired)
		if err != nil {
			panic(err) // it was decoded from JSON
		}
		told(next.Desired.Version, text)
	}
	return next, nil
}

// Forget drops the twins of devices that are gone.
func (s *Store) Forget(gone func(device, generation string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.twins, func(device string, e *entry) bool { return gone(device, e.generation) })
}
