package mcast

import (
	"encoding/binary"
	"errors"
)

func hostPlatform() *platform { return solarisPlatform(nativeWord, binary.NativeEndian) }

func setsockopt(fd, level, name int, value []byte) error {
	return plainSetsockopt(fd, level, name, value)
}

func getsockopt(fd, level, name int, value []byte) (int, error) {
	return 0, errors.ErrUnsupported
}
