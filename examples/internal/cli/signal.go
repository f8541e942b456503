//go:build !js

package cli

import (
	"os"
	"os/signal"
	"syscall"
)

// hangUp is sent when a terminal is closed, unless nohup was asked to keep the
// program running.
var hangUp = func() []os.Signal {
	if signal.Ignored(syscall.SIGHUP) {
		return nil
	}
	return []os.Signal{syscall.SIGHUP}
}()
