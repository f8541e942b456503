package mcast_test

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/windows"
)

// isBound reports whether a socket has a port; one that is not bound has no
// name.
func isBound(fd uintptr) bool {
	switch sa, _ := windows.Getsockname(windows.Handle(fd)); sa := sa.(type) {
	case *windows.SockaddrInet4:
		return sa.Port != 0
	case *windows.SockaddrInet6:
		return sa.Port != 0
	}
	return false
}

func mappedSocket(t *testing.T, _ netip.Addr) *net.UDPConn {
	t.Helper()
	t.Skip("no socket is bound to a group")
	return nil
}
