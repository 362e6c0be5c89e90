package hubservice

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"downlink/bridge"
)

// health is what the client knows of its state, and the log of its changes: one
// line a streak, however long it lasts.
type health struct {
	hub, address string
	credentials  *credentials
	log          *slog.Logger

	mu           sync.Mutex // guards all below
	link         error      // why there is no link; nil while there is one
	token        error      // why the token in use could not be renewed
	message      error      // why the hub refused our credential to a message
	feedback     error      // why its feedback is not read although it should be
	asked        int        // new tokens for that, in this streak
	askedFor     int64      // the grant that the last of them was to replace
	askedAt      time.Time
	logged       kind // the worst that was logged of this streak without a link
	since        time.Time
	connects     int
	tokenExpires time.Time
}

type kind int

const (
	kindNone kind = iota
	kindUnreachable
	kindUnauthorized
)

func newHealth(hub, address string, ways *credentials, log *slog.Logger) *health {
	return &health{
		hub: hub, address: address, credentials: ways, log: log,
		link:  fmt.Errorf("connecting to %s", address),
		since: time.Now(),
	}
}

func (h *health) ready() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, err := range []error{h.link, h.message, h.token, h.feedback} {
		if err != nil {
			return fmt.Errorf("hub %s: %w", h.hub, err)
		}
	}
	return nil
}

func (h *health) stats() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	return Stats{Connected: h.link == nil, Since: h.since, Reconnects: max(h.connects-1, 0), TokenExpires: h.tokenExpires}
}

// connected: a link is up and authorized until expires.
func (h *health) connected(expires time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.link, h.token, h.logged = nil, nil, kindNone
	h.since, h.tokenExpires = time.Now(), expires
	h.connects++
	h.log.Info("connected to the hub at " + h.address)
}

// disconnected: the link was lost (lost is true), or could not be made.
func (h *health) disconnected(err error, lost bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.link == nil {
		h.since = time.Now()
	}
	k := kindUnreachable
	if isUnauthorized(err) {
		k = kindUnauthorized
		h.link = h.unauthorized(err)
	} else {
		h.link = fmt.Errorf("not connected: %w", err)
	}
	switch {
	case lost:
		h.logged = kindUnreachable // a refusal is still to be told, if the next try meets one
		h.log.Warn("lost the connection to the hub; connecting again", "err", err)
	case k <= h.logged:
		h.log.Debug("still no connection to the hub", "err", err)
	case k == kindUnauthorized:
		h.logged = k
		h.log.Error("the hub refuses our credential; messages wait and we try again", "err", h.link)
	default:
		h.logged = k
		h.log.Warn("cannot connect to the hub; trying again", "err", err)
	}
}

// stopped: Run is over.
func (h *health) stopped() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.link, h.since = errStopped, time.Now()
}

func (h *health) unauthorized(err error) error {
	return &bridge.Error{Class: bridge.Unauthorized, Op: "unauthorized", Err: h.credentials.refusal(err)}
}

// renewed: the token in use is valid until expires.
func (h *health) renewed(expires time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.token != nil {
		h.log.Info("token renewed")
	} else {
		h.log.Debug("token renewed")
	}
	h.token, h.tokenExpires = nil, expires
}

// notRenewed: the token in use is still the old one.
func (h *health) notRenewed(err error, expires time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	first := h.token == nil
	err = readable(err)
	if isUnauthorized(err) {
		err = h.unauthorized(err)
	}
	h.token = fmt.Errorf("cannot renew the token, which expires at %s: %w", expires.UTC().Format(time.RFC3339), err)
	if first {
		h.log.Warn("cannot renew the token; trying again", "err", err)
	}
}

// refused: the hub refused our credential to a message that left under grant. It
// reports whether a new token is worth asking for: once for each way that there is
// however many messages were in flight, and after that once a minute.
func (h *health) refused(err error, grant int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.message == nil {
		h.message, h.asked, h.askedFor = h.unauthorized(err), 0, 0
		h.log.Error("the hub refuses our credential to a message; it waits and we try again", "err", h.message)
	}
	if (h.asked >= h.credentials.count() || h.askedFor == grant) && time.Since(h.askedAt) < askAgain {
		return false
	}
	h.asked, h.askedFor, h.askedAt = h.asked+1, grant, time.Now()
	return true
}

// askAgain is how often a hub that refuses all messages gets another token.
const askAgain = time.Minute

// switched: another way is in use; before is empty for the first.
func (h *health) switched(before, now string) {
	switch {
	case now == roleSecondary:
		h.log.Warn("the hub refuses the primary connection string; using the secondary")
	case before == roleSecondary:
		h.log.Info("using the primary connection string again")
	}
}

// accepted ends a streak of refused.
func (h *health) accepted() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.message != nil {
		h.message = nil
		h.log.Info("the hub takes our messages again")
	}
}

// feedbackEnded: the hub's feedback is not read for this cause.
func (h *health) feedbackEnded(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	again := h.feedback != nil && h.feedback.Error() == "feedback: "+err.Error()
	h.feedback = fmt.Errorf("feedback: %w", err)
	switch {
	case err == errAttaching: // nothing is wrong with it
	case again:
		h.log.Debug("the hub's feedback is still not read", "err", err)
	default:
		h.log.Warn("the hub's feedback is not read; trying again", "err", err)
	}
}

// feedbackRead: it is read now, or nobody wants it any more.
func (h *health) feedbackRead() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.feedback = nil
}
