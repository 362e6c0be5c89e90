package amqpd

import "time"

// ExpireTokens has the tokens on all connections expire now, and returns how
// many connections had one.
func (s *Server) ExpireTokens() int {
	s.mu.Lock()
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	n := 0
	for _, c := range conns {
		if c.expireToken() {
			n++
		}
	}
	return n
}

func (c *conn) expireToken() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.granted || expired(c.grant) {
		return false
	}
	now := time.Now()
	c.grant.Expires = now
	c.out.setTimers(func(t *timers) { t.expiry = now })
	return true
}
