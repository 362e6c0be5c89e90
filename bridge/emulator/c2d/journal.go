package c2d

import "time"

// Journal writes down what happens to messages, so that another process can go on
// with them. It is called with a device's lock held: it must not call the Store.
type Journal interface {
	// Accepted is called before the sender is told. After an error the message is refused.
	Accepted(device string, p Pending) error
	// Delivered is called when a message is handed to a session.
	Delivered(device string, sequence uint64, at time.Time)
	// Ended is called at a message's end, whichever it is.
	Ended(device string, sequence uint64, status string, at time.Time)
}

// Restore gives a device the queue that it had in another process, before anything
// is sent to it: last is the sequence number of its newest message, pending what
// had not ended, by sequence number. A device that is not registered is created. What has expired
// meanwhile ends at the next Sweep. Abandons of the other process are forgotten.
func (s *Store) Restore(id string, last uint64, pending []Pending) error {
	d := s.find(id)
	if d == nil {
		if _, err := s.Create(Device{ID: id}); err != nil {
			return err
		}
		d = s.find(id)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sequence = last
	for _, p := range pending {
		e := &entry{Pending: p, record: s.log.accept(id, p.Message.MessageID, p.Sequence, p.Enqueued)}
		e.State = Enqueued
		if s.rules.Counting == CountDeliveries {
			e.count = p.Deliveries
		}
		e.record.Delivered = p.Deliveries
		d.counts.Accepted++
		d.queue = append(d.queue, e)
		s.schedule(d, e.Expires)
	}
	return nil
}
