package httpd

import (
	"encoding/base64"
	"net/http"
	"regexp"
	"strconv"
)

// The sizes of a page of query results (REST reference, "Get Twins").
const (
	defaultPage = 100
	maxPage     = 1000
)

// allDevices is the one query there is.
var allDevices = regexp.MustCompile(`(?i)^\s*select\s+\*\s+from\s+devices\s*;?\s*$`)

// query answers SELECT * FROM devices with twins, page by page.
func (s *Server) query(w http.ResponseWriter, r *http.Request) {
	var b struct {
		Query string `json:"query"`
	}
	if !s.readBody(w, r, "a query", &b) {
		return
	}
	if !allDevices.MatchString(b.Query) {
		s.fail(w, http.StatusBadRequest, "ArgumentInvalid", 400004, "the embedded hub answers the query SELECT * FROM devices and no other")
		return
	}
	size := defaultPage
	if text := r.Header.Get("x-ms-max-item-count"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			s.fail(w, http.StatusBadRequest, "ArgumentInvalid", 400004, "x-ms-max-item-count is not a number above 0")
			return
		}
		size = min(n, maxPage)
	}
	after, err := base64.StdEncoding.DecodeString(r.Header.Get("x-ms-continuation"))
	if err != nil {
		s.fail(w, http.StatusBadRequest, "ArgumentInvalid", 400004, "x-ms-continuation is not one of this hub's")
		return
	}
	ids := s.store.Page("", string(after), size+1)
	if len(ids) > size {
		ids = ids[:size]
		w.Header().Set("x-ms-continuation", base64.StdEncoding.EncodeToString([]byte(ids[size-1])))
	}
	w.Header().Set("x-ms-item-type", "Twin")
	out := make([]twinBody, 0, len(ids))
	for _, id := range ids {
		if d, err := s.store.Get(id); err == nil { // else deleted meanwhile
			out = append(out, s.twinOf(d, s.twins.Get(id, d.GenerationID)))
		}
	}
	s.reply(w, http.StatusOK, out)
}
