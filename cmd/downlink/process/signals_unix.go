//go:build unix

package process

import (
	"os"
	"syscall"
)

var terminate, freeze, wake os.Signal = syscall.SIGTERM, syscall.SIGSTOP, syscall.SIGCONT
