//go:build unix

package mapping

import (
	"syscall"
	"testing"
	"time"
)

// cpuTime reports the process's own time a round, which a busy machine does not spoil as it does ns/op.
func cpuTime(b *testing.B) (report func()) {
	spent := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	begin := spent()
	return func() { b.ReportMetric(float64(spent()-begin)/float64(b.N), "cpu-ns/op") }
}
