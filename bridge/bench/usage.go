package bench

import (
	"bytes"
	"os"
	"runtime/metrics"
	"strconv"
	"time"
)

// Stat is what a process has used since it started.
type Stat struct {
	CPU  time.Duration `json:"cpu_ns"` // user and system time
	RSS  int64         `json:"rss_bytes"`
	Peak int64         `json:"peak_rss_bytes"`
	Heap int64         `json:"heap_bytes"` // of it, Go objects that live or are not yet collected
	// Count is how many messages the hub has accepted; 0 of another part.
	Count int `json:"count"`
}

// usage asks the kernel about this process. Where it does not tell, the Go
// runtime's own estimates stand in: its CPU classes, as of the last collection,
// and the memory it holds.
func usage() Stat {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"},
		{Name: "/cpu/classes/total:cpu-seconds"}, {Name: "/cpu/classes/idle:cpu-seconds"},
	}
	metrics.Read(samples)
	s := Stat{Heap: int64(samples[0].Value.Uint64()), RSS: int64(samples[1].Value.Uint64() - samples[2].Value.Uint64())}
	s.Peak = s.RSS
	cpu, peak, ok := resources()
	if ok {
		s.CPU, s.Peak = cpu, peak
	} else {
		s.CPU = time.Duration((samples[3].Value.Float64() - samples[4].Value.Float64()) * float64(time.Second))
	}
	// Linux: the most since this program began. The rusage of a process begins with that of its parent (getrusage(2), execve(2)).
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return s
	}
	if n, ok := statusField(status, "VmRSS:"); ok {
		s.RSS = n
	}
	if n, ok := statusField(status, "VmHWM:"); ok {
		s.Peak = n
	}
	return s
}

// statusField reads one line of /proc/PID/status, such as "VmRSS:	  1234 kB".
func statusField(status []byte, name string) (bytesUsed int64, ok bool) {
	for line := range bytes.Lines(status) {
		if f := bytes.Fields(line); len(f) == 3 && string(f[0]) == name && string(f[2]) == "kB" {
			n, err := strconv.ParseInt(string(f[1]), 10, 64)
			return n << 10, err == nil
		}
	}
	return 0, false
}
