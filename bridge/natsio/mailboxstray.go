package natsio

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"downlink/mapping"
)

// Strays are boxes that nobody drains: of a hub or a source stream that is not configured any more. What is in
// them stays there, and Ready tells, until they are configured again or purged.

// stray is what strays are counted by.
type stray struct{ hub, stream string }

// findStrays looks for strays: at first at the whole mailbox, then only at those that it has found, since new ones come
// with another configuration, which is another process. Only Run's goroutine calls it.
func (m *Mailbox) findStrays(ctx context.Context) error {
	if m.o.Sources == nil || m.o.Hubs == nil {
		return nil
	}
	filters := []string{mailboxPrefix(m.o.Name) + "*.*.*.*"}
	if m.looked {
		filters = nil
		for s := range m.strays {
			filters = append(filters, mailboxPrefix(m.o.Name)+mapping.SubjectToken(s.hub)+".*."+mapping.SubjectToken(s.stream)+".*")
		}
	}
	found := make(map[stray]uint64)
	for _, filter := range filters {
		subjects, err := m.subjects(ctx, filter)
		if err != nil {
			return fmt.Errorf("mailbox: stream %s: list what waits: %w", m.Stream(), apiError(err))
		}
		for _, s := range subjects {
			b, _, ok := parseBox(m.o.Name, s.subject)
			if ok && (!slices.Contains(m.o.Hubs, b.Hub) || !slices.Contains(m.o.Sources, b.Stream)) {
				found[stray{b.Hub, b.Stream}] += s.messages
			}
		}
	}
	if err := m.straysError(found); err != nil && !m.looked {
		m.stream.log.Error("the mailbox holds what nobody sends", "err", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.strays, m.looked = found, true
	return nil
}

// straysError is one line that names them; nil if there are none.
func (m *Mailbox) straysError(strays map[stray]uint64) error {
	var lines []string
	for s, n := range maps.All(strays) {
		what := fmt.Sprintf("%d messages of stream %s for hub %s", n, s.stream, s.hub)
		purge := fmt.Sprintf("or purge them: downlink mailbox purge --hub %s --stream %s", s.hub, s.stream)
		if slices.Contains(m.o.Hubs, s.hub) {
			lines = append(lines, fmt.Sprintf("%s, and no route takes from that stream any more: configure one, %s", what, purge))
		} else {
			lines = append(lines, fmt.Sprintf("%s, which is not configured: configure it, %s", what, purge))
		}
	}
	if len(lines) == 0 {
		return nil
	}
	slices.Sort(lines)
	return errors.New("the mailbox holds " + strings.Join(lines, "; "))
}
