package bridge_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// arrows says which of our packages each of ours may import, tests aside. A
// name that ends in /... stands for the package and all below it. Adapters do
// not import each other, they meet in app; the embedded hub shares no encoder
// with our clients, or a wrong topic would agree with itself.
var arrows = map[string][]string{
	"mapping":                  {},
	"configs":                  {},
	"bridge":                   {"mapping"},
	"bridge/internal/sas":      {},
	"bridge/internal/amqpwire": {},
	"bridge/spread":            {},
	"bridge/config":            {"mapping", "bridge/internal/sas"},
	"bridge/config/gen":        {"bridge/config"},
	"bridge/natsio":            {"mapping", "bridge"},
	"bridge/hubservice":        {"mapping", "bridge", "bridge/internal/sas"},
	"bridge/hubdevice":         {"mapping", "bridge", "bridge/internal/sas"},
	"bridge/relay":             {"mapping", "bridge"},
	"bridge/app":               {"mapping", "bridge", "bridge/config", "bridge/natsio", "bridge/hubservice", "bridge/hubdevice", "bridge/relay"},
	"bridge/emulator/...":      {"bridge/emulator/...", "bridge/internal/sas", "bridge/internal/amqpwire", "bridge/spread"},
	"bridge/bench":             {"bridge/app", "bridge/config", "bridge/emulator/...", "bridge/spread", "bridge/tcplink"},
	"bridge/tcplink":           {},
	"bridge/bridgetest/...":    {"..."},
	"cmd/...":                  {"..."},
}

func TestImportArrows(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "downlink/...").CombinedOutput()
	require.NoError(t, err, string(out))
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	require.Greater(t, len(lines), 10)
	for _, line := range lines {
		words := strings.Fields(line)
		from := strings.TrimPrefix(words[0], "downlink/")
		allowed, known := lookup(from)
		if !known {
			t.Errorf("%s is not in the table of arrows: say what it may import", from)
			continue
		}
		for _, imported := range words[1:] {
			to, ours := strings.CutPrefix(imported, "downlink/")
			if !ours {
				continue
			}
			if strings.HasPrefix(to, "bridge/bridgetest") && !strings.HasPrefix(from, "bridge/bridgetest") {
				t.Errorf("%s imports %s, which is for tests", from, to)
			}
			if !covers(allowed, to) {
				t.Errorf("%s imports %s; it may import %v", from, to, allowed)
			}
		}
	}
}

func lookup(pkg string) (allowed []string, known bool) {
	for pattern, to := range arrows {
		if covers([]string{pattern}, pkg) {
			return to, true
		}
	}
	return nil, false
}

func covers(patterns []string, pkg string) bool {
	for _, p := range patterns {
		below, tree := strings.CutSuffix(p, "...")
		if p == pkg || tree && (below == "" || pkg+"/" == below || strings.HasPrefix(pkg, below)) {
			return true
		}
	}
	return false
}
