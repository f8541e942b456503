//go:build linux || darwin || freebsd || solaris

package mcast

import (
	"net"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// osSocket is the socket behind a Conn.
type osSocket struct {
	raw syscall.RawConn

	// What set passes on. It is kept, so as not to be allocated for each call.
	mu          sync.Mutex
	set         func(fd uintptr)
	level, name int
	value       []byte
	err         error
}

func newSocket(c *net.UDPConn) (socket, error) {
	raw, err := c.SyscallConn()
	s := &osSocket{raw: raw}
	s.set = func(fd uintptr) { s.err = setsockopt(int(fd), s.level, s.name, s.value) }
	return s, err
}

func (s *osSocket) setsockopt(level, name int, value []byte) error {
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

func (s *osSocket) getsockopt(level, name int, value []byte) (n int, err error) {
	if e := s.raw.Control(func(fd uintptr) { n, err = getsockopt(int(fd), level, name, value) }); e != nil {
		return 0, e
	}
	return n, err
}

func (s *osSocket) ioctl(uint32, []byte, []byte) (int, error) { return 0, unix.ENOTTY }

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
