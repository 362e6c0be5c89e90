package config

import "downlink/mapping"

// MappingRoutes returns the routes as mapping wants them, in order.
func (b *Bridge) MappingRoutes() []mapping.Route {
	routes := make([]mapping.Route, len(b.Routes))
	for i, r := range b.Routes {
		routes[i] = r.Route
	}
	return routes
}

// TableOptions returns what mapping must know beyond the routes. The lookups'
// values are the caller's to add.
func (b *Bridge) TableOptions() mapping.TableOptions {
	o := mapping.TableOptions{Name: b.Name, Templates: b.Templates}
	for _, h := range b.Hubs {
		o.Hubs = append(o.Hubs, mapping.HubOptions{Name: h.Name, DocumentedCharset: h.PropertyCharset == "documented"})
	}
	for _, l := range b.Lookups {
		o.LookupNames = append(o.LookupNames, l.Name)
	}
	return o
}

// MappingOptions returns the relay's mapping.
func (r *Relay) MappingOptions() mapping.RelayOptions {
	return mapping.RelayOptions{Subject: r.Publish.Subject, AllowSubjects: r.AllowSubjects, Name: r.Name}
}
