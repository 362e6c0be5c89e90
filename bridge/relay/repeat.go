package relay

import "time"

const (
	// maxRemembered bounds the memory for repeats: far more than the 50 messages
	// that the hub can send again.
	maxRemembered = 1024
	// maxAge is how long an ID stands for the same message.
	maxAge = 48 * time.Hour
)

// repeats remembers what was published, by publication ID. Guarded by Relay.mu.
type repeats struct {
	byID  map[string]*remembered
	order []*remembered // oldest first
}

type remembered struct {
	id      string
	job     *job // nil once settled
	settled time.Time
}

// add returns j if it is the first of its ID, or else the job that was first, nil
// once that has its fate.
func (r *repeats) add(j *job, now time.Time) (first *job, settled bool) {
	id := j.publication.ID
	if id == "" {
		return j, false
	}
	if e := r.byID[id]; e != nil {
		if e.job != nil {
			return e.job, false
		}
		if now.Sub(e.settled) < maxAge {
			return nil, true
		}
		delete(r.byID, id)
	}
	if r.byID == nil {
		r.byID = make(map[string]*remembered)
	}
	e := &remembered{id: id, job: j}
	r.byID[id] = e
	r.order = append(r.order, e)
	for len(r.order) > maxRemembered {
		oldest := r.order[0]
		r.order[0] = nil
		r.order = r.order[1:]
		if r.byID[oldest.id] == oldest {
			delete(r.byID, oldest.id)
		}
	}
	return j, false
}

// settle notes that j has its fate.
func (r *repeats) settle(j *job, now time.Time) {
	if e := r.byID[j.publication.ID]; e != nil && e.job == j {
		e.job, e.settled = nil, now
	}
}

// forget makes the next message of j's ID a first one.
func (r *repeats) forget(j *job) {
	if e := r.byID[j.publication.ID]; e != nil && e.job == j {
		delete(r.byID, j.publication.ID)
	}
}
