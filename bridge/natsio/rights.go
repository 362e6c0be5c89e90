package natsio

import (
	"cmp"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// Right is one thing that a NATS login must be allowed.
type Right struct {
	// Op is publish or subscribe.
	Op string `json:"op"`
	// Subject may have wildcards. Of a queue subscription it is the subject and, behind a space, the queue group, as
	// nats-server has it in its configuration.
	Subject string `json:"subject"`
	// For says what needs it.
	For string `json:"for"`
	// InsteadOf is set where JetStream has a domain: a server of that domain itself maps that subject to
	// this one before it looks at permissions (nats-server, client.selectMappedSubject), any other does not.
	InsteadOf string `json:"instead_of,omitempty"`
}

// The two operations.
const (
	opPublish   = "publish"
	opSubscribe = "subscribe"
)

// RightsSource is a stream that a bridge reads.
type RightsSource struct {
	Stream  string
	Filters []string // of the consumer
	Create  bool     // the bridge may create the stream
}

// BridgeNeeds says what a bridge does on NATS.
type BridgeNeeds struct {
	Name    string
	Sources []RightsSource
	Core    []string // subjects that it takes from core NATS, in the queue group Name
	Buckets []string // KV buckets that it looks up values in
	Create  bool     // it may create its own streams and buckets
	On      Prefixes
}

// RelayNeeds says what a relay does on NATS.
type RelayNeeds struct {
	Name     string
	Subjects []string // that it publishes to
	Stream   string   // that stores them; "": core NATS
	Create   bool     // it may create Stream
	On       Prefixes
}

// BridgeRights lists the least rights of a bridge, grouped by what needs them. They do for
// what the process does, not for the commands that look at its streams.
func BridgeRights(n BridgeNeeds) []Right {
	r := newRights(n.On)
	r.what = "answers to requests"
	r.subscribe(r.on.Inbox + ".>")
	for _, s := range n.Sources {
		r.source(n.Name, s)
	}
	if len(n.Core) > 0 {
		r.what = "core NATS"
		for _, subject := range disjoint(n.Core) {
			r.subscribe(subject + " " + n.Name)
		}
		r.api("STREAM.NAMES") // no stream may store these subjects
	}
	if len(n.Core) > 0 || len(n.Sources) > 0 {
		r.what = "outcomes for publishers that wait"
		r.publish("_INBOX.>")
	}
	for _, bucket := range n.Buckets {
		r.what = "lookup bucket " + bucket
		stream := "KV_" + bucket
		r.api("STREAM.INFO."+stream, "CONSUMER.CREATE."+stream+".*.$KV."+bucket+".>", "CONSUMER.DELETE."+stream+".*")
		r.publish("$JS.FC." + stream + ".>")
	}
	if len(n.Sources) > 0 {
		r.mailbox(n)
		r.leases(n)
	}
	r.what = "dead letters"
	r.stream(DeadStream(n.Name), n.Create)
	r.publish(DeadSubjects(n.Name))
	r.what = "receipts"
	r.stream(ReceiptStream(n.Name), n.Create)
	r.api("DIRECT.GET." + ReceiptStream(n.Name)) // whether a stranger's outcome has been told
	r.publish(receiptPrefix(n.Name) + ">")
	r.what = "what waits for feedback"
	pending := "KV_" + PendingBucket(n.Name)
	r.stream(pending, n.Create)
	r.api("DIRECT.GET."+pending, "STREAM.MSG.GET."+pending)
	r.publish(kvPrefix(n.Name) + ">")
	return r.list
}

// RelayRights lists the least rights of a relay, grouped by what needs them.
func RelayRights(n RelayNeeds) []Right {
	r := newRights(n.On)
	if n.Stream != "" {
		r.what = "answers to requests"
		r.subscribe(r.on.Inbox + ".>")
		r.what = "stream " + n.Stream
		r.stream(n.Stream, n.Create)
	} else {
		r.what = "core NATS"
	}
	r.publish(n.Subjects...)
	r.what = "dead letters"
	if n.Stream != "" {
		r.stream(DeadStream(n.Name), true)
	}
	r.publish(DeadSubjects(n.Name))
	return r.list
}

// rights gathers a list.
type rights struct {
	on   Prefixes
	what string // what needs those that follow
	list []Right
}

func newRights(on Prefixes) *rights {
	on.API, on.Inbox = cmp.Or(on.API, jetstream.DefaultAPIPrefix), cmp.Or(on.Inbox, "_INBOX")
	return &rights{on: on}
}

func (r *rights) add(op string, subjects []string) {
	for _, s := range subjects {
		if !slices.ContainsFunc(r.list, func(have Right) bool { return have.Op == op && have.Subject == s }) {
			r.list = append(r.list, Right{Op: op, Subject: s, For: r.what})
		}
	}
}

func (r *rights) publish(subjects ...string)   { r.add(opPublish, subjects) }
func (r *rights) subscribe(subjects ...string) { r.add(opSubscribe, subjects) }

func (r *rights) api(subjects ...string) {
	for _, s := range subjects {
		r.publish(r.on.API + s)
		if r.on.Domain == "" {
			continue
		}
		mapped := jetstream.DefaultAPIPrefix + s
		if strings.HasPrefix(s, "$") {
			mapped = s // a key of a bucket
		}
		r.list = append(r.list, Right{Op: opPublish, Subject: mapped, For: r.what, InsteadOf: r.on.API + s})
	}
}

// stream is what it takes to find one, or to make it.
func (r *rights) stream(name string, create bool) {
	r.api("STREAM.INFO." + name)
	if create {
		r.api("STREAM.CREATE." + name)
	}
}

func (r *rights) source(name string, s RightsSource) {
	r.what = "stream " + s.Stream
	r.stream(s.Stream, s.Create)
	durable := s.Stream + "." + Durable(name)
	// With one filter its name has the filter in it (nats.go, jetstream.CreateConsumer), so that this right is for no other.
	create := "CONSUMER.CREATE." + durable
	if len(s.Filters) == 1 {
		create += "." + s.Filters[0]
	}
	r.api("CONSUMER.INFO."+durable, create, "CONSUMER.MSG.NEXT."+durable, "CONSUMER.UNPIN."+durable)
	r.publish("$JS.ACK." + durable + ".>")
	if r.on.Domain != "" {
		// The newer form of the ack subject has domain and account in front.
		r.publish("$JS.ACK." + r.on.Domain + ".*." + durable + ".>")
	}
}

func (r *rights) mailbox(n BridgeNeeds) {
	r.what = "mailbox"
	name := MailboxStream(n.Name)
	r.stream(name, n.Create)
	r.api("DIRECT.GET."+name, "STREAM.MSG.GET."+name, "STREAM.MSG.DELETE."+name)
	r.publish(MailboxSubjects(n.Name))
}

func (r *rights) leases(n BridgeNeeds) {
	r.what = "who owns a stream"
	bucket := LeaseBucket(n.Name)
	r.stream("KV_"+bucket, n.Create)
	if n.Create {
		r.api("INFO") // nats.go asks for the account's limits before it makes a bucket
	}
	for _, s := range n.Sources {
		key := "$KV." + bucket + "." + kvKey(s.Stream)
		r.api("DIRECT.GET.KV_" + bucket + "." + key)
		if r.on.API == jetstream.DefaultAPIPrefix {
			r.publish(key)
		} else {
			r.api(key) // nats.go puts the prefix before the key (jetstream, kv.go)
		}
	}
}

// Permissions is rights as the permissions block of a user, in the syntax of nats-server's configuration
// (NATS documentation, Authorization), each line indented by indent.
func Permissions(list []Right, indent string) string {
	var b strings.Builder
	b.WriteString(indent + "permissions: {\n")
	for _, op := range []string{opPublish, opSubscribe} {
		var lines []string
		group := ""
		for _, r := range list {
			if r.Op != op {
				continue
			}
			if r.For != group {
				group = r.For
				lines = append(lines, "# "+group)
			}
			lines = append(lines, quoted(r.Subject))
		}
		b.WriteString(indent + "  " + op + ": {\n")
		if len(lines) == 0 {
			// A list that is empty would allow all.
			b.WriteString(indent + "    deny: [\">\"] # nothing\n")
		} else {
			b.WriteString(indent + "    allow: [\n")
			for _, line := range lines {
				b.WriteString(indent + "      " + line + "\n")
			}
			b.WriteString(indent + "    ]\n")
		}
		b.WriteString(indent + "  }\n")
	}
	b.WriteString(indent + "}\n")
	return b.String()
}

// quoted is a text of nats-server's configuration.
func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
