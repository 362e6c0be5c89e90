package httpd

import (
	"net/http"
	"strings"

	"downlink/bridge/emulator/identity"
)

type handler func(http.ResponseWriter, *http.Request)

// target is who serves a request.
type target struct {
	rights   identity.Rights // any of these will do
	serve    handler         // nil: nobody
	device   string          // that the path names
	registry bool            // counts as a registry operation
	body     int64           // the largest body; 0: maxBody
}

// The rights for a call (developer guide, "Control access with shared access
// signatures": registry read, registry write, service connect).
const (
	reads    = identity.RegistryRead | identity.RegistryWrite
	writes   = identity.RegistryWrite
	services = identity.ServiceConnect
)

// route finds who serves a request, and what that takes.
func (s *Server) route(method string, path []string) target {
	// Node lists devices at /devices/ (azure-iot-hub-node, registry.ts).
	if len(path) > 1 && path[len(path)-1] == "" {
		path = path[:len(path)-1]
	}
	call := method + " /" + path[0]
	switch len(path) {
	case 1:
		switch call {
		case "GET /devices":
			return target{rights: reads, serve: s.listDevices, registry: true}
		case "POST /devices":
			return target{rights: writes, serve: s.bulk, registry: true, body: maxLargeBody}
		}
	case 2:
		id := path[1]
		switch call {
		case "POST /devices":
			if id == "query" {
				return target{rights: reads, serve: s.query}
			}
		case "GET /devices":
			return target{rights: reads, serve: with(id, s.getDevice), device: id, registry: true}
		case "PUT /devices":
			return target{rights: writes, serve: with(id, s.putDevice), device: id, registry: true}
		case "DELETE /devices":
			return target{rights: writes, serve: with(id, s.deleteDevice), device: id, registry: true}
		case "GET /statistics":
			switch id {
			case "devices":
				return target{rights: reads, serve: s.deviceStatistics}
			case "service":
				return target{rights: reads, serve: s.serviceStatistics}
			}
		case "GET /twins":
			return target{rights: services | reads, serve: with(id, s.getTwin), device: id}
		case "PATCH /twins":
			return target{rights: services | writes, serve: with(id, s.patchTwin), device: id, body: maxLargeBody}
		case "PUT /twins":
			return target{rights: services | writes, serve: with(id, s.putTwin), device: id, body: maxLargeBody}
		}
	}
	if path[0] == "messages" {
		return s.feedbackRoute(method, path)
	}
	if len(path) >= 3 {
		return s.deviceRoute(call, path[1], path[2:])
	}
	return target{}
}

// deviceRoute is what lies below one device.
func (s *Server) deviceRoute(call, id string, rest []string) target {
	switch {
	case len(rest) == 1 && rest[0] == "commands" && call == "DELETE /devices":
		return target{rights: services, serve: with(id, s.purge), device: id}
	case len(rest) == 1 && rest[0] == "methods" && call == "POST /twins":
		return target{rights: services, serve: with(id, s.invoke), device: id, body: maxLargeBody}
	case len(rest) == 1 && rest[0] == "modules" && call == "GET /devices":
		return target{rights: reads, serve: with(id, s.listModules), device: id, registry: true}
	case len(rest) == 2 && rest[0] == "modules" && (strings.HasSuffix(call, " /devices") || strings.HasSuffix(call, " /twins")):
		return target{rights: services | reads, serve: with(id, s.noModule), device: id, registry: true}
	case len(rest) == 3 && rest[0] == "modules" && rest[2] == "methods" && call == "POST /twins":
		return target{rights: services, serve: with(id, s.noModule), device: id}
	}
	return target{}
}

// feedbackRoute is feedback by REST, which the Python SDK uses; the C SDK writes the path in lower case.
func (s *Server) feedbackRoute(method string, path []string) target {
	if len(path) < 3 || !strings.EqualFold(path[1], "serviceBound") || !strings.EqualFold(path[2], "feedback") {
		return target{}
	}
	switch {
	case len(path) == 3 && method == http.MethodGet:
		return target{rights: services, serve: s.receiveFeedback}
	case len(path) == 4 && method == http.MethodDelete:
		return target{rights: services, serve: with(path[3], s.completeFeedback)}
	case len(path) == 5 && method == http.MethodPost && path[4] == "abandon":
		return target{rights: services, serve: with(path[3], s.abandonFeedback)}
	}
	return target{}
}

func with(name string, serve func(http.ResponseWriter, *http.Request, string)) handler {
	return func(w http.ResponseWriter, r *http.Request) { serve(w, r, name) }
}

// listModules is empty: the embedded hub has no modules.
func (s *Server) listModules(w http.ResponseWriter, _ *http.Request, id string) {
	if _, err := s.store.Get(id); err != nil {
		s.refuse(w, err)
		return
	}
	s.reply(w, http.StatusOK, []struct{}{})
}

// noModule refuses to make a module, and finds none.
func (s *Server) noModule(w http.ResponseWriter, r *http.Request, id string) {
	if _, err := s.store.Get(id); err != nil {
		s.refuse(w, err)
		return
	}
	if r.Method == http.MethodPut && strings.HasPrefix(r.URL.Path, "/devices/") {
		s.fail(w, http.StatusNotImplemented, "NotImplemented", 501000, "the embedded hub has no modules")
		return
	}
	s.fail(w, http.StatusNotFound, "ModuleNotFound", 404010, "the embedded hub has no modules")
}
