//go:build linux || darwin || freebsd || solaris

package mcast

import (
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// osSocket is the socket behind a Conn.
type osSocket struct{ raw syscall.RawConn }

func newSocket(c *net.UDPConn) (socket, error) {
	raw, err := c.SyscallConn()
	return osSocket{raw}, err
}

func (s osSocket) control(f func(fd int) error) (err error) {
	if e := s.raw.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}

func (s osSocket) setsockopt(level, name int, value []byte) error {
	return s.control(func(fd int) error { return setsockopt(fd, level, name, value) })
}

func (s osSocket) getsockopt(level, name int, value []byte) (n int, err error) {
	err = s.control(func(fd int) error { n, err = getsockopt(fd, level, name, value); return err })
	return n, err
}

func (s osSocket) ioctl(uint32, []byte, []byte) (int, error) { return 0, unix.ENOTTY }

func plainSetsockopt(fd, level, name int, value []byte) error {
	return unix.SetsockoptString(fd, level, name, string(value))
}

// plainGetsockopt reads value, which golang.org/x/sys/unix has no function for,
// and fills it.
func plainGetsockopt(trap uintptr, fd, level, name int, value []byte) (int, error) {
	n := uint32(len(value))
	_, _, e := unix.Syscall6(trap, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(unsafe.SliceData(value))), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}
