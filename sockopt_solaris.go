package mcast

import (
	"encoding/binary"
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

func hostPlatform() *platform { return solarisPlatform(nativeWord, binary.NativeEndian) }

func newSocket(_ *net.UDPConn, raw syscall.RawConn) socket { return newRawSocket(raw) }

func setsockopt(fd, level, name int, value []byte) error {
	return unix.SetsockoptString(fd, level, name, string(value))
}

func getsockopt(fd, level, name int, value []byte) (int, error) {
	return 0, errors.ErrUnsupported
}
