package config

import (
	"regexp"
	"strings"

	"downlink/mapping"
)

// maxLookup bounds a lookup's file.
const maxLookup = 64 << 20

// lookups checks the tables that expressions read.
func (p *problems) lookups(b *Bridge) {
	names := make(map[string]int)
	for i := range b.Lookups {
		l, at := &b.Lookups[i], "bridge.lookups["+itoa(i)+"]"
		switch first, twice := names[l.Name]; {
		case l.Name == "" && !p.has(at+".name"):
			p.addf(at+".name", `missing; expressions name it, such as lookup("aliases", device)`)
		case l.Name != "":
			p.token(at+".name", l.Name)
			if twice {
				p.addf(at+".name", "%s is the name of lookups[%d] already; give each lookup its own", show(l.Name), first)
			} else {
				names[l.Name] = i
			}
		}
		switch {
		case p.has(at+".bucket") || p.has(at+".file"):
		case l.Bucket != "" && l.File != "":
			p.addf(at+".file", "set as well as bucket; keep one of the two")
		case l.Bucket == "" && l.File == "":
			p.addf(at, "neither bucket nor file; add bucket: NAME (a NATS KV bucket) or file: PATH")
		}
		if l.Bucket != "" && !bucketName.MatchString(l.Bucket) {
			p.addf(at+".bucket", "%s is not a KV bucket's name; it has letters, digits, - and _", show(l.Bucket))
		}
		if l.File != "" && !mapping.LookupFile(l.File) {
			p.addf(at+".file", "%s is none of .yaml, .yml, .json and .csv, which tell how to read it", show(l.File))
		}
	}
}

var bucketName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,248}$`)

// checkLookups reads the lookups' files.
func (p *problems) checkLookups(c *Config, side Side) {
	if c.Bridge == nil || !side.has(BridgeSide) {
		return
	}
	for i, l := range c.Bridge.Lookups {
		at := "bridge.lookups[" + itoa(i) + "].file"
		if l.File == "" || p.has(at) {
			continue
		}
		b, err := readFile(l.File, maxLookup)
		if err != nil {
			p.addf(at, "cannot read %s: %w", l.File, reason(err))
			continue
		}
		if _, err := mapping.ParseLookup(l.File, b); err != nil {
			p.addf(at, "%s: %w", l.File, err)
		}
	}
}

// path reports whether a field names a file or a folder.
func path(at string) bool {
	return strings.HasSuffix(at, "_file") || strings.HasSuffix(at, ".store_dir") || strings.HasSuffix(at, "].file")
}
