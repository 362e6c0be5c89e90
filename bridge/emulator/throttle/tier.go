// Package throttle is what an IoT Hub of a given tier and number of units
// allows: rates with traffic shaping, and the daily quota (IoT Hub developer
// guide, "Quotas and throttling"). It knows no protocol; each endpoint asks it.
package throttle

import (
	"fmt"
	"strings"
)

// Tier is an edition of IoT Hub. The zero value is a hub without limits.
type Tier string

// The tiers.
const (
	Off Tier = ""
	F1  Tier = "F1"
	S1  Tier = "S1"
	S2  Tier = "S2"
	S3  Tier = "S3"
	B1  Tier = "B1"
	B2  Tier = "B2"
	B3  Tier = "B3"
)

// limits are one unit's, but for devices, which the lowest tier gives a floor.
type limits struct {
	maxUnits int
	sends    float64 // cloud-to-device messages a second; 0: the tier has none
	registry float64 // operations a second
	devices  float64 // new connections, and device-to-cloud messages, a second
	floor    float64 // of devices, however few the units
	daily    int64   // messages a day
	block    int     // bytes that count as one of them
}

var tiers = map[Tier]limits{
	F1: {maxUnits: 1, sends: 100. / 60, registry: 100. / 60, devices: 12, floor: 100, daily: 8_000, block: 512},
	S1: {maxUnits: 200, sends: 100. / 60, registry: 100. / 60, devices: 12, floor: 100, daily: 400_000, block: 4096},
	S2: {maxUnits: 200, sends: 100. / 60, registry: 100. / 60, devices: 120, daily: 6_000_000, block: 4096},
	S3: {maxUnits: 10, sends: 5000. / 60, registry: 5000. / 60, devices: 6000, daily: 300_000_000, block: 4096},
	B1: {maxUnits: 200, registry: 100. / 60, devices: 12, floor: 100, daily: 400_000, block: 4096},
	B2: {maxUnits: 200, registry: 100. / 60, devices: 120, daily: 6_000_000, block: 4096},
	B3: {maxUnits: 10, registry: 5000. / 60, devices: 6000, daily: 300_000_000, block: 4096},
}

// ParseTier reads a tier's name in any letter case; "" and "off" are Off.
func ParseTier(s string) (Tier, error) {
	t := Tier(strings.ToUpper(s))
	if t == Off || t == "OFF" {
		return Off, nil
	}
	if _, ok := tiers[t]; !ok {
		return Off, fmt.Errorf("no tier %.20q: take F1, S1, S2, S3, B1, B2, B3 or off", s)
	}
	return t, nil
}
