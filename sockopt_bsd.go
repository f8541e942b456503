//go:build darwin || freebsd

package mcast

import (
	"encoding/binary"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

func setsockopt(fd, level, name int, value []byte) error {
	if isFull(level, name) {
		request, pin := pointToSources(value)
		defer pin.Unpin()
		value = request
	}
	return unix.SetsockoptString(fd, level, name, string(value))
}

func getsockopt(fd, level, name int, value []byte) (int, error) {
	//lint:ignore SA1019 golang.org/x/sys has no getsockopt that both reads and fills a value
	const trap = unix.SYS_GETSOCKOPT
	if !isFull(level, name) {
		return plainGetsockopt(trap, fd, level, name, value)
	}
	request, pin := pointToSources(value)
	defer pin.Unpin()
	n, err := plainGetsockopt(trap, fd, level, name, request)
	if err != nil || n < len(request) {
		return n, err
	}
	return len(value), nil
}

// isFull reports whether an option takes a struct __msfilterreq.
func isFull(level, name int) bool {
	return name == hostSystem.fullIP && level == levelIP || name == hostSystem.fullIPv6 && level == levelIPv6
}

// pointToSources cuts the sources that follow a struct __msfilterreq off and
// puts their address into its last field.
func pointToSources(value []byte) ([]byte, *runtime.Pinner) {
	l := hostSystem.fullLayout(false)
	var pin runtime.Pinner
	var at uintptr
	if len(value) > l.sources {
		pin.Pin(&value[l.sources])
		at = uintptr(unsafe.Pointer(&value[l.sources]))
	}
	field := value[l.group+hostSystem.storage : l.sources]
	if hostSystem.word == 8 {
		binary.NativeEndian.PutUint64(field, uint64(at))
	} else {
		binary.NativeEndian.PutUint32(field, uint32(at))
	}
	return value[:l.sources], &pin
}
