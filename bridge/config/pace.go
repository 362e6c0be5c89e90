package config

import (
	"slices"
	"strconv"
)

// maxUnits is how many units a hub of a tier can have ("IoT Hub pricing"): F1 has
// one, S3 ten.
var maxUnits = map[string]int{"F1": 1, "S1": 200, "S2": 200, "S3": 10}

// fastestRate is more than the largest hub takes (ten units of S3: 833 a second) by
// far; beyond it nothing is paced.
const fastestRate = 1_000_000

// pace checks what says how fast a hub may be sent to.
func (p *problems) pace(at string, h *Hub) {
	tier, units := at+".tier", at+".units"
	switch {
	case slices.Contains([]string{"B1", "B2", "B3", "b1", "b2", "b3"}, h.Tier):
		p.addf(tier, "%s: Basic tiers have no cloud-to-device messages; the hub must be of tier F1, S1, S2 or S3", show(h.Tier))
	case h.Tier != "" || p.src.given(tier) && !p.has(tier):
		p.oneOf(tier, h.Tier)
	}
	most := maxUnits[h.Tier]
	switch {
	case h.Units == 0 && !p.src.given(units), p.has(units), p.has(tier):
	case h.Tier == "":
		p.addf(units, "%d units of no tier; add tier: F1, S1, S2 or S3", h.Units)
	case h.Units < 1 || h.Units > most:
		p.addf(units, "%d is out of range; a hub of tier %s has %s", h.Units, h.Tier, upTo(most))
	}
	if rate := at + ".rate"; h.Rate < 0 || h.Rate > fastestRate || h.Rate == 0 && p.src.given(rate) && !p.has(rate) {
		p.addf(rate, "%s is out of range; take messages a second, above 0 and up to %d", number(h.Rate), fastestRate)
	}
	daily := at + ".daily_messages"
	if h.DailyMessages < 0 || h.DailyMessages == 0 && p.src.given(daily) && !p.has(daily) {
		p.addf(daily, "%d is out of range; take at least 1, or leave it out for the tier's quota", h.DailyMessages)
	}
	share := at + ".share"
	nothing := h.Tier == "" && h.Rate == 0 && h.DailyMessages == 0 && !p.has(tier) && !p.has(at+".rate") && !p.has(daily)
	switch {
	case p.has(share), h.Share == 0 && !p.src.given(share):
	case !(h.Share > 0 && h.Share <= 1):
		p.addf(share, "%s is out of range; take a part above 0 and up to 1, such as 0.5 for half of the hub", number(h.Share))
	case h.Share < 1 && nothing:
		p.addf(share, "%s of what is not known; add tier, rate or daily_messages", number(h.Share))
	}
}

func upTo(most int) string {
	if most == 1 {
		return "1"
	}
	return "1 to " + itoa(most)
}

// number writes a number as it would stand in the file.
func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
