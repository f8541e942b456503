//go:build unix

package mcast

import (
	"errors"
	"net"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// bindsGroups: a socket can be bound to a group.
const bindsGroups = true

// open makes a socket bound to at.
func open(at endpoint) (*net.UDPConn, error) {
	fd, err := bindSocket(at)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "udp")
	defer f.Close() // net.FilePacketConn makes a copy
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// bindSocket makes a socket bound to at that does not block. Package net binds
// to the wildcard address in place of a group, so this does not go through it.
func bindSocket(at endpoint) (int, error) {
	family := unix.AF_INET
	if at.ipv6 {
		family = unix.AF_INET6
	}
	fd, err := socketFor(family)
	if err != nil {
		return -1, err
	}
	if err := bind(fd, at); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func bind(fd int, at endpoint) error {
	if at.ipv6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	if at.shared() {
		if err := share(fd); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(at)))
}

// share lets several sockets have one port, each with its own copy of what is
// sent to a group. Linux wants SO_REUSEADDR; SO_REUSEPORT would there keep
// other users' programs out. macOS, the BSDs and AIX want SO_REUSEPORT too, on
// wildcard sockets.
func share(fd int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	switch runtime.GOOS {
	case "linux", "android", "solaris", "illumos":
		return err
	}
	const reusePort = 0x200 // 4.4BSD; golang.org/x/sys has no name for it on all
	return errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, reusePort, 1))
}

func sockaddr(at endpoint) unix.Sockaddr {
	a := at.addrPort(bindsGroups).Addr()
	if !at.ipv6 {
		return &unix.SockaddrInet4{Port: at.port, Addr: a.As4()}
	}
	sa := &unix.SockaddrInet6{Port: at.port, Addr: a.As16()}
	switch {
	case a.IsLinkLocalMulticast() || a.IsInterfaceLocalMulticast():
		sa.ZoneId = uint32(at.group.Interface)
	case a.Zone() != "":
		if i, err := zoneIndex(a.Zone(), theHost); err == nil {
			sa.ZoneId = uint32(i)
		}
	}
	return sa
}

// dualStack reports whether an IPv6 socket takes IPv4 as well.
func dualStack(raw syscall.RawConn) (both bool) {
	raw.Control(func(fd uintptr) {
		only, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		both = err == nil && only == 0
	})
	return both
}

// readBuffer gives the size of the receive buffer, and 0 if it is unknown.
func readBuffer(c *net.UDPConn) (n int) {
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { n, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF) })
	}
	return n
}
