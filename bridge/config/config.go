// Package config is the configuration file: its structs, defaults, strict
// decoding and validation. Load reads and checks everything a file alone can
// tell and touches nothing but the file and the files that it names.
//
// The file is decoded by this package, not by viper, which lower-cases keys and
// splits them at dots; viper reads the few settings that the environment and
// flags may override (env.go). Every mistake is an *Error with file, line and
// path, and all of them are reported at once.
//
// A count is an int and a size in bytes an int64, which is how the decoder
// tells them apart: sizes may be written with a unit, such as 1GiB.
package config

//go:generate go run ./gen

import (
	"time"

	"downlink/mapping"
)

// Config is a whole file. Bridge, Relay or both are set.
type Config struct {
	// Version is the file format's version: 1.
	Version int `yaml:"version"`
	// Bridge is the cloud side: NATS to IoT Hub.
	Bridge *Bridge `yaml:"bridge"`
	// Relay is the device side: IoT Hub to the local NATS.
	Relay *Relay `yaml:"relay"`
	// HTTP is the address of /livez, /readyz, /metrics and /status; "off" serves none. Default 127.0.0.1:9464, and 127.0.0.1:9465 for a relay on its own.
	HTTP string `yaml:"http"`
	// Log sets level and format of the log on stderr.
	Log Log `yaml:"log"`
	// ShutdownGrace is how long the first signal lets messages in flight finish. Default 10s.
	ShutdownGrace time.Duration `yaml:"shutdown_grace"`

	// Warnings are what Load found odd but not wrong.
	Warnings []*Error `yaml:"-"`
}

// Log configures the structured log.
type Log struct {
	// Level is debug, info (default), warn or error.
	Level string `yaml:"level"`
	// Format is text (default) or json.
	Format string `yaml:"format"`
}

// Bridge is the cloud side.
type Bridge struct {
	// Name prefixes everything of this bridge on NATS: durables, queue groups, streams, subjects. Default downlink.
	Name string `yaml:"name"`
	// NATS is where the messages come from.
	NATS NATS `yaml:"nats"`
	// Hubs lists the IoT Hubs; the first is the default.
	Hubs []Hub `yaml:"hubs"`
	// Templates are sets of properties that routes share by use.
	Templates []mapping.Template `yaml:"templates"`
	// Lookups are the tables that routes read with lookup and group.
	Lookups []Lookup `yaml:"lookups"`
	// Routes are tried in order; the first match wins.
	Routes []Route `yaml:"routes"`
	// Unmatched is drop (default) or dead: what becomes of a message that no route takes.
	Unmatched string `yaml:"unmatched"`
	// Storage bounds what the bridge keeps in JetStream.
	Storage Storage `yaml:"storage"`
}

// NATS is one connection, the same block on both sides.
type NATS struct {
	// URL lists servers. Default nats://127.0.0.1:4222, without context and embedded.
	URL []string `yaml:"url"`
	// Context names a context of the nats CLI, instead of url and credentials.
	Context string `yaml:"context"`
	// CredsFile is a .creds file (JWT and seed).
	CredsFile string `yaml:"creds_file"`
	// NKeyFile holds an nkey seed.
	NKeyFile string `yaml:"nkey_file"`
	// TokenFile holds a token.
	TokenFile string `yaml:"token_file"`
	// User is a user name; it goes with password_file.
	User string `yaml:"user"`
	// PasswordFile holds the password of user.
	PasswordFile string `yaml:"password_file"`
	// TLS trusts a private CA and shows a client certificate.
	TLS NATSTLS `yaml:"tls"`
	// Embedded starts a nats-server with JetStream in this process instead.
	Embedded *EmbeddedNATS `yaml:"embedded"`
}

// NATSTLS is the TLS side of a NATS connection.
type NATSTLS struct {
	// CAFile holds CA certificates (PEM) to trust instead of the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile is the client certificate (PEM); it goes with key_file.
	CertFile string `yaml:"cert_file"`
	// KeyFile is the client certificate's key (PEM).
	KeyFile string `yaml:"key_file"`
}

// EmbeddedNATS is a nats-server in this process.
type EmbeddedNATS struct {
	// Listen is its address; port 0 picks a free one. Default 127.0.0.1:4222.
	Listen string `yaml:"listen"`
	// StoreDir keeps JetStream's files. Empty: a temporary directory, gone at exit.
	StoreDir string `yaml:"store_dir"`
	// Streams are created at start if they do not exist.
	Streams []Stream `yaml:"streams"`
}

// Stream is a stream to create.
type Stream struct {
	// Name is the stream's name, such as COMMANDS.
	Name string `yaml:"name"`
	// Subjects are what it stores; wildcards * and > are allowed.
	Subjects []string `yaml:"subjects"`
}

// Hub is one IoT Hub's service side.
type Hub struct {
	// Name is used in routes, receipts and metrics. Default main.
	Name string `yaml:"name"`
	// ConnectionString is a service connection string with the ServiceConnect right; prefer the file.
	ConnectionString Secret `yaml:"connection_string"`
	// ConnectionStringFile is a file that holds the connection string. Exactly one of the two, unless embedded or entra. It is read again when it changes.
	ConnectionStringFile string `yaml:"connection_string_file"`
	// SecondaryConnectionString is used while the hub refuses the first, and tried after it from then on; prefer the file.
	SecondaryConnectionString Secret `yaml:"secondary_connection_string"`
	// SecondaryConnectionStringFile is a file that holds the secondary connection string. It is read again when it changes.
	SecondaryConnectionStringFile string `yaml:"secondary_connection_string_file"`
	// Entra authorizes with Microsoft Entra ID instead of a connection string; entra: {} takes what the machine offers.
	Entra *Entra `yaml:"entra"`
	// Host is the hub's host name, such as my-hub.azure-devices.net, with entra.
	Host string `yaml:"host"`
	// Embedded uses the embedded hub of this process.
	Embedded bool `yaml:"embedded"`
	// Transport is amqp (default) or websocket: AMQP through HTTPS, and through the proxy that HTTPS_PROXY and NO_PROXY name.
	Transport string `yaml:"transport"`
	// AMQPAddress is host:port when it is not the hub's name and 5671.
	AMQPAddress string `yaml:"amqp_address"`
	// HTTPSAddress is host:port for transport: websocket when it is not the hub's name and 443.
	HTTPSAddress string `yaml:"https_address"`
	// CAFile adds a CA to trust, such as that of downlink hub.
	CAFile string `yaml:"ca_file"`
	// Window is how many messages may be in flight to the hub at once. Default 512.
	Window int `yaml:"window"`
	// Tier is F1, S1, S2 or S3: how fast the hub may be sent to, and its daily quota. Without tier and rate the pace is learned from its answers.
	Tier string `yaml:"tier"`
	// Units is the hub's number of units of its tier. Default 1.
	Units int `yaml:"units"`
	// Rate is in messages a second, instead of the tier's; it may have a fraction, such as 0.5.
	Rate float64 `yaml:"rate"`
	// Share is this bridge's part, above 0 and up to 1, of the hub's rate and daily quota; the rest is left to other senders. It goes with tier, rate or daily_messages. Default 1.
	Share float64 `yaml:"share"`
	// DailyMessages is the quota of a day (UTC), in blocks of 4 KB (tier F1: 0.5 KB), instead of the tier's. At the limit the hub pauses until 00:00 UTC.
	DailyMessages int `yaml:"daily_messages"`
	// PropertyCharset is utf8 (default) or documented: the hub's documented set of ASCII characters only.
	PropertyCharset string `yaml:"property_charset"`
	// Feedback says when the hub's feedback is read: auto (default: once a message to the hub asked for it, by ack or by waiting for completed), always or never. A hub has one feedback queue: what is read here no other reader gets, so records of other senders are published as receipts, too.
	Feedback string `yaml:"feedback"`
}

// Entra is who the bridge is to Microsoft Entra ID. Empty, it is what azidentity's
// DefaultAzureCredential finds: the environment, workload identity, managed
// identity, or the developer's az login.
type Entra struct {
	// TenantID is the directory's ID or domain.
	TenantID string `yaml:"tenant_id"`
	// ClientID is the application's, or the user-assigned managed identity's.
	ClientID string `yaml:"client_id"`
	// ClientSecretFile is a file that holds the application's secret. It is read for every token.
	ClientSecretFile string `yaml:"client_secret_file"`
	// ClientCertificateFile is a file that holds the application's certificate and private key (PEM, or PKCS #12 without a password). It is read for every token.
	ClientCertificateFile string `yaml:"client_certificate_file"`
	// Identity is default (default), managed (the machine's managed identity) or workload (a federated Kubernetes service account).
	Identity string `yaml:"identity"`
	// Authority is where tokens come from when it is not Azure's public cloud, such as https://login.microsoftonline.us/.
	Authority string `yaml:"authority"`
}

// Lookup is a table of values that expressions look up by a key: lookup("aliases", device) is nil for a key that is not
// there. A value is a text or a list of texts.
type Lookup struct {
	// Name is what expressions call it. group(name) reads the one named groups, whose values are device IDs.
	Name string `yaml:"name"`
	// Bucket is a NATS KV bucket, watched. Its values are texts, or lists as JSON; what a key cannot have there is looked up as =XX.
	Bucket string `yaml:"bucket"`
	// File is a file of keys and values, read again when it changes: .yaml, .json, or .csv without a header line (key, value; more columns are a list). Exactly one of bucket and file.
	File string `yaml:"file"`
}

// Route is a mapping route and how its stream is consumed.
type Route struct {
	mapping.Route `yaml:",inline"`
	// Start is new (default), all or an RFC 3339 time: where a durable begins when it is first created. Streams with work-queue retention: all.
	Start string `yaml:"start"`
	// Create makes the stream, holding the route's subject, if it does not exist.
	Create bool `yaml:"create"`
	// DeviceNotFound says what becomes of a message for a device that the hub does not know: dead (default) or retry.
	DeviceNotFound string `yaml:"device_not_found"`
}

// Storage bounds the bridge's own streams.
type Storage struct {
	// Create makes missing streams. Default true.
	Create *bool `yaml:"create"`
	// Replicas is a number or "source" (default: as the source stream's).
	Replicas string `yaml:"replicas"`
	// DeadMaxAge is how long dead letters are kept. Default 30d.
	DeadMaxAge time.Duration `yaml:"dead_max_age"`
	// DeadMaxBytes bounds their stream. Default 1GiB.
	DeadMaxBytes int64 `yaml:"dead_max_bytes"`
	// MailboxMaxBytes bounds the stream of what waits beyond the memory, when it is created; a full one leaves messages at their source. Default 0: no bound of its own.
	MailboxMaxBytes int64 `yaml:"mailbox_max_bytes"`
	// ReceiptsMaxAge is how long receipts are kept. Default 7d.
	ReceiptsMaxAge time.Duration `yaml:"receipts_max_age"`
	// ReceiptsMaxBytes bounds their stream, and the bucket of what still waits for feedback. Default 1GiB.
	ReceiptsMaxBytes int64 `yaml:"receipts_max_bytes"`
}

// Relay is the device side.
type Relay struct {
	// Name is added to Downlink-Via and prefixes the relay's own subjects. Default downlink.
	Name string `yaml:"name"`
	// NATS is the local server.
	NATS NATS `yaml:"nats"`
	// Devices are the identities to receive for.
	Devices []Device `yaml:"devices"`
	// Publish says where messages go on the local NATS.
	Publish Publish `yaml:"publish"`
	// AllowSubjects lists subjects that a message may name for itself by its original subject.
	AllowSubjects []string `yaml:"allow_subjects"`
}

// Device is one device identity.
type Device struct {
	// ConnectionString is the device's connection string; prefer the file.
	ConnectionString Secret `yaml:"connection_string"`
	// ConnectionStringFile is a file that holds the connection string. Exactly one of the two, unless embedded.
	ConnectionStringFile string `yaml:"connection_string_file"`
	// Embedded names a device of the embedded hub of this process instead.
	Embedded string `yaml:"embedded"`
	// MQTTAddress is host:port when it is not the hub's name and 8883.
	MQTTAddress string `yaml:"mqtt_address"`
	// CAFile adds a CA to trust, such as that of downlink hub.
	CAFile string `yaml:"ca_file"`
}

// Publish is the relay's target.
type Publish struct {
	// Subject is a template. Default: edge.{device}, plus .{property verb} if there is one.
	Subject string `yaml:"subject"`
	// Stream is the JetStream stream that stores the subject. Without it: core NATS.
	Stream string `yaml:"stream"`
	// Create makes the stream if it does not exist.
	Create bool `yaml:"create"`
}
