//go:build unix

package mapping

import (
	"syscall"
	"testing"
	"time"
)

// spent is the process's own time so far, which a busy machine does not lengthen as it does time.Since.
func spent(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// cpuTime reports the process's own time a round.
func cpuTime(b *testing.B) (report func()) {
	begin := spent(b)
	return func() { b.ReportMetric(float64(spent(b)-begin)/float64(b.N), "cpu-ns/op") }
}
