//go:build unix

package mcast

import (
	"errors"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"example.com/mcast/internal/netif"
)

// The error numbers of the two documented tables. On each system package
// syscall has its own values for the names that Unix gave them.
var (
	eADDRINUSE    error = unix.EADDRINUSE
	eADDRNOTAVAIL error = unix.EADDRNOTAVAIL
	eINVAL        error = unix.EINVAL

	wsaEINVAL        error = syscall.Errno(10022)
	wsaEADDRNOTAVAIL error = syscall.Errno(10049)
)

// errnoOf gives the system's number for an error, and 0 if it has none.
func errnoOf(err error) int {
	e, _ := errors.AsType[syscall.Errno](err)
	return int(e)
}

// bindsGroups: a socket can be bound to a group.
const bindsGroups = true

// A control is Config.Control.
type control = func(network, address string, c syscall.RawConn) error

// open makes a socket bound to at.
func open(at endpoint, control control) (*net.UDPConn, error) {
	fd, err := bindSocket(at, control)
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
func bindSocket(at endpoint, control control) (int, error) {
	family := unix.AF_INET
	if at.ipv6 {
		family = unix.AF_INET6
	}
	fd, err := socketFor(family)
	if err != nil {
		return -1, err
	}
	if at.namespace != 0 && netif.HostOf(descriptor(fd)).Namespace() != at.namespace {
		unix.Close(fd)
		return -1, errElsewhere
	}
	if err := bind(fd, at, control); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// socketFor makes a UDP socket that does not block.
func socketFor(family int) (int, error) {
	syscall.ForkLock.RLock()
	fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("setnonblock", err)
	}
	return fd, nil
}

func bind(fd int, at endpoint, control control) error {
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
	to := at.addrPort(bindsGroups)
	if control != nil {
		if err := control(at.network(), to.String(), descriptor(fd)); err != nil {
			return err
		}
	}
	if !at.ipv6 {
		return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet4{Port: at.port, Addr: to.Addr().As4()}))
	}
	sa := &unix.SockaddrInet6{Port: at.port, Addr: to.Addr().As16()}
	if zone := to.Addr().Zone(); zone != "" {
		index, err := zoneIndex(fd, zone)
		if err != nil {
			return err
		}
		sa.ZoneId = uint32(index)
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sa))
}

// zoneIndex gives the index of the interface that a zone names.
func zoneIndex(fd int, zone string) (int, error) {
	if index, digits, err := parseIndex(zone); digits {
		return index, err
	}
	index, err := netif.HostOf(descriptor(fd)).Index(zone)
	if err != nil {
		return 0, noInterface(zone, err)
	}
	return index, nil
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

// familyOfSocket reports whether a socket is of IPv6, and if so whether it
// takes IPv4 as well.
func familyOfSocket(raw syscall.RawConn, _ bool) (ipv6, both bool) {
	raw.Control(func(fd uintptr) {
		sa, err := unix.Getsockname(int(fd))
		if _, ok := sa.(*unix.SockaddrInet6); err != nil || !ok {
			return
		}
		ipv6 = true
		only, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		both = err == nil && only == 0
	})
	return ipv6, both
}

// readBuffer gives the size of the receive buffer, and 0 if it is unknown.
func readBuffer(c *net.UDPConn) (n int) {
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { n, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF) })
	}
	return n
}

// A descriptor is the socket of that number as a [syscall.RawConn], which can
// be controlled and nothing more.
type descriptor int

func (d descriptor) Control(f func(fd uintptr)) error {
	f(uintptr(d))
	return nil
}

func (d descriptor) Read(func(fd uintptr) bool) error  { return errors.ErrUnsupported }
func (d descriptor) Write(func(fd uintptr) bool) error { return errors.ErrUnsupported }

// rawSocket is the socket behind a Conn.
type rawSocket struct {
	raw syscall.RawConn

	// What set passes on. It is kept, so as not to be allocated for each call.
	mu          sync.Mutex
	set         func(fd uintptr)
	level, name int
	value       []byte
	err         error
}

func newRawSocket(raw syscall.RawConn) *rawSocket {
	s := &rawSocket{raw: raw}
	s.set = func(fd uintptr) { s.err = setsockopt(int(fd), s.level, s.name, s.value) }
	return s
}

func (s *rawSocket) setsockopt(level, name int, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.level, s.name, s.value = level, name, value
	err := s.raw.Control(s.set)
	s.value = nil
	if err != nil {
		return err
	}
	return s.err
}

func (s *rawSocket) getsockopt(level, name int, value []byte) (n int, err error) {
	if e := s.raw.Control(func(fd uintptr) { n, err = getsockopt(int(fd), level, name, value) }); e != nil {
		return 0, e
	}
	return n, err
}

func (s *rawSocket) ioctl(uint32, []byte, []byte) (int, error) { return 0, unix.ENOTTY }

// hasDatagram reports whether a socket has something to read.
func hasDatagram(fd uintptr, _ bool) bool {
	var b [1]byte
	for {
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK)
		if err != unix.EINTR {
			return err != unix.EAGAIN
		}
	}
}
