package emulator

import (
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/feedback"
	"downlink/bridge/emulator/journal"
)

// openJournal opens the journal, if there is to be one, and returns what the hub before this one had not finished.
func (h *Hub) openJournal(o Options) (before *journal.State, err error) {
	if o.Journal == "" {
		return &journal.State{}, nil
	}
	h.journal, before, err = journal.Open(o.Journal, o.Now)
	return before, err
}

// kept is the journal as the queues take it: nil must stay nil.
func (h *Hub) kept() c2d.Journal {
	if h.journal == nil {
		return nil
	}
	return h.journal
}

func (h *Hub) closeJournal() error {
	if h.journal == nil {
		return nil
	}
	return h.journal.Close()
}

// restore goes on where the hub before this one was. The registry is not in the journal: a
// device that has been used is created if it is not there, under another generation ID.
func (h *Hub) restore(before *journal.State) error {
	pending := 0
	for id, q := range before.Queues {
		if err := h.store.Restore(id, q.Last, q.Pending); err != nil {
			return err
		}
		pending += len(q.Pending)
	}
	for _, u := range before.Untold {
		if d, err := h.store.Get(u.Device); err == nil && c2d.Wanted(u.Ack, u.Outcome) {
			h.feedback.Add(feedback.Record{
				MessageID: u.MessageID, Device: u.Device, Sequence: u.Sequence, Generation: d.GenerationID, Status: u.Outcome, At: u.At,
			})
		}
	}
	if pending > 0 {
		h.log.Info("queues restored from the journal", "messages", pending, "devices", len(before.Queues))
	}
	return nil
}

// told writes down that feedback has been read.
func (h *Hub) told(records []feedback.Record) {
	if h.journal == nil {
		return
	}
	for _, r := range records {
		h.journal.Told(r.Device, r.Sequence)
	}
}
