package httpd

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/twin"
)

// maxBulk is how many devices one request may carry (developer guide, "Quotas and throttling").
const maxBulk = 100

// bulkItem is one device of a bulk request (REST reference, "Bulk Registry"): a
// device with other names for its ID and ETag, and what to do with it.
type bulkItem struct {
	deviceBody
	ID         string          `json:"id"`
	ModuleID   string          `json:"moduleId"`
	ETag       string          `json:"eTag"`
	ImportMode string          `json:"importMode"`
	Tags       json.RawMessage `json:"tags"`
	Properties struct {
		Desired json.RawMessage `json:"desired"`
	} `json:"properties"`
}

type bulkError struct {
	DeviceID    string `json:"deviceId"`
	ErrorCode   string `json:"errorCode"`
	ErrorStatus string `json:"errorStatus"`
}

type bulkResult struct {
	IsSuccessful bool        `json:"isSuccessful"`
	Errors       []bulkError `json:"errors"`
	Warnings     []struct{}  `json:"warnings"`
}

// bulk creates, changes and deletes up to 100 devices, each by its own
// importMode. What fails is told one by one, with status 400; the rest is done.
func (s *Server) bulk(w http.ResponseWriter, r *http.Request) {
	var items []bulkItem
	if !s.readBody(w, r, "a list of devices", &items) {
		return
	}
	if len(items) == 0 || len(items) > maxBulk {
		s.fail(w, http.StatusBadRequest, "ArgumentInvalid", 400004, fmt.Sprintf("%d devices: a bulk request carries 1 to %d", len(items), maxBulk))
		return
	}
	out := bulkResult{IsSuccessful: true, Errors: []bulkError{}, Warnings: []struct{}{}}
	for i := range items {
		err := s.apply(&items[i])
		if err == nil {
			continue
		}
		out.IsSuccessful = false
		e := bulkError{DeviceID: items[i].ID, ErrorCode: "ArgumentInvalid", ErrorStatus: err.Error()}
		if refusal := (*c2d.Refusal)(nil); errors.As(err, &refusal) {
			e.ErrorCode, e.ErrorStatus = nameOf(refusal.Code), refusal.Text
		}
		out.Errors = append(out.Errors, e)
	}
	status := http.StatusOK
	if !out.IsSuccessful {
		status = http.StatusBadRequest
	}
	s.reply(w, status, out)
}

func (s *Server) apply(b *bulkItem) error {
	if b.ModuleID != "" {
		return errors.New("the embedded hub has no modules")
	}
	mode := strings.ToLower(b.ImportMode)
	tag := "*"
	if base, ok := strings.CutSuffix(mode, "ifmatchetag"); ok {
		mode, tag = base, strings.Trim(cmp.Or(b.ETag, b.deviceBody.ETag), `"`) // Node leaves etag as it read it
		if tag == "" {
			tag = "-" // matches none
		}
	}
	switch mode {
	case "delete":
		return s.store.Delete(b.ID, tag)
	case "updatetwin":
		return s.applyTwin(b, tag)
	case "", "create", "createorupdate", "update":
	default:
		return fmt.Errorf("importMode %.40q is unknown", b.ImportMode)
	}
	spec, err := b.spec(b.ID)
	if err != nil {
		return err
	}
	if mode == "update" {
		_, err = s.store.Update(spec, tag)
		return err
	}
	_, err = s.store.Create(spec)
	if refusal := (*c2d.Refusal)(nil); mode == "createorupdate" && errors.As(err, &refusal) && refusal.Code == 409001 {
		_, err = s.store.Update(spec, tag)
		return err
	}
	if err == nil && (b.Tags != nil || b.Properties.Desired != nil) {
		err = s.applyTwin(b, "*")
	}
	return err
}

func (s *Server) applyTwin(b *bulkItem, tag string) error {
	d, err := s.store.Get(b.ID)
	if err != nil {
		return err
	}
	_, err = s.changeTwin(d, tag, twin.Change{Tags: given(b.Tags), Desired: given(b.Properties.Desired)})
	return err
}

// given is a part of a body, nil if it is absent or null.
func given(part json.RawMessage) []byte {
	if string(part) == "null" {
		return nil
	}
	return part
}
