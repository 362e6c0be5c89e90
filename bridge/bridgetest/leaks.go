package bridgetest

import (
	"flag"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// VerifyTestMain runs a package's tests and fails if a goroutine outlives them. A
// nats-server that is stopped while it makes a stream leaves that stream's own
// goroutines behind (filestore.go, newFileStoreWithCreatedAndMode), which nothing here can end.
func VerifyTestMain(m *testing.M) {
	ignored := []goleak.Option{
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*fileStore).flushStreamStateLoop"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*fileStore).flushLoop"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server/ats.Register.func1"),
	}
	goleak.VerifyTestMain(settling{m, ignored}, ignored...)
}

// settling gives what the tests have ended more time to be gone than goleak does, which is half a second.
type settling struct {
	m       *testing.M
	ignored []goleak.Option
}

func (s settling) Run() int {
	code := s.m.Run()
	for end := time.Now().Add(patience); code == 0 && goleak.Find(s.ignored...) != nil && time.Now().Before(end); {
		continue // Find itself pauses between its looks
	}
	return code
}

// Parallel has n of a package's parallel tests run at a time, not one a CPU: for tests that mostly wait. A TestMain
// calls it before VerifyTestMain; -parallel on the command line overrules it.
func Parallel(n int) {
	if err := flag.Set("test.parallel", strconv.Itoa(n)); err != nil {
		panic(err) // there is no such flag outside of a test binary
	}
}
