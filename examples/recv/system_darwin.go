package main

import (
	"net"
	"os"
	"strings"
	"syscall"
)

// From <netinet6/in6.h>; that for IPv4 is in package syscall.
const ipv6BoundIf = 125

// bindTo makes a socket hear and send by one interface only; see ip(4).
func bindTo(ifname string) func(network, address string, c syscall.RawConn) error {
	return func(network, _ string, c syscall.RawConn) (err error) {
		ifi, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		level, option := syscall.IPPROTO_IP, syscall.IP_BOUND_IF
		if strings.HasSuffix(network, "6") {
			level, option = syscall.IPPROTO_IPV6, ipv6BoundIf
		}
		if e := c.Control(func(fd uintptr) {
			err = os.NewSyscallError("IP_BOUND_IF", syscall.SetsockoptInt(int(fd), level, option, ifi.Index))
		}); e != nil {
			return e
		}
		return err
	}
}

// oldVersion is not known here.
func oldVersion(string, bool) string { return "" }
