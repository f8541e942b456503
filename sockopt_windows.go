package mcast

import (
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

func hostPlatform() *platform { return windowsPlatform(nativeWord) }

// osSocket is the socket behind a Conn.
type osSocket struct{ raw syscall.RawConn }

func newSocket(c *net.UDPConn) (socket, error) {
	raw, err := c.SyscallConn()
	return osSocket{raw}, err
}

func (s osSocket) control(f func(h windows.Handle) error) (err error) {
	if e := s.raw.Control(func(fd uintptr) { err = f(windows.Handle(fd)) }); e != nil {
		return e
	}
	return err
}

func (s osSocket) setsockopt(level, name int, value []byte) error {
	return s.control(func(h windows.Handle) error {
		return windows.Setsockopt(h, int32(level), int32(name), unsafe.SliceData(value), int32(len(value)))
	})
}

func (s osSocket) getsockopt(level, name int, value []byte) (int, error) {
	n := int32(len(value))
	err := s.control(func(h windows.Handle) error {
		return windows.Getsockopt(h, int32(level), int32(name), unsafe.SliceData(value), &n)
	})
	return int(n), err
}

func (s osSocket) ioctl(code uint32, in, out []byte) (int, error) {
	var n uint32
	err := s.control(func(h windows.Handle) error {
		return windows.WSAIoctl(h, code, unsafe.SliceData(in), uint32(len(in)), unsafe.SliceData(out), uint32(len(out)), &n, nil, 0)
	})
	return int(n), err
}
