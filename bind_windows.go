package mcast

import (
	"context"
	"net"
	"syscall"

	"golang.org/x/sys/windows"
)

// bindsGroups: a bind to a group is WSAEADDRNOTAVAIL.
const bindsGroups = false

// open makes a socket bound to at, or to the wildcard address for a group.
func open(at endpoint) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if !at.shared() {
			return nil
		}
		e := raw.Control(func(fd uintptr) {
			err = windows.SetsockoptInt(windows.Handle(fd), windows.SOL_SOCKET, windows.SO_REUSEADDR, 1)
		})
		if e != nil {
			return e
		}
		return err
	}}
	c, err := lc.ListenPacket(context.Background(), at.network(), at.addrPort(bindsGroups).String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

const ipv6V6Only = 27 // https://learn.microsoft.com/en-us/windows/win32/winsock/ipproto-ipv6-socket-options

// dualStack reports whether an IPv6 socket takes IPv4 as well.
func dualStack(raw syscall.RawConn) (both bool) {
	raw.Control(func(fd uintptr) {
		only, err := windows.GetsockoptInt(windows.Handle(fd), windows.IPPROTO_IPV6, ipv6V6Only)
		both = err == nil && only == 0
	})
	return both
}

// readBuffer gives the size of the receive buffer, and 0 if it is unknown.
func readBuffer(c *net.UDPConn) (n int) {
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			n, _ = windows.GetsockoptInt(windows.Handle(fd), windows.SOL_SOCKET, windows.SO_RCVBUF)
		})
	}
	return n
}
