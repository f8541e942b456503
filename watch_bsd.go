//go:build darwin || freebsd || dragonfly || netbsd || openbsd

package mcast

import (
	"encoding/binary"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// routingSocket hints at changes of links by route(4).
type routingSocket struct {
	f   *os.File
	buf []byte
}

func openHints() (hintSource, error) {
	syscall.ForkLock.RLock()
	fd, err := unix.Socket(unix.AF_ROUTE, unix.SOCK_RAW, unix.AF_UNSPEC)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setnonblock", err)
	}
	return &routingSocket{f: os.NewFile(uintptr(fd), "route"), buf: make([]byte, 64<<10)}, nil
}

func (s *routingSocket) read() ([]linkHint, error) {
	for {
		n, err := s.f.Read(s.buf)
		if err != nil {
			return nil, err
		}
		hints := []linkHint{{look: true}}
		switch runtime.GOOS {
		case "darwin":
			hints = parseRouting(s.buf[:n], binary.NativeEndian, false)
		case "freebsd", "dragonfly":
			hints = parseRouting(s.buf[:n], binary.NativeEndian, true)
		}
		if len(hints) > 0 {
			return hints, nil
		}
	}
}

func (s *routingSocket) close() { s.f.Close() }
