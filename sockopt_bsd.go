//go:build darwin || freebsd

package mcast

import (
	"encoding/binary"
	"errors"
	"net"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"example.com/mcast/internal/cmsg"
)

// hostPlatform is the platform that the program runs on. A 64-bit kernel of
// FreeBSD does not translate these requests for 386 programs, but it does
// translate control messages.
func hostPlatform() *platform {
	if runtime.GOOS != "freebsd" {
		return darwinPlatform()
	}
	word, align := nativeWord, 8
	if runtime.GOARCH == "386" {
		archs, _ := unix.Sysctl("kern.supported_archs")
		if slices.Contains(strings.Fields(archs), "amd64") {
			word = 8
		} else {
			align = 4
		}
	}
	p := freebsdPlatform(word, align)
	p.control = cmsg.FreeBSD(nativeWord, align)
	return p
}

func newSocket(_ *net.UDPConn, raw syscall.RawConn) socket { return newRawSocket(raw) }

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
		return rawGetsockopt(trap, fd, level, name, value)
	}
	request, pin := pointToSources(value)
	defer pin.Unpin()
	n, err := rawGetsockopt(trap, fd, level, name, request)
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

// rawGetsockopt reads value, which golang.org/x/sys/unix has no function for,
// and fills it.
func rawGetsockopt(trap uintptr, fd, level, name int, value []byte) (int, error) {
	n := uint32(len(value))
	_, _, e := unix.Syscall6(trap, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(unsafe.SliceData(value))), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// readBufferKnob is where the administrator allows more.
const readBufferKnob = "kern.ipc.maxsockbuf"

func growReadBuffer(c *net.UDPConn, n int) error { return c.SetReadBuffer(n) }

// kernelDrops: the system does not count them for a socket.
func kernelDrops(socket) (uint64, error) { return 0, errors.ErrUnsupported }

// guard: leaving on an interface that is gone takes nothing from others here.
func guard(*kernel, groupIndex, sourceFilter) error { return nil }

func closeGuards(int) {}
