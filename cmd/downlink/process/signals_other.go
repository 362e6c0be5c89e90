//go:build !unix

package process

import "os"

var terminate, freeze, wake os.Signal
