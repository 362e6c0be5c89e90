package hubservice

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"downlink/bridge/internal/sas"
)

const sasTokenType = "servicebus.windows.net:sastoken"

// token is what a put-token carries. Its text is a secret.
type token struct {
	text     string
	kind     string        // the put-token's type
	audience string        // the put-token's name
	expires  time.Time     // by the wall clock, for people
	left     time.Duration // how long it is valid, from when it was minted
	made     bool          // made for the occasion, even if it equals another of the same second
}

// The two roles of a connection string, and Entra's.
const (
	rolePrimary   = "primary"
	roleSecondary = "secondary"
	roleEntra     = "entra"
)

// way is one way to be known to the hub: a connection string or an Entra identity.
type way struct {
	role   string
	who    string // such as: policy "service"
	remedy string // what to check when the hub refuses it
	secret string // what it was made from
	// mint makes a token. A ready-made one comes back unchanged until it expires.
	mint func(ctx context.Context, now time.Time) (token, error)

	refused time.Time // when the hub refused it last; zero: not since it was accepted
}

// defaultForgive is how long a way that the hub refused comes after the others.
// Then the primary is tried first again.
const defaultForgive = time.Minute

// credentials are the ways to authorize a connection, the preferred one first.
// Safe for concurrent use.
type credentials struct {
	host     string
	lifetime time.Duration
	reread   func() (primary, secondary string, err error)
	forgive  time.Duration
	log      *slog.Logger

	mu      sync.Mutex // guards all below
	ways    []*way
	inUse   *way
	trouble error // why what stands in files could not be taken over
}

// sasCredentials checks the connection strings; the error has no secret in it.
func sasCredentials(o Options) (*credentials, error) {
	host, primary, err := sasWay(o.ConnectionString, rolePrimary, o.TokenLifetime)
	if err != nil {
		return nil, err
	}
	c := &credentials{host: host, lifetime: o.TokenLifetime, reread: o.Reread, ways: []*way{primary}}
	if o.SecondaryConnectionString != "" {
		second, err := c.sibling(o.SecondaryConnectionString, roleSecondary)
		if err != nil {
			return nil, fmt.Errorf("secondary connection string: %w", err)
		}
		c.ways = append(c.ways, second)
	}
	return c, nil
}

// sibling makes a way out of another connection string of the same hub.
func (c *credentials) sibling(text, role string) (*way, error) {
	host, w, err := sasWay(text, role, c.lifetime)
	if err == nil && !strings.EqualFold(host, c.host) {
		err = fmt.Errorf("it is for hub %s, not for %s", host, c.host)
	}
	return w, err
}

func sasWay(text, role string, lifetime time.Duration) (host string, _ *way, _ error) {
	c, err := sas.Parse(text)
	if err != nil {
		return "", nil, err
	}
	switch c.Kind() {
	case sas.KindService:
	case sas.KindEventHubs:
		return "", nil, errors.New("this is an Event Hubs connection string; take the hub's service connection string (Shared access policies, policy service)")
	default:
		return "", nil, fmt.Errorf("this is a %s connection string; take the hub's service connection string (Shared access policies, policy service)", c.Kind())
	}
	w := &way{role: role, secret: text, remedy: "check its key, that it has the ServiceConnect right, and this machine's clock"}
	policy := c.KeyName
	if c.Token == "" {
		w.mint = func(_ context.Context, now time.Time) (token, error) {
			// A token's expiry is in whole seconds; rounded up, it lives as long as asked.
			expires := now.Add(lifetime + time.Second - 1).Truncate(time.Second)
			return token{
				text: sas.Sign(c.HostName, c.KeyName, c.Key, expires), kind: sasTokenType, audience: c.HostName,
				expires: expires, left: expires.Sub(now), made: true,
			}, nil
		}
	} else {
		t, err := sas.ParseToken(c.Token)
		if err != nil {
			return "", nil, err
		}
		if !t.Covers(c.HostName) {
			return "", nil, errors.New("its SharedAccessSignature is for another resource than the hub")
		}
		if policy == "" {
			policy = t.KeyName
		}
		w.mint = func(_ context.Context, now time.Time) (token, error) {
			left := t.Expiry.Sub(now)
			if left <= 0 {
				return token{}, &tokenError{status: 401, text: "the SharedAccessSignature of the connection string expired at " + t.Expiry.Format(time.RFC3339)}
			}
			return token{text: c.Token, kind: sasTokenType, audience: c.HostName, expires: t.Expiry, left: left}, nil
		}
	}
	w.who = fmt.Sprintf("policy %q", policy)
	return c.HostName, w, nil
}

// refresh reads again what stands in files. It reports whether a way changed that
// is worth trying now. What cannot be used leaves everything as it was, and is
// told until it can.
func (c *credentials) refresh() bool {
	if c.reread == nil {
		return false
	}
	primary, secondary, err := c.reread()
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := c.replace(rolePrimary, primary, &err)
	changed = c.replace(roleSecondary, secondary, &err) || changed
	switch {
	case err != nil && (c.trouble == nil || c.trouble.Error() != err.Error()):
		c.log.Warn("cannot use the connection string as it is now; staying with what was read before", "err", err)
	case err == nil && c.trouble != nil:
		c.log.Info("the connection string can be read again")
	}
	c.trouble = err
	return changed
}

// replace takes a connection string over if it has changed, and reports whether
// that calls for a new token. c.mu is held.
func (c *credentials) replace(role, text string, trouble *error) bool {
	i := slices.IndexFunc(c.ways, func(w *way) bool { return w.role == role })
	switch {
	case text == "" && (*trouble != nil || i < 0):
		return false
	case text == "": // taken away; the token of its own that is in use stays until the next
		c.ways = slices.Delete(slices.Clone(c.ways), i, i+1)
		return c.inUse != nil && c.inUse.role == role
	case i >= 0 && c.ways[i].secret == text:
		return false
	}
	w, err := c.sibling(text, role)
	if err != nil {
		*trouble = errors.Join(*trouble, fmt.Errorf("%s connection string: %w", role, err))
		return false
	}
	c.log.Info("the " + role + " connection string has changed")
	c.ways = slices.Clone(c.ways)
	if i >= 0 {
		c.ways[i] = w
	} else {
		c.ways = append(c.ways, w)
	}
	// A new secondary is of no use before the primary is refused.
	return role == rolePrimary || c.inUse != nil && c.inUse.role == role
}

// issue mints a token of the first way that has one, leaving out those tried
// before, and notes the way in tried. A nil way says that there is none left; the error is
// then that of the last, if any failed. A connection string on its own is
// tried twice, with a new token.
func (c *credentials) issue(ctx context.Context, tried *[]*way, now time.Time) (*way, token, error) {
	var last error
	for {
		w := c.next(*tried)
		if w == nil {
			return nil, token{}, last
		}
		*tried = append(*tried, w)
		t, err := w.mint(ctx, now)
		if err == nil {
			return w, t, nil
		}
		c.refuse(w)
		*tried = append(*tried, w) // once more would give the same
		last = err
		if ctx.Err() != nil {
			return nil, token{}, last
		}
	}
}

func (c *credentials) next(tried []*way) *way {
	if len(tried) > 0 {
		c.refresh() // the hub may have refused what a file does not hold any more
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(tried) > len(c.ways)+1 {
		return nil // files that change all the time are no reason to go on for ever
	}
	fresh := func(w *way) bool { return w.refused.IsZero() || time.Since(w.refused) > c.forgive }
	var later *way
	for _, w := range c.ways {
		switch {
		case slices.Contains(tried, w):
		case fresh(w):
			return w
		case later == nil:
			later = w
		}
	}
	if later == nil && len(c.ways) == 1 && len(tried) == 1 {
		return c.ways[0]
	}
	return later
}

// accept notes that the hub took w. It reports the role that was in use before
// and whether that is another one.
func (c *credentials) accept(w *way) (before string, other bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.refused = time.Time{}
	if c.inUse != nil {
		before = c.inUse.role
	}
	c.inUse = w
	return before, before != w.role
}

// refuse notes that the hub refused w.
func (c *credentials) refuse(w *way) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.refused = time.Now()
}

// count is how many ways there are.
func (c *credentials) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.ways)
}

// second reports whether a way other than the preferred one is in use.
func (c *credentials) second() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inUse != nil && c.inUse.role == roleSecondary
}

// refusal says that the hub refuses all ways.
func (c *credentials) refusal(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.ways[0]
	who := w.who
	if len(c.ways) > 1 {
		who += " and, as the secondary, " + c.ways[1].who
	}
	if e, ok := errors.AsType[*entraError](err); ok {
		return fmt.Errorf("%w; %s", e, entraRemedy)
	}
	err = fmt.Errorf("the hub refuses %s: %w; %s", who, err, w.remedy)
	if c.trouble != nil {
		err = fmt.Errorf("%w (what is there now cannot be used: %w)", err, c.trouble)
	}
	return err
}

// state is what Stats tells: the role in use, and what is wrong with the other or
// with the files.
func (c *credentials) state() (role, notice string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inUse != nil {
		role = c.inUse.role
	}
	switch {
	case c.trouble != nil:
		notice = "cannot use the connection string as it is now: " + c.trouble.Error()
	case role == roleSecondary:
		notice = "the hub refuses the primary connection string; the secondary is in use"
	}
	return role, notice
}
