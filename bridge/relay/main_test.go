package relay_test

import (
	"testing"

	"downlink/bridge/bridgetest"
)

func TestMain(m *testing.M) { bridgetest.VerifyTestMain(m) }
