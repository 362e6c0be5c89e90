package mqttd

// Disconnect cuts a device's connection without a word, if it has one.
func (s *Server) Disconnect(device string) bool {
	c := s.connection(device)
	if c != nil {
		c.abort()
	}
	return c != nil
}

// Shutdown closes a device's connection in good order, if it has one. MQTT 3.1.1
// has no packet for that: TLS and TCP say goodbye.
func (s *Server) Shutdown(device string) bool {
	c := s.connection(device)
	if c != nil {
		c.net.Close()
	}
	return c != nil
}

// Expire ends the connections of the devices that match as if their tokens
// expired now, and returns how many there were.
func (s *Server) Expire(match func(device string) bool) int {
	s.mu.Lock()
	var expired []*conn
	for device, c := range s.online {
		if match(device) {
			expired = append(expired, c)
		}
	}
	s.mu.Unlock()
	for _, c := range expired {
		c.evict(errExpired)
	}
	return len(expired)
}

func (s *Server) connection(device string) *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.online[device]
}
