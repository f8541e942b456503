package mcast

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"example.com/mcast/internal/netif"
)

func hostPlatform() *platform {
	p := linuxPlatform(nativeWord, binary.NativeEndian)
	// MIPS has numbers of its own.
	p.control.SocketLevel, p.busyPoll = unix.SOL_SOCKET, unix.SO_BUSY_POLL
	p.noOption = []int{int(unix.ENOPROTOOPT), int(unix.EOPNOTSUPP)}
	p.noMember = []int{int(unix.EADDRNOTAVAIL), int(unix.EINVAL)}
	p.isMember = []int{int(unix.EADDRINUSE)}
	p.limits = []int{int(unix.ENOBUFS), int(unix.ENOMEM)}
	return p
}

func newSocket(_ *net.UDPConn, raw syscall.RawConn) socket { return newRawSocket(raw) }

func setsockopt(fd, level, name int, value []byte) error {
	_, _, e := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(unsafe.SliceData(value))), uintptr(len(value)), 0)
	if e != 0 {
		return e
	}
	return nil
}

func getsockopt(fd, level, name int, value []byte) (int, error) {
	n := uint32(len(value))
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(unsafe.SliceData(value))), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// readBufferKnob is where the administrator allows more.
const readBufferKnob = "net.core.rmem_max"

// growReadBuffer sets the receive buffer.
func growReadBuffer(c *net.UDPConn, n int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = forceReadBuffer(int(fd), n) }); e != nil {
		return e
	}
	return err
}

// forceReadBuffer sets the receive buffer, past net.core.rmem_max if the program
// may (CAP_NET_ADMIN).
func forceReadBuffer(fd, n int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, n) == nil {
		return nil
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, n))
}

// kernelDrops gives the number of datagrams that found the receive buffer
// full (SO_MEMINFO, Linux 4.12).
func kernelDrops(s socket) (uint64, error) {
	var info [9 * 4]byte // SK_MEMINFO_VARS
	n, err := s.getsockopt(unix.SOL_SOCKET, unix.SO_MEMINFO, info[:])
	if err != nil || n < len(info) {
		return 0, err
	}
	return uint64(binary.NativeEndian.Uint32(info[8*4:])), nil // SK_MEMINFO_DROPS
}

// guard joins what others have joined on an interface whose index a stale
// membership of ours has, on a socket that stays open: when the stale one is
// left, the kernel takes it from the count of this one and not of theirs.
func guard(k *kernel, at place, held sourceFilter) error {
	inside, ok := k.host.(interface{ Inside(f func() error) error })
	if !ok {
		return nil
	}
	return inside.Inside(func() error {
		if !joinedByAnyone(at) || held.none() {
			return nil
		}
		family := unix.AF_INET
		if at.addr.Is6() {
			family = unix.AF_INET6
		}
		fd, err := socketFor(family)
		if err != nil {
			return err
		}
		l := newLedger(k.platform, newRawSocket(descriptor(fd)), k.host, at.addr.Is6())
		if _, err := l.make(at, held); err != nil {
			unix.Close(fd)
			return err
		}
		guards.Lock()
		defer guards.Unlock()
		guards.open = append(guards.open, openGuard{fd, at.index})
		return nil
	})
}

// guards are the sockets of guard. They can be closed when their interface is
// gone in its turn.
var guards struct {
	sync.Mutex
	open []openGuard
}

type openGuard struct{ fd, index int }

// closeGuards closes the guards on an interface that is gone.
func closeGuards(index int) {
	guards.Lock()
	defer guards.Unlock()
	guards.open = slices.DeleteFunc(guards.open, func(g openGuard) bool {
		_, err := netif.HostOf(descriptor(g.fd)).Name(index)
		if g.index != index || !errors.Is(err, netif.ErrNotFound) {
			return false
		}
		unix.Close(g.fd)
		return true
	})
}

// joinedByAnyone reports whether the kernel has a group on an interface
// (/proc/net/igmp, /proc/net/igmp6).
func joinedByAnyone(at place) bool {
	if at.addr.Is6() {
		b, _ := os.ReadFile("/proc/thread-self/net/igmp6")
		for line := range strings.Lines(string(b)) {
			// index, device, group, users, …
			f := strings.Fields(line)
			if len(f) > 2 && f[0] == strconv.Itoa(at.index) && f[2] == fmt.Sprintf("%x", at.addr.As16()) {
				return true
			}
		}
		return false
	}
	b, _ := os.ReadFile("/proc/thread-self/net/igmp")
	a := at.addr.As4()
	want := fmt.Sprintf("%08X", binary.NativeEndian.Uint32(a[:]))
	index := ""
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case line[0] != '\t' && line[0] != ' ': // index, device, …
			index = f[0]
		case index == strconv.Itoa(at.index) && f[0] == want:
			return true
		}
	}
	return false
}
