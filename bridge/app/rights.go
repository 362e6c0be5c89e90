package app

import (
	"fmt"
	"strings"

	"downlink/bridge/config"
	"downlink/bridge/natsio"
	"downlink/mapping"
)

// Rights are the least rights of one side of a configuration.
type Rights struct {
	// Side is bridge or relay, Name its name.
	Side config.Side `json:"side"`
	Name string      `json:"name"`
	// NATS is what its login must be allowed, Embedded that its server is in its own process and asks for no login.
	NATS     []natsio.Right `json:"nats"`
	Embedded bool           `json:"embedded,omitempty"`
	// Notes are what may be needed besides, one line each.
	Notes []string `json:"notes,omitempty"`
	// Hubs is what is needed at each hub, or for each device.
	Hubs []HubRight `json:"hubs"`
}

// HubRight is the least right at a hub.
type HubRight struct {
	// Hub is the hub's name in the configuration; of a device it is empty.
	Hub    string `json:"hub,omitempty"`
	Device string `json:"device,omitempty"`
	// Credential is sas, entra, device or embedded.
	Credential string `json:"credential"`
	// Needs are the permissions of a SAS policy, or the data actions of an Entra role.
	Needs []string `json:"needs,omitempty"`
	// Text is a sentence for people, Source where Microsoft says so.
	Text   string `json:"text"`
	Source string `json:"source,omitempty"`
}

// Where IoT Hub's documentation lists its rights.
const (
	sasSource   = "https://learn.microsoft.com/azure/iot-hub/authenticate-authorize-sas"
	entraSource = "https://learn.microsoft.com/azure/iot-hub/authenticate-authorize-azure-ad"
)

// The data actions of IoT Hub that a bridge needs (the second page above, "Permissions for IoT Hub service APIs").
const (
	actionSend     = "Microsoft.Devices/IotHubs/cloudToDeviceMessages/send/action"
	actionFeedback = "Microsoft.Devices/IotHubs/cloudToDeviceMessages/feedback/action"
)

// BridgeRights lists the least rights of a bridge. c comes from config.Load, which may have skipped the
// secrets; a NATS context that it names is read for its prefixes.
func BridgeRights(c *config.Bridge) (*Rights, error) {
	table, err := mapping.Compile(c.MappingRoutes(), c.TableOptions())
	if err != nil {
		return nil, err
	}
	on, err := natsOptions(c.Name, c.NATS).Prefixes()
	if err != nil {
		return nil, err
	}
	r := &Rights{Side: config.BridgeSide, Name: c.Name, Embedded: c.NATS.Embedded != nil}
	r.NATS = natsio.BridgeRights(bridgeNeeds(c, table, on))
	r.Notes = append(r.Notes, domainNote(on)...)
	if answers := answerPrefixes(c.Routes); len(answers) > 0 {
		r.Notes = append(r.Notes, "publishing to "+strings.Join(answers, ", ")+" is needed as well if publishers want answers there, by Downlink-Reply-To or as the reply subject of a request")
	}
	for _, h := range c.Hubs {
		r.Hubs = append(r.Hubs, bridgeHubRight(c, h))
	}
	return r, nil
}

// bridgeNeeds says what buildBridge makes use of.
func bridgeNeeds(c *config.Bridge, table *mapping.Table, on natsio.Prefixes) natsio.BridgeNeeds {
	create, _ := storage(c)
	n := natsio.BridgeNeeds{Name: c.Name, Create: create, On: on}
	for _, stream := range streams(c.Routes) {
		o := sourceOptions(c, table, stream)
		n.Sources = append(n.Sources, natsio.RightsSource{Stream: stream, Filters: o.Filters, Create: o.Create})
	}
	if subjects := table.Subjects(""); len(subjects) > 0 {
		n.Core = mapping.Cover(subjects, maxFilters)
	}
	for _, l := range c.Lookups {
		if l.Bucket != "" {
			n.Buckets = append(n.Buckets, l.Bucket)
		}
	}
	return n
}

// answerPrefixes are the subjects beside _INBOX that a publisher may name for its answer
// (mapping's documentation, Downlink-Reply-To).
func answerPrefixes(routes []config.Route) []string {
	var list []string
	for _, r := range routes {
		var fixed []string
		for token := range strings.SplitSeq(r.Subject, ".") {
			if strings.ContainsAny(token, "*>{") {
				break
			}
			fixed = append(fixed, token)
		}
		if len(fixed) > 0 && r.Drop == "" {
			list = append(list, strings.Join(fixed, ".")+".>")
		}
	}
	return mapping.Cover(list, max(len(list), 1))
}

func bridgeHubRight(c *config.Bridge, h config.Hub) HubRight {
	switch {
	case h.Embedded:
		return HubRight{Hub: h.Name, Credential: "embedded", Text: "none: it is the embedded hub of this process"}
	case h.Entra != nil:
		r := HubRight{Hub: h.Name, Credential: "entra", Needs: []string{actionSend}, Source: entraSource}
		if h.Feedback != "never" {
			r.Needs = append(r.Needs, actionFeedback)
		}
		r.Text = "a custom role with these data actions for this hub; of the built-in roles, IoT Hub Data Contributor has them, and many more"
		if h.Feedback == "auto" && !c.AsksFeedback(h.Name) {
			r.Text += "; the feedback action only once something asks for acks"
		}
		return r
	}
	return HubRight{
		Hub: h.Name, Credential: "sas", Needs: []string{"ServiceConnect"}, Source: sasSource,
		Text: "a shared access policy with ServiceConnect alone, such as the policy service: to send and to receive feedback",
	}
}

// RelayRights lists the least rights of a relay, as BridgeRights does.
func RelayRights(c *config.Relay) (*Rights, error) {
	subjects, err := mapping.CompileRelay(c.MappingOptions())
	if err != nil {
		return nil, err
	}
	on, err := natsOptions(c.Name, c.NATS).Prefixes()
	if err != nil {
		return nil, err
	}
	r := &Rights{Side: config.RelaySide, Name: c.Name, Embedded: c.NATS.Embedded != nil}
	r.NATS = natsio.RelayRights(natsio.RelayNeeds{
		Name: c.Name, Subjects: subjects.Subjects(), Stream: c.Publish.Stream, Create: c.Publish.Create, On: on,
	})
	r.Notes = domainNote(on)
	for i, d := range c.Devices {
		if d.Embedded != "" {
			r.Hubs = append(r.Hubs, HubRight{Device: d.Embedded, Credential: "embedded", Text: "none: it is a device of the embedded hub of this process"})
			continue
		}
		r.Hubs = append(r.Hubs, HubRight{
			Device: deviceName(i, d), Credential: "device", Source: sasSource,
			Text: "the device's own key, which is good for this device alone; no shared access policy",
		})
	}
	return r, nil
}

// domainNote says which of two forms a server asks for.
func domainNote(on natsio.Prefixes) []string {
	if on.Domain == "" {
		return nil
	}
	return []string{"either " + on.API + "… or $JS.API.… and $KV.… can go: a server of the domain " + on.Domain + " itself asks for the latter, any other for the former"}
}

// deviceName is a device for people: its ID, or its place if its connection string was not read.
func deviceName(i int, d config.Device) string {
	if id := d.ID(); id != "" {
		return id
	}
	return fmt.Sprintf("devices[%d]", i)
}
