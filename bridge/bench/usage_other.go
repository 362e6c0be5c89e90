//go:build !(linux || darwin || freebsd || netbsd || openbsd)

package bench

import "time"

// resources is not known here.
func resources() (cpu time.Duration, peak int64, ok bool) { return 0, 0, false }
