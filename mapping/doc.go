// Package mapping translates between NATS messages and IoT Hub cloud-to-device
// (C2D) messages, both ways, and does nothing else: no I/O, no clocks, no
// goroutines. On the cloud side a Table turns an Input into Envelopes; on the
// device side a RelayMap turns a C2D message into a Publication. Both are
// deterministic, so that whatever is sent again is byte-identical; the
// exceptions are the random message ID of a core NATS message (TableOptions.Rand)
// and lookups, whose values are those of now.
//
// Everything a configuration can get wrong is found by Compile and
// CompileRelay, as joined *FieldError. What only a message can get wrong (an
// absent header, a value the hub cannot carry) is a *RouteError with a
// dead-letter reason.
//
// # Subjects
//
// A route's subject is a NATS subject whose whole tokens may be captures: {x}
// takes one token, {x...} the rest (one token or more, last place only); * and >
// match without a name. A capture's name is [a-z][a-z0-9_]*, no keyword of the
// expression language and none of the names below. Subjects that begin with $,
// _INBOX, or the bridge's own (NAME.receipt, NAME.dead, NAME.mailbox) never
// match, also not by a wildcard.
//
// The first route that takes a message gets it, and after one with also: true the
// next one too. A route with when takes only messages for which that
// expression is true (nil is not). There, json is nil if the payload is no JSON, so that
// json?.kind == "x" asks for both. A condition that fails makes the message a dead
// letter ReasonExpression: to try the next route would send it where it may
// not belong. A route with default: true takes what no other route took (one
// with also: true included), wherever it stands. To find a subject's routes costs the
// subject's depth, not the number of routes.
//
// # Templates and expressions
//
// Text between braces is an expression of expr-lang/expr; {{ and }} are literal
// braces. Names on the cloud side: the captures, subject, header, payload (the
// body as text), json (the body decoded on first use), stream (nil from core
// NATS), sequence and time (stored time, UTC); where the device is known already
// (hub, message, properties, coalesce) also target, its ID; and cloudevent, the
// attributes of a CloudEvent in binary mode (headers ce-…, in any letter case, decoded; empty for
// anything else; datacontenttype also from Content-Type). On the relay's side: device,
// property, message (id, correlation_id, user_id, content_type,
// content_encoding, to, expires, ack) and subject (the original one).
//
// header["X"] looks up by exact name. Absent is nil, empty is "". A header with
// several values is one text, the values joined by ", " in order (RFC 9110
// §5.3's list rule); the same holds for pattern copies, and for a property that
// a device receives twice. To pick one of several, or to have them apart, headers["X"] is
// their list, empty if absent: first(headers["X"]). Integers in json stay integers (beyond 64 bits their
// digits, as text); floats are written shortest, as JSON does; true and false as
// such; a time in RFC 3339. Lists and maps are refused.
//
// Functions, beside the operators (?? ?. in contains matches startsWith and so on):
//
//   - text: lower, upper, trim, trimPrefix, trimSuffix, split, splitAfter, replace, join,
//     indexOf, lastIndexOf, hasPrefix, hasSuffix, len, string
//   - encoding and hashing: toBase64, fromBase64, hex, fromHex, urlEncode, urlDecode
//     (RFC 3986's unreserved stay), toJSON, fromJSON, sha256 (in hex), bucket(text, n)
//     (0 to n-1, always the same for a text)
//   - numbers: int, float, abs, ceil, floor, round, min, max, sum, mean, median, bit…
//   - lists: map, filter, find, any, all, none, one, count, first, last, take, get,
//     sort, reverse, uniq, concat, flatten
//   - time: time.Format("2006-01-02"), time.Unix(), time.UnixMilli() and time's parts
//   - lookup and group, below
//
// An expression has no clock, no I/O and no time zones: what reads them (now,
// date, timezone, duration) is refused at load. So is what has no bound in time and
// memory, or no stable order: keys, values, toPairs, groupBy, reduce, repeat, a
// loop within a loop, and in each round of a loop what works on more than the entry at hand. What
// map gives in each round from outside of its loop, or what is compared there with another such value, has
// at most 1,024 bytes; an entry of a list counts 16 more.
// An expression has at most 4,096 bytes and 500 nodes, makes at most 100,000 list entries
// and texts of about 256 KB by replace, join and toJSON; the payload has at most 64 KB.
//
// # Lookups and groups
//
// lookup("NAME", key) is the value of a key in one of the bridge's lookups, nil
// if it has no such key or the key is nil. A value is a text, or a list or
// an object of JSON. So a missing key is a case of absence, below: in device it is a dead
// letter ReasonAbsent, unless the expression says otherwise with ??. group(name)
// is lookup("groups", name).
//
// allow and deny bound the devices of a route by patterns, however they were
// chosen; deny goes before allow. Any other is ReasonNotAllowed.
//
// devices sends to several devices: a list, or a text of IDs with commas between
// them, as a header with several values is one (an ID with a comma in it, which
// is legal, needs a list). Each is checked on its own, and what is wrong with one
// is a result of its own. Repeats are left out, the order is kept. Nil (no such
// group) is ReasonAbsent; a list without devices is not wrong, and dropped as
// ReasonNoDevices; more than 100,000 are ReasonManyDevices.
//
// hub may be an expression too; what is no hub's name is ReasonUnknownHub.
//
// # Delivery
//
// What a publisher may set for one message: Downlink-TTL (whole seconds or a
// duration; it takes the place of the route's ttl, at most 48 hours) and
// Downlink-Wait (accepted, the default, or completed, which needs a route that asks for
// acks and makes them full). One that cannot be read is ReasonBadHeader: to send
// a command that may be too old, or never to answer, is worse than to say so.
// So are headers that cannot be read at all, such as one with a line end in its value:
// without them the message would be another one.
// Downlink-Reply-To names where the outcome goes: a subject under _INBOX. or
// under the tokens before the first wildcard of the route's subject. Any other
// is left aside, since the message itself is good; its receipt is stored all the same.
// The reply subject of a core NATS request goes before it; neither may be
// under $… or among the bridge's own subjects.
//
// Receipts are asked for by receipts: true, by ack, and by either reply subject.
//
// coalesce is the template of a key within its route. Nil: this message neither
// replaces another nor is replaced. The empty text is a key like any other.
//
// # Absence
//
// A field that is one single expression and nil is omitted. Nil inside mixed
// text, in device or in the relay's subject is ReasonAbsent. An empty system
// property is not sent; an empty application property is sent empty.
//
// # Legal values
//
// What cannot travel as it is (CR, LF and other control characters, outer
// spaces, invalid UTF-8, and, if the hub is limited to it, what is outside its
// documented set) travels percent-encoded, "%" included, and is listed in the
// property "downlink-enc": the wire names of such properties, each with every
// byte outside [A-Za-z0-9_.-] as %XX, joined by "|"; a leading "!" says that the
// name is encoded too (a copied name is also encoded if it holds "%", begins
// with "$." or "iothub-", which the hub reads itself). The relay undoes it. What
// NATS headers cannot carry is encoded again for the edge and listed in the same
// format in the header Downlink-Enc.
//
// Message IDs: bytes outside the hub's set are percent-encoded; over 128
// characters the ID becomes "sha256-" and the digest of the original in hex, and
// the original travels as the property Downlink-Original-Message-Id.
//
// A message is ReasonTooLarge if it has more than MaxMessageSize by the hub's way of
// counting, or properties that make a topic over MaxTopic, which no device on MQTT could get.
//
// # Names
//
// The properties of the templates that a route uses come before its own; of a
// name that is in both, the route's own entry counts. Two templates with one name
// in common do not go together.
//
// An application property's name keeps its case, and copies that differ in case
// alone both travel. But some SDKs fold case, so two explicit properties must
// differ in more than case, and an explicit property, even an omitted one,
// stands in for every copy of that name in any case. Of two copies to one name the first
// rule's wins; within a rule headers are taken in the order of their names.
//
// Nats-* and Downlink-* headers (any case) are not copied. On the device side such
// properties become headers Downlink-Prop-<name>, inert. So does "Status" of a
// message without a body, which NATS clients take for a server's notice.
//
// The W3C trace context (traceparent, tracestate) is carried by every route, also
// a plain one, when the publisher set it.
//
// The relay takes downlink-enc, Downlink-Subject, Downlink-Seq, Downlink-Via and
// Downlink-Original-Message-Id as ours by their exact names, from anyone who may
// send to the device: they are information, not proof. That is why a message
// chooses its subject only within RelayOptions.AllowSubjects.
package mapping
