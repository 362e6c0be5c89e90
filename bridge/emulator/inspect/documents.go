package inspect

import (
	"context"
	"errors"
	"net/http"
	"time"
	"unicode/utf8"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/telemetry"
)

// Summary is GET /inspect.
type Summary struct {
	Hostname string `json:"hostname"`
	Devices  struct {
		Total     int `json:"total"`
		Disabled  int `json:"disabled"`
		Connected int `json:"connected"`
	} `json:"devices"`
	ServiceConnections int   `json:"serviceConnections"` // over AMQP
	UnknownSends       int   `json:"unknownSends"`       // messages for no device, or an unknown one
	Telemetry          int64 `json:"telemetry"`          // device-to-cloud messages so far
	Feedback           struct {
		Records   int    `json:"records"` // in no batch yet
		Batches   int    `json:"batches"` // that wait to be received
		Locked    int    `json:"locked"`
		Received  uint64 `json:"received"`
		Completed uint64 `json:"completed"`
		Rejected  uint64 `json:"rejected"`
		Lost      uint64 `json:"lost"`
	} `json:"feedback"`
	Throttle *Throttle `json:"throttle,omitempty"` // with a tier
	Faults   int       `json:"faults"`             // rules in force
}

// Throttle is what is used of the hub's tier.
type Throttle struct {
	Tier      string `json:"tier"`
	Units     int    `json:"units"`
	Used      int64  `json:"used"` // messages of today, in blocks
	Quota     int64  `json:"quota"`
	Delayed   uint64 `json:"delayed"`
	Throttled uint64 `json:"throttled"`
	OverQuota uint64 `json:"overQuota"`
}

// Device is one device; its queue stands only in GET /inspect/devices/ID.
type Device struct {
	DeviceID              string     `json:"deviceId"`
	GenerationID          string     `json:"generationId"`
	Status                string     `json:"status"` // enabled or disabled
	Connected             bool       `json:"connected"`
	Pending               int        `json:"pending"`
	Counts                Counts     `json:"counts"`
	ConnectionUpdatedTime *time.Time `json:"connectionUpdatedTime,omitempty"`
	LastActivityTime      *time.Time `json:"lastActivityTime,omitempty"`
	Queue                 []Message  `json:"queue,omitempty"`
}

// Counts are what happened to a device's messages.
type Counts struct {
	Sends       uint64 `json:"sends"` // refused ones included
	Accepted    uint64 `json:"accepted"`
	Duplicates  uint64 `json:"duplicates"`
	Refused     uint64 `json:"refused"`
	Delivered   uint64 `json:"delivered"` // repeats included
	Redelivered uint64 `json:"redelivered"`
	Completed   uint64 `json:"completed"`
	Expired     uint64 `json:"expired"`
	Exceeded    uint64 `json:"deliveryCountExceeded"`
	Rejected    uint64 `json:"rejected"`
	Purged      uint64 `json:"purged"`
	Telemetry   uint64 `json:"telemetry"`
}

// Message is one message in a queue. Body stands for text, BodyBase64 for other bytes.
type Message struct {
	Sequence        uint64             `json:"sequenceNumber"`
	State           string             `json:"state"` // Enqueued or Invisible
	Deliveries      int                `json:"deliveries"`
	MessageID       string             `json:"messageId,omitempty"`
	CorrelationID   string             `json:"correlationId,omitempty"`
	UserID          string             `json:"userId,omitempty"`
	ContentType     string             `json:"contentType,omitempty"`
	ContentEncoding string             `json:"contentEncoding,omitempty"`
	Ack             string             `json:"ack,omitempty"`
	To              string             `json:"to"`
	EnqueuedTime    time.Time          `json:"enqueuedTime"`
	ExpiryTime      time.Time          `json:"expiryTime"`
	Properties      map[string]*string `json:"properties,omitempty"` // of a repeated name the last; null as it was sent
	Body            *string            `json:"body,omitempty"`
	BodyBase64      []byte             `json:"bodyBase64,omitempty"`
}

// DeviceList is GET /inspect/devices. Next, if it is there, is what after= takes for the next page.
type DeviceList struct {
	Devices []Device `json:"devices"`
	Next    string   `json:"next,omitempty"`
}

// Record is what became of one accepted message.
type Record struct {
	DeviceID     string    `json:"deviceId"`
	MessageID    string    `json:"messageId,omitempty"`
	Sequence     uint64    `json:"sequenceNumber"`
	AcceptedTime time.Time `json:"acceptedTime"`
	Delivered    int       `json:"delivered"`
	Outcome      string    `json:"outcome,omitempty"` // absent: pending
}

// Connection is one device's connection.
type Connection struct {
	DeviceID   string    `json:"deviceId"`
	Transport  string    `json:"transport"` // mqtt or virtual
	Since      time.Time `json:"since"`
	Remote     string    `json:"remote,omitempty"`
	Persistent bool      `json:"persistent,omitempty"` // CleanSession 0
	InFlight   int       `json:"inFlight,omitempty"`   // messages sent and not acknowledged
	Behaviour  string    `json:"behaviour,omitempty"`  // of a virtual device
}

func (p *pages) summary(context.Context, *http.Request) (any, error) {
	var s Summary
	s.Hostname = p.hub.Hostname()
	s.Devices.Total, s.Devices.Disabled, s.Devices.Connected = p.hub.Statistics()
	s.ServiceConnections, s.UnknownSends = p.hub.ServiceConnections(), p.hub.UnknownSends()
	s.Telemetry = int64(p.hub.Telemetry().Last())
	f := p.hub.Feedback().Status()
	s.Feedback.Records, s.Feedback.Batches, s.Feedback.Locked = f.Records, f.Batches, f.Locked
	s.Feedback.Received, s.Feedback.Completed, s.Feedback.Rejected, s.Feedback.Lost = f.Received, f.Completed, f.Rejected, f.Lost
	if t := p.hub.Throttle(); t.Units > 0 {
		s.Throttle = &Throttle{string(t.Tier), t.Units, t.Used, t.Quota, t.Delayed, t.Throttled, t.OverQuota}
	}
	s.Faults = len(p.hub.Faults().Rules())
	return s, nil
}

func (p *pages) devices(_ context.Context, r *http.Request) (any, error) {
	limit, err := number(r, "limit", 100, 1000)
	if err != nil {
		return nil, err
	}
	if limit == 0 {
		return nil, bad("limit: 0 asks for nothing")
	}
	q := r.URL.Query()
	ids := p.hub.DevicePage(q.Get("prefix"), q.Get("after"), int(limit)+1)
	out := DeviceList{Devices: []Device{}}
	if len(ids) > int(limit) {
		ids = ids[:limit]
		out.Next = ids[limit-1]
	}
	for _, id := range ids {
		if d, err := p.hub.Device(id); err == nil { // else deleted meanwhile
			out.Devices = append(out.Devices, p.describe(d))
		}
	}
	return out, nil
}

func (p *pages) describe(d c2d.Device) Device {
	out := Device{
		DeviceID: d.ID, GenerationID: d.GenerationID, Status: "enabled", Connected: d.Connected, Pending: d.Pending,
		Counts:                Counts(p.hub.Counts(d.ID)),
		ConnectionUpdatedTime: when(d.ConnectionUpdated), LastActivityTime: when(d.LastActivity),
	}
	if d.Disabled {
		out.Status = "disabled"
	}
	return out
}

func (p *pages) device(id string) (any, error) {
	d, err := p.hub.Device(id)
	if err != nil {
		return nil, err
	}
	out := p.describe(d)
	for _, q := range p.hub.Queue(id) {
		out.Queue = append(out.Queue, message(q))
	}
	out.Pending = len(out.Queue) // of the same moment
	return out, nil
}

func message(q c2d.Pending) Message {
	m := q.Message
	out := Message{
		Sequence: q.Sequence, State: q.State.String(), Deliveries: q.Deliveries,
		MessageID: m.MessageID, CorrelationID: m.CorrelationID, UserID: m.UserID, ContentType: m.ContentType,
		ContentEncoding: m.ContentEncoding, Ack: m.Ack, To: m.To, EnqueuedTime: q.Enqueued.UTC(), ExpiryTime: q.Expires.UTC(),
	}
	for _, property := range m.Properties {
		if out.Properties == nil {
			out.Properties = make(map[string]*string, len(m.Properties))
		}
		if property.Null {
			out.Properties[property.Name] = nil
		} else {
			out.Properties[property.Name] = &property.Value
		}
	}
	if utf8.Valid(m.Body) {
		text := string(m.Body)
		out.Body = &text
	} else {
		out.BodyBase64 = m.Body
	}
	return out
}

func (p *pages) records(id string) (any, error) {
	if _, err := p.hub.Device(id); err != nil {
		return nil, err
	}
	out := struct {
		Records []Record `json:"records"`
	}{[]Record{}}
	for _, r := range p.hub.Log(id) {
		out.Records = append(out.Records, Record{r.Device, r.MessageID, r.Sequence, r.Accepted.UTC(), r.Delivered, r.Outcome})
	}
	return out, nil
}

func (p *pages) connections(context.Context, *http.Request) (any, error) {
	out := struct {
		Services int          `json:"services"` // AMQP connections
		Devices  []Connection `json:"devices"`
	}{p.hub.ServiceConnections(), []Connection{}}
	for _, c := range p.hub.Connections() {
		out.Devices = append(out.Devices, Connection{
			DeviceID: c.Device, Transport: "mqtt", Since: c.Since.UTC(), Remote: c.Remote, Persistent: c.Persistent, InFlight: c.InFlight,
		})
	}
	for _, c := range p.hub.VirtualConnections() {
		out.Devices = append(out.Devices, Connection{DeviceID: c.Device, Transport: "virtual", Since: c.Since.UTC(), Behaviour: c.Behaviour.String()})
	}
	return out, nil
}

// telemetry gives the device-to-cloud messages after a sequence number, oldest
// first; with wait it waits for the first of them.
func (p *pages) telemetry(ctx context.Context, r *http.Request) (any, error) {
	q := telemetry.Query{Device: r.URL.Query().Get("device")}
	var err error
	if q.After, err = number(r, "after", 0, ^uint64(0)); err != nil {
		return nil, err
	}
	limit, err := number(r, "limit", 100, 1000)
	if err != nil {
		return nil, err
	}
	if limit == 0 {
		return nil, bad("limit: 0 asks for nothing")
	}
	q.Max = int(limit)
	out := struct {
		Messages []telemetry.Message `json:"messages"`
		Last     uint64              `json:"last"` // sequence number of the hub's newest message
	}{Messages: []telemetry.Message{}}
	if text := r.URL.Query().Get("wait"); text != "" {
		wait, err := time.ParseDuration(text)
		if err != nil || wait <= 0 || wait > time.Minute {
			return nil, bad("wait: a duration up to 1m, such as 10s")
		}
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		messages, err := p.hub.Telemetry().Wait(ctx, q)
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return nil, err
		}
		out.Messages = append(out.Messages, messages...)
	} else {
		out.Messages = p.hub.Telemetry().Read(q)
	}
	out.Last = p.hub.Telemetry().Last()
	return out, nil
}
