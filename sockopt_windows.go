package mcast

import (
	"context"
	"errors"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// The error numbers of the two documented tables. On each system package
// syscall has its own values for the names that Unix gave them.
var (
	eADDRINUSE    error = syscall.EADDRINUSE
	eADDRNOTAVAIL error = syscall.EADDRNOTAVAIL
	eINVAL        error = syscall.EINVAL

	wsaEINVAL        error = windows.WSAEINVAL
	wsaEADDRNOTAVAIL error = windows.WSAEADDRNOTAVAIL
)

// errnoOf gives the system's number for an error, and 0 if it has none.
func errnoOf(err error) int {
	e, _ := errors.AsType[syscall.Errno](err)
	return int(e)
}

func hostPlatform() *platform { return windowsPlatform(nativeWord) }

// bindsGroups: a bind to a group is WSAEADDRNOTAVAIL.
const bindsGroups = false

// A control is Config.Control.
type control = func(network, address string, c syscall.RawConn) error

// open makes a socket bound to at, or to the wildcard address for a group.
func open(at endpoint, control control) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(network, address string, raw syscall.RawConn) (err error) {
		if at.shared() {
			e := raw.Control(func(fd uintptr) {
				err = windows.SetsockoptInt(windows.Handle(fd), windows.SOL_SOCKET, windows.SO_REUSEADDR, 1)
			})
			if err = errors.Join(e, err); err != nil {
				return err
			}
		}
		if control != nil {
			return control(network, address, raw)
		}
		return nil
	}}
	c, err := lc.ListenPacket(context.Background(), at.network(), at.addrPort(bindsGroups).String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// familyOfSocket reports whether a socket is of IPv6, as its address says, and
// if so whether it takes IPv4 as well.
func familyOfSocket(raw syscall.RawConn, six bool) (ipv6, both bool) {
	if !six {
		return false, false
	}
	const ipv6V6Only = 27 // https://learn.microsoft.com/en-us/windows/win32/winsock/ipproto-ipv6-socket-options
	raw.Control(func(fd uintptr) {
		only, err := windows.GetsockoptInt(windows.Handle(fd), windows.IPPROTO_IPV6, ipv6V6Only)
		both = err == nil && only == 0
	})
	return true, both
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

// readBufferKnob: there is no place where the administrator allows more.
const readBufferKnob = ""

func growReadBuffer(c *net.UDPConn, n int) error { return c.SetReadBuffer(n) }

// kernelDrops: the system does not count them for a socket.
func kernelDrops(socket) (uint64, error) { return 0, errors.ErrUnsupported }

// guard: what leaving on an interface that is gone does to others is not known.
func guard(*kernel, groupIndex, sourceFilter) error { return nil }

func closeGuards(int) {}

// winSocket is the socket behind a Conn.
type winSocket struct{ raw syscall.RawConn }

func newSocket(_ *net.UDPConn, raw syscall.RawConn) socket { return winSocket{raw} }

func (s winSocket) control(f func(h windows.Handle) error) (err error) {
	if e := s.raw.Control(func(fd uintptr) { err = f(windows.Handle(fd)) }); e != nil {
		return e
	}
	return err
}

func (s winSocket) setsockopt(level, name int, value []byte) error {
	return s.control(func(h windows.Handle) error {
		return windows.Setsockopt(h, int32(level), int32(name), unsafe.SliceData(value), int32(len(value)))
	})
}

func (s winSocket) getsockopt(level, name int, value []byte) (int, error) {
	n := int32(len(value))
	err := s.control(func(h windows.Handle) error {
		return windows.Getsockopt(h, int32(level), int32(name), unsafe.SliceData(value), &n)
	})
	return int(n), err
}

func (s winSocket) ioctl(code uint32, in, out []byte) (int, error) {
	var n uint32
	err := s.control(func(h windows.Handle) error {
		return windows.WSAIoctl(h, code, unsafe.SliceData(in), uint32(len(in)), unsafe.SliceData(out), uint32(len(out)), &n, nil, 0)
	})
	return int(n), err
}

// hasDatagram reports whether a socket has something to read: it says so, or
// the system did when it was asked.
func hasDatagram(fd uintptr, asked bool) bool {
	const fionread = 0x4004667F // https://learn.microsoft.com/en-us/windows/win32/winsock/winsock-ioctls
	var n, size uint32
	err := windows.WSAIoctl(windows.Handle(fd), fionread, nil, 0, (*byte)(unsafe.Pointer(&n)), 4, &size, nil, 0)
	return asked || err == nil && n > 0
}
