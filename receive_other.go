//go:build !linux

package mcast

import (
	"errors"
	"net"
	"runtime"
)

// readBufferKnob is where the administrator allows more, if there is such a
// place.
var readBufferKnob = map[string]string{
	"darwin": "kern.ipc.maxsockbuf", "ios": "kern.ipc.maxsockbuf", "freebsd": "kern.ipc.maxsockbuf",
	"netbsd": "kern.sbmax", "dragonfly": "kern.ipc.maxsockbuf",
}[runtime.GOOS]

func growReadBuffer(c *net.UDPConn, n int) error { return c.SetReadBuffer(n) }

// kernelDrops: no other system counts them for a socket.
func kernelDrops(socket) (uint64, error) { return 0, errors.ErrUnsupported }
