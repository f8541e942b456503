package mcast

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

func hostPlatform() *platform { return linuxPlatform(nativeWord, binary.NativeEndian) }

func setsockopt(fd, level, name int, value []byte) error {
	return plainSetsockopt(fd, level, name, value)
}

func getsockopt(fd, level, name int, value []byte) (int, error) {
	return plainGetsockopt(unix.SYS_GETSOCKOPT, fd, level, name, value)
}
