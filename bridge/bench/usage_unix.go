//go:build linux || darwin || freebsd || netbsd || openbsd

package bench

import (
	"runtime"
	"syscall"
	"time"
)

// resources is getrusage of this process.
func resources() (cpu time.Duration, peak int64, ok bool) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0, 0, false
	}
	peak = int64(r.Maxrss) // KB, but bytes on macOS
	if runtime.GOOS != "darwin" {
		peak <<= 10
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()), peak, true
}
