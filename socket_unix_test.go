//go:build unix

package mcast_test

import (
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// isBound reports whether a socket has a port.
func isBound(fd uintptr) bool {
	switch sa, _ := unix.Getsockname(int(fd)); sa := sa.(type) {
	case *unix.SockaddrInet4:
		return sa.Port != 0
	case *unix.SockaddrInet6:
		return sa.Port != 0
	}
	return true
}

// mappedSocket is a socket of IPv6 that is bound to an IPv4 group.
func mappedSocket(t *testing.T, group netip.Addr) *net.UDPConn {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Skip(err)
	}
	f := os.NewFile(uintptr(fd), "mapped")
	defer f.Close()
	unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	if err := unix.Bind(fd, &unix.SockaddrInet6{Addr: group.As16()}); err != nil {
		t.Skipf("no socket of IPv6 on an IPv4 group: %v", err)
	}
	c, err := net.FilePacketConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.UDPConn)
}
