package httpd

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"downlink/bridge/emulator/c2d"
)

// deviceBody is a device as the REST interface writes and reads it.
type deviceBody struct {
	DeviceID                   string          `json:"deviceId"`
	GenerationID               string          `json:"generationId"`
	ETag                       string          `json:"etag"`
	ConnectionState            string          `json:"connectionState"`
	Status                     string          `json:"status"`
	StatusReason               *string         `json:"statusReason"`
	ConnectionStateUpdatedTime string          `json:"connectionStateUpdatedTime"`
	StatusUpdatedTime          string          `json:"statusUpdatedTime"`
	LastActivityTime           string          `json:"lastActivityTime"`
	CloudToDeviceMessageCount  int             `json:"cloudToDeviceMessageCount"`
	Authentication             *authentication `json:"authentication"`
	Capabilities               *capabilities   `json:"capabilities"`
	DeviceScope                *string         `json:"deviceScope"`
	ParentScopes               []string        `json:"parentScopes"`
}

type capabilities struct {
	IoTEdge bool `json:"iotEdge"`
}

type authentication struct {
	Type         string        `json:"type"`
	SymmetricKey *symmetricKey `json:"symmetricKey"`
}

type symmetricKey struct {
	PrimaryKey   *string `json:"primaryKey"`
	SecondaryKey *string `json:"secondaryKey"`
}

func (s *Server) body(d c2d.Device) deviceBody {
	primary, secondary := s.identity.DeviceKeys(d.ID)
	if d.Primary != nil {
		primary = d.Primary
	}
	if d.Secondary != nil {
		secondary = d.Secondary
	}
	first, second := base64.StdEncoding.EncodeToString(primary), base64.StdEncoding.EncodeToString(secondary)
	b := deviceBody{
		DeviceID: d.ID, GenerationID: d.GenerationID, ETag: d.ETag,
		ConnectionState: "Disconnected", Status: "enabled",
		ConnectionStateUpdatedTime: timestamp(d.ConnectionUpdated), StatusUpdatedTime: timestamp(d.StatusUpdated),
		LastActivityTime: timestamp(d.LastActivity), CloudToDeviceMessageCount: d.Pending,
		Authentication: &authentication{Type: "sas", SymmetricKey: &symmetricKey{&first, &second}},
		Capabilities:   &capabilities{IoTEdge: d.Edge}, ParentScopes: []string{},
	}
	if d.Connected {
		b.ConnectionState = "Connected"
	}
	if d.Disabled {
		b.Status = "disabled"
	}
	if d.StatusReason != "" {
		b.StatusReason = &d.StatusReason
	}
	return b
}

// timestamp is how the hub writes times; what never happened is .NET's zero.
func timestamp(t time.Time) string {
	if t.IsZero() {
		return "0001-01-01T00:00:00"
	}
	return t.UTC().Format("2006-01-02T15:04:05.0000000Z")
}

func (s *Server) replyDevice(w http.ResponseWriter, d c2d.Device) {
	w.Header().Set("ETag", strconv.Quote(d.ETag))
	s.reply(w, http.StatusOK, s.body(d))
}

func (s *Server) getDevice(w http.ResponseWriter, _ *http.Request, id string) {
	d, err := s.store.Get(id)
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.replyDevice(w, d)
}

// putDevice creates, or with If-Match updates.
func (s *Server) putDevice(w http.ResponseWriter, r *http.Request, id string) {
	var b deviceBody
	if !s.readBody(w, r, "a device", &b) {
		return
	}
	spec, err := b.spec(id)
	if err != nil {
		s.fail(w, http.StatusBadRequest, "ArgumentInvalid", 400004, err.Error())
		return
	}
	var d c2d.Device
	if tag := match(r); tag == "" {
		d, err = s.store.Create(spec)
	} else {
		d, err = s.store.Update(spec, tag)
	}
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.replyDevice(w, d)
}

// match is the ETag of If-Match without its quotes, "*" for any, "" for none.
func match(r *http.Request) string {
	return strings.Trim(strings.TrimPrefix(strings.TrimSpace(r.Header.Get("If-Match")), "W/"), `"`)
}

// readBody decodes a JSON body. It answers the request and reports false if it cannot.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request, what string, into any) bool {
	err := json.NewDecoder(r.Body).Decode(into)
	var tooLarge *http.MaxBytesError
	switch {
	case err == nil:
		return true
	case errors.As(err, &tooLarge):
		s.fail(w, http.StatusRequestEntityTooLarge, "MessageTooLarge", 413001, fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit))
	default:
		s.fail(w, http.StatusBadRequest, "ArgumentInvalid", 400004, "the body is not "+what+" in JSON")
	}
	return false
}

// spec is what a client may set of a device. Fields that only the hub sets are ignored, as there.
func (b *deviceBody) spec(id string) (c2d.Device, error) {
	if b.DeviceID != "" && b.DeviceID != id {
		return c2d.Device{}, errors.New("deviceId in the body differs from the path")
	}
	spec := c2d.Device{ID: id, Edge: b.Capabilities != nil && b.Capabilities.IoTEdge}
	switch strings.ToLower(b.Status) {
	case "", "enabled":
	case "disabled":
		spec.Disabled = true
	default:
		return c2d.Device{}, errors.New("status is neither enabled nor disabled")
	}
	if b.StatusReason != nil {
		spec.StatusReason = *b.StatusReason
	}
	if len(spec.StatusReason) > 128 {
		return c2d.Device{}, errors.New("statusReason is longer than 128 characters")
	}
	a := b.Authentication
	if a == nil {
		return spec, nil
	}
	if a.Type != "" && !strings.EqualFold(a.Type, "sas") {
		return c2d.Device{}, errors.New("authentication.type: the embedded hub serves sas alone")
	}
	if a.SymmetricKey == nil {
		return spec, nil
	}
	var err error
	if spec.Primary, err = key(a.SymmetricKey.PrimaryKey); err != nil {
		return c2d.Device{}, fmt.Errorf("primaryKey %w", err)
	}
	if spec.Secondary, err = key(a.SymmetricKey.SecondaryKey); err != nil {
		return c2d.Device{}, fmt.Errorf("secondaryKey %w", err)
	}
	return spec, nil
}

// key decodes a key; nil leaves it to the hub.
func key(text *string) ([]byte, error) {
	if text == nil || *text == "" {
		return nil, nil
	}
	k, err := base64.StdEncoding.DecodeString(*text)
	if err != nil || len(k) < 16 || len(k) > 64 {
		return nil, errors.New("is not base64 of 16 to 64 bytes")
	}
	return k, nil
}

func (s *Server) deleteDevice(w http.ResponseWriter, r *http.Request, id string) {
	if err := s.store.Delete(id, match(r)); err != nil {
		s.refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// listDevices answers at most 1000 devices, as the hub does.
func (s *Server) listDevices(w http.ResponseWriter, r *http.Request) {
	top := 1000
	if q := r.URL.Query().Get("top"); q != "" {
		n, err := strconv.Atoi(q)
		if err != nil || n < 1 {
			s.fail(w, http.StatusBadRequest, "ArgumentInvalid", 400004, "top is not a number above 0")
			return
		}
		top = min(n, top)
	}
	out := []deviceBody{}
	for _, id := range s.store.Page("", "", top) {
		if d, err := s.store.Get(id); err == nil { // else deleted meanwhile
			out = append(out, s.body(d))
		}
	}
	s.reply(w, http.StatusOK, out)
}

func (s *Server) purge(w http.ResponseWriter, _ *http.Request, id string) {
	n, err := s.store.Purge(id)
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.reply(w, http.StatusOK, struct {
		TotalMessagesPurged int     `json:"totalMessagesPurged"`
		DeviceID            string  `json:"deviceId"`
		ModuleID            *string `json:"moduleId"`
	}{n, id, nil})
}

func (s *Server) deviceStatistics(w http.ResponseWriter, _ *http.Request) {
	total, disabled, _ := s.store.Statistics()
	s.reply(w, http.StatusOK, struct {
		Total    int `json:"totalDeviceCount"`
		Enabled  int `json:"enabledDeviceCount"`
		Disabled int `json:"disabledDeviceCount"`
	}{total, total - disabled, disabled})
}

func (s *Server) serviceStatistics(w http.ResponseWriter, _ *http.Request) {
	_, _, connected := s.store.Statistics()
	s.reply(w, http.StatusOK, struct {
		Connected int `json:"connectedDeviceCount"`
	}{connected})
}
