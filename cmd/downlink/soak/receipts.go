package soak

import (
	"slices"
	"strings"

	"downlink/bridge"
	"downlink/bridge/emulator/c2d"
)

// outcomeStatus is a receipt's status for an outcome at the hub.
var outcomeStatus = map[string]string{
	c2d.Success: bridge.StatusCompleted, c2d.Rejected: bridge.StatusRejected, c2d.Expired: bridge.StatusExpired,
	c2d.DeliveryCountExceeded: bridge.StatusExceeded, c2d.Purged: bridge.StatusPurged,
}

// matchReceipts: each receipt says what happened, and what asked for receipts has them.
func (c *checker) matchReceipts() {
	if !c.e.hasReceipts {
		return
	}
	for _, r := range c.e.receipts {
		receipt, err := receiptOf(r)
		if err != nil {
			c.violate(ruleReceipts, nil, "%s:%d (%s): %v", streamReceipts, r.sequence, r.subject, err)
			continue
		}
		c.checked++
		if receipt.Stream == "" {
			c.violate(ruleReceipts, c.byID(receipt), "%s:%d says %s of %s, and is not tied to the message that was sent", streamReceipts, r.sequence, receipt.Status, receipt.ID)
			continue
		}
		p := c.byOrigin[origin{receipt.Stream, receipt.Sequence}]
		if p == nil {
			c.violate(ruleReceipts, nil, "%s:%d (%s) is about no message that was published: %s:%d", streamReceipts, r.sequence, r.subject, receipt.Stream, receipt.Sequence)
			continue
		}
		t := c.byKey[p.Key+" "+receipt.Device]
		if t == nil {
			c.violate(ruleReceipts, nil, "%s:%d: %s for %q, where it was not to go", streamReceipts, r.sequence, p.Key, receipt.Device)
			continue
		}
		t.receipts = append(t.receipts, receipt)
		if !t.happened(receipt) {
			c.violate(ruleReceipts, t, "%s:%d says %s (%s), which did not happen", streamReceipts, r.sequence, receipt.Status, receipt.ID)
		}
	}
	for _, t := range c.targets {
		if t.kind.ack {
			c.hasReceipts(t)
		}
	}
}

// byID is the target of a receipt that does not say which message it is about; nil: none.
func (c *checker) byID(r bridge.Receipt) *target {
	for _, t := range c.targets {
		if t.to.id == r.Device && slices.ContainsFunc(t.copies, func(h *hubCopy) bool { return strings.EqualFold(h.messageID, r.ID) }) {
			return t
		}
	}
	return nil
}

// happened reports whether there is durable evidence for what a receipt says.
func (t *target) happened(r bridge.Receipt) bool {
	if len(t.copies) > 0 && r.ID != t.copies[0].messageID {
		return false
	}
	switch r.Status {
	case bridge.StatusAccepted:
		return len(t.copies) > 0
	case bridge.StatusDead:
		return len(t.dead) > 0
	case bridge.StatusDropped:
		return t.kind.dropped
	}
	return slices.ContainsFunc(t.copies, func(h *hubCopy) bool { return outcomeStatus[h.outcome] == r.Status })
}

// hasReceipts: one that says the fate at the bridge, and one that says the outcome at the device.
func (c *checker) hasReceipts(t *target) {
	has := func(status string) bool {
		return slices.ContainsFunc(t.receipts, func(r bridge.Receipt) bool { return r.Status == status })
	}
	if len(t.dead) > 0 {
		if !has(bridge.StatusDead) {
			c.violate(ruleReceipts, t, "no receipt says that it is dead")
		}
		return
	}
	if len(t.copies) == 0 {
		return // lost, or on the way: said elsewhere
	}
	if !has(bridge.StatusAccepted) {
		c.violate(ruleReceipts, t, "no receipt says that the hub accepted it")
	}
	// Of a message that was sent twice, that it arrived counts; else the first outcome that was told.
	told, pending := false, false
	for _, h := range t.copies {
		told = told || has(outcomeStatus[h.outcome])
		pending = pending || h.outcome == ""
	}
	arrived := slices.ContainsFunc(t.copies, func(h *hubCopy) bool { return h.outcome == c2d.Success })
	switch {
	case pending: // said elsewhere
	case !told:
		c.violate(ruleReceipts, t, "no receipt says what became of it at its device: %s", t.copies[0].outcome)
	case arrived && !has(bridge.StatusCompleted):
		c.violate(ruleReceipts, t, "no receipt says that its device completed it")
	}
}
