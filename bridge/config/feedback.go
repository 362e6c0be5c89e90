package config

import "fmt"

// AsksFeedback reports whether the route asks the hub for the outcome at the device.
func (r *Route) AsksFeedback() bool {
	return r.Message.Ack != "" && r.Message.Ack != "none"
}

// AsksFeedback reports whether some route to the hub asks it for the outcome at the device.
func (b *Bridge) AsksFeedback(hub string) bool {
	for i := range b.Routes {
		if b.Routes[i].AsksFeedback() && b.hubOf(&b.Routes[i]) == hub {
			return true
		}
	}
	return false
}

func (b *Bridge) hubOf(r *Route) string {
	if r.Hub == "" && len(b.Hubs) > 0 {
		return b.Hubs[0].Name
	}
	return r.Hub
}

// unread warns of routes that ask for what is never read.
func (p *problems) unread(b *Bridge) {
	never := make(map[string]bool)
	for _, h := range b.Hubs {
		never[h.Name] = h.Feedback == "never"
	}
	for i := range b.Routes {
		r := &b.Routes[i]
		if hub := b.hubOf(r); r.AsksFeedback() && never[hub] {
			p.warn("bridge.routes["+itoa(i)+"].message.ack", fmt.Errorf(
				"%s, but hub %s has feedback: never, so what the hub tells is not read here and each outcome becomes unknown", r.Message.Ack, hub))
		}
	}
}
