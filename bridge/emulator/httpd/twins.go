package httpd

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/twin"
)

// twinBody is a twin as the REST interface writes it.
type twinBody struct {
	DeviceID                  string         `json:"deviceId"`
	ETag                      string         `json:"etag"`
	DeviceETag                string         `json:"deviceEtag"`
	Status                    string         `json:"status"`
	StatusReason              *string        `json:"statusReason,omitempty"`
	StatusUpdateTime          string         `json:"statusUpdateTime"`
	ConnectionState           string         `json:"connectionState"`
	LastActivityTime          string         `json:"lastActivityTime"`
	CloudToDeviceMessageCount int            `json:"cloudToDeviceMessageCount"`
	AuthenticationType        string         `json:"authenticationType"`
	X509Thumbprint            thumbprints    `json:"x509Thumbprint"`
	ModelID                   string         `json:"modelId"`
	Version                   int64          `json:"version"`
	Tags                      map[string]any `json:"tags"`
	Properties                twinProperties `json:"properties"`
	Capabilities              capabilities   `json:"capabilities"`
}

type thumbprints struct {
	Primary   *string `json:"primaryThumbprint"`
	Secondary *string `json:"secondaryThumbprint"`
}

type twinProperties struct {
	Desired  twin.Section `json:"desired"`
	Reported twin.Section `json:"reported"`
}

func (s *Server) twinOf(d c2d.Device, t twin.Twin) twinBody {
	b := s.body(d)
	return twinBody{
		DeviceID: d.ID, ETag: twinETag(t), DeviceETag: d.ETag, Status: b.Status, StatusReason: b.StatusReason,
		StatusUpdateTime: zoned(d.StatusUpdated), ConnectionState: b.ConnectionState, LastActivityTime: zoned(d.LastActivity),
		CloudToDeviceMessageCount: d.Pending, AuthenticationType: "sas", Version: t.Version, Tags: t.Tags,
		Properties: twinProperties{t.Desired, t.Reported}, Capabilities: *b.Capabilities,
	}
}

// zoned is timestamp with a zone also on .NET's zero, as twins have it.
func zoned(t time.Time) string {
	if t.IsZero() {
		return "0001-01-01T00:00:00Z"
	}
	return timestamp(t)
}

func twinETag(t twin.Twin) string {
	return base64.StdEncoding.EncodeToString([]byte(strconv.FormatInt(t.Version, 10)))
}

func (s *Server) replyTwin(w http.ResponseWriter, d c2d.Device, t twin.Twin) {
	w.Header().Set("ETag", strconv.Quote(twinETag(t)))
	s.reply(w, http.StatusOK, s.twinOf(d, t))
}

func (s *Server) getTwin(w http.ResponseWriter, _ *http.Request, id string) {
	d, err := s.store.Get(id)
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.replyTwin(w, d, s.twins.Get(id, d.GenerationID))
}

func (s *Server) patchTwin(w http.ResponseWriter, r *http.Request, id string) {
	s.setTwin(w, r, id, false)
}

func (s *Server) putTwin(w http.ResponseWriter, r *http.Request, id string) {
	s.setTwin(w, r, id, true)
}

// setTwin changes tags and desired properties. Everything else of the body is
// the hub's or the device's, and is ignored, as there.
func (s *Server) setTwin(w http.ResponseWriter, r *http.Request, id string, replace bool) {
	var b struct {
		Tags       json.RawMessage `json:"tags"`
		Properties struct {
			Desired json.RawMessage `json:"desired"`
		} `json:"properties"`
	}
	if !s.readBody(w, r, "a twin", &b) {
		return
	}
	d, err := s.store.Get(id)
	if err != nil {
		s.refuse(w, err)
		return
	}
	tag := match(r)
	if tag == "" {
		tag = "*"
	}
	t, err := s.changeTwin(d, tag, twin.Change{Tags: given(b.Tags), Desired: given(b.Properties.Desired), Replace: replace})
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.replyTwin(w, d, t)
}

// changeTwin changes a twin whose ETag is tag, or "*" for any.
func (s *Server) changeTwin(d c2d.Device, tag string, c twin.Change) (twin.Twin, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	if tag != "*" && tag != twinETag(s.twins.Get(d.ID, d.GenerationID)) {
		return twin.Twin{}, &c2d.Refusal{Condition: "com.microsoft:precondition-failed", Code: 412001, Text: "the ETag does not match"}
	}
	t, err := s.devices.UpdateTwin(d.ID, d.GenerationID, c)
	if err != nil {
		return twin.Twin{}, &c2d.Refusal{Condition: "com.microsoft:argument-error", Code: 400004, Text: err.Error()}
	}
	return t, nil
}

// invoke calls a direct method (developer guide, "Understand and invoke direct methods").
func (s *Server) invoke(w http.ResponseWriter, r *http.Request, id string) {
	b := struct {
		Name     string          `json:"methodName"`
		Payload  json.RawMessage `json:"payload"`
		Response *float64        `json:"responseTimeoutInSeconds"`
		Connect  float64         `json:"connectTimeoutInSeconds"`
	}{}
	if !s.readBody(w, r, "a method", &b) {
		return
	}
	m := Method{Name: b.Name, Payload: b.Payload, ConnectTimeout: seconds(b.Connect), ResponseTimeout: 30 * time.Second}
	if b.Response != nil {
		m.ResponseTimeout = seconds(*b.Response)
	}
	switch {
	case m.Name == "":
		s.fail(w, http.StatusBadRequest, "ArgumentInvalid", 400004, "methodName is missing")
		return
	case m.ResponseTimeout < 5*time.Second || m.ResponseTimeout > 300*time.Second:
		s.fail(w, http.StatusBadRequest, "ArgumentInvalid", 400004, "responseTimeoutInSeconds is not from 5 to 300")
		return
	case m.ConnectTimeout < 0 || m.ConnectTimeout > 300*time.Second:
		s.fail(w, http.StatusBadRequest, "ArgumentInvalid", 400004, "connectTimeoutInSeconds is not from 0 to 300")
		return
	}
	if _, err := s.store.Get(id); err != nil {
		s.refuse(w, err)
		return
	}
	// The answer may take longer than the server's ordinary limit for a reply.
	limit := time.Now().Add(m.ConnectTimeout + m.ResponseTimeout + 30*time.Second)
	if err := http.NewResponseController(w).SetWriteDeadline(limit); err != nil {
		s.log.Debug("no deadline for an answer", "err", err)
	}
	status, payload, err := s.devices.Invoke(r.Context(), id, m)
	if err != nil {
		if r.Context().Err() == nil || !errors.Is(err, r.Context().Err()) {
			s.refuse(w, err)
		}
		return
	}
	out := struct {
		Status  int             `json:"status"`
		Payload json.RawMessage `json:"payload"`
	}{Status: status, Payload: json.RawMessage("null")}
	if json.Valid(payload) {
		out.Payload = payload
	} else if len(payload) > 0 {
		s.fail(w, http.StatusBadGateway, "GenericBadGateway", 502000, "the device's answer is no JSON")
		return
	}
	s.reply(w, http.StatusOK, out)
}

func seconds(n float64) time.Duration {
	if math.Abs(n) > 1e6 {
		n = math.Copysign(1e6, n)
	}
	return time.Duration(n * float64(time.Second))
}
