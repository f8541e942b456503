package mcast

import (
	"encoding/binary"
	"net"
	"os"
	"slices"
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

// guard sees to it that others keep their membership of a group, when one of ours
// on a past interface of the same index is left: the kernel would take it from
// their count. The same membership is made once more, on a socket that stays open,
// and the kernel takes that one. What remains is a socket whose membership the
// kernel has forgotten; it is closed when the interface goes in its turn.
func guard(k *kernel, at groupIndex, held sourceFilter) error {
	inside, ok := k.host.(interface{ Inside(f func() error) error })
	if !ok || held.none() {
		return nil
	}
	guards.Lock()
	defer guards.Unlock()
	for _, g := range guards.open {
		if g.index == at.index && g.namespace == k.host.Namespace() && g.entry(at) == nil && g.size < k.perSocket && g.ipv6 == at.addr.Is6() {
			_, err := g.make(at, held)
			return err
		}
	}
	return inside.Inside(func() error {
		family := unix.AF_INET
		if at.addr.Is6() {
			family = unix.AF_INET6
		}
		fd, err := socketFor(family)
		if err != nil {
			return err
		}
		l := newLedger(k.platform, newRawSocket(descriptor(fd)), netif.HostOf(descriptor(fd)), at.addr.Is6())
		g := &openGuard{ledger: &l, fd: fd, index: at.index, namespace: k.host.Namespace()}
		if _, err := g.make(at, held); err != nil {
			unix.Close(fd)
			return err
		}
		guards.open = append(guards.open, g)
		return nil
	})
}

// guards are the sockets of guard.
var guards struct {
	sync.Mutex
	open []*openGuard
}

type openGuard struct {
	*ledger
	fd, index int
	namespace uint64
}

// closeGuards closes the guards on an interface that is gone.
func closeGuards(index int) {
	guards.Lock()
	defer guards.Unlock()
	guards.open = slices.DeleteFunc(guards.open, func(g *openGuard) bool {
		if g.index != index || g.kernel.exists(index) {
			return false
		}
		unix.Close(g.fd)
		return true
	})
}
