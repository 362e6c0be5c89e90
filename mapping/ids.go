package mapping

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"io"
	"strconv"
	"sync"
	"time"
)

const maxMessageID = 128

// appendDefaultID appends <stream>:<sequence>:<stored time in ns, base 36>. The
// time keeps IDs apart when a stream is made anew and counts from 1 again.
func appendDefaultID(b []byte, stream string, seq uint64, stored time.Time) []byte {
	b = append(b, stream...)
	b = append(b, ':')
	b = strconv.AppendUint(b, seq, 10)
	b = append(b, ':')
	return strconv.AppendInt(b, stored.UnixNano(), 36)
}

// randomID is for core NATS, where nothing identifies a message.
type randomID struct {
	mu sync.Mutex
	r  io.Reader // nil: crypto/rand, which never fails
}

func (g *randomID) append(b []byte) []byte {
	var raw [16]byte
	if g.r == nil {
		rand.Read(raw[:])
	} else {
		g.mu.Lock()
		_, err := io.ReadFull(g.r, raw[:])
		g.mu.Unlock()
		if err != nil {
			rand.Read(raw[:])
		}
	}
	return hex.AppendEncode(b, raw[:])
}

// legalMessageID makes an ID that the hub takes. original is set if the ID had to be hashed.
func legalMessageID(s string) (id, original string) {
	if inClass(s, classID) {
		if len(s) <= maxMessageID {
			return s, ""
		}
	} else {
		// "%" is legal in an ID, but encoded here so that two IDs stay two.
		b := make([]byte, 0, len(s)+16)
		for i := 0; i < len(s) && len(b) <= maxMessageID; i++ {
			if s[i] != '%' && classes[s[i]]&classID != 0 {
				b = append(b, s[i])
			} else {
				b = appendPercent(b, s[i])
			}
		}
		if len(b) <= maxMessageID {
			return string(b), ""
		}
	}
	sum := sha256.Sum256([]byte(s))
	return "sha256-" + hex.EncodeToString(sum[:]), s
}

// publicationID is what makes a repeat a repeat at the edge: senders do reuse
// message IDs, so the digest of topic and payload is part of it.
func publicationID(c *C2D) string {
	if c.MessageID == "" {
		return ""
	}
	content := sha256.New()
	writeField(content, c.Topic)
	content.Write(c.Body)
	id := sha256.New()
	writeField(id, c.Device)
	writeField(id, c.MessageID)
	id.Write(content.Sum(nil))
	return base64.RawURLEncoding.EncodeToString(id.Sum(nil))
}

// writeField writes s with its length before it, so that no two fields run into one.
func writeField(w io.Writer, s string) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(s)))
	w.Write(n[:])
	io.WriteString(w, s)
}
