package netif

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// host is the network namespace of a socket.
type host struct{ raw syscall.RawConn }

func hostOf(raw syscall.RawConn) Host { return host{raw} }

// Index asks the socket itself (netdevice(7)), which is cheap and right in
// whatever namespace the thread is.
func (h host) Index(name string) (int, error) {
	// The kernel would cut an alias such as "eth0:1" down to "eth0".
	q, err := newQuestion(name)
	if err != nil || name == "" || strings.ContainsAny(name, ":\x00") {
		return 0, fmt.Errorf("%w: %q", ErrNotFound, name)
	}
	defer questions.Put(q)
	err = h.ioctl(unix.SIOCGIFINDEX, q)
	if err == unix.ENODEV {
		return 0, fmt.Errorf("%w: %q", ErrNotFound, name)
	}
	return int(q.ifr.Uint32()), err
}

func (h host) Name(index int) (string, error) {
	q, err := newQuestion("")
	if err != nil {
		return "", err
	}
	defer questions.Put(q)
	q.ifr.SetUint32(uint32(index))
	if err = h.ioctl(unix.SIOCGIFNAME, q); err == unix.ENODEV || int(int32(index)) != index {
		return "", fmt.Errorf("%w: index %d", ErrNotFound, index)
	}
	if err != nil {
		return "", err
	}
	return q.ifr.Name(), nil
}

// A question is an ioctl about an interface. Requests ask one each: it is kept,
// so as not to be allocated for each.
type question struct {
	ifr  unix.Ifreq
	name uint
	err  error
	ask  func(fd uintptr)
}

var questions = sync.Pool{New: func() any {
	q := new(question)
	q.ask = func(fd uintptr) { q.err = unix.IoctlIfreq(int(fd), q.name, &q.ifr) }
	return q
}}

func newQuestion(ifname string) (*question, error) {
	ifr, err := unix.NewIfreq(ifname)
	if err != nil {
		return nil, err
	}
	q := questions.Get().(*question)
	q.ifr = *ifr
	return q, nil
}

// ioctl does not wrap ENODEV.
func (h host) ioctl(name uint, q *question) error {
	q.name, q.err = name, nil
	if err := h.raw.Control(q.ask); err != nil {
		return err
	}
	if q.err != nil && q.err != unix.ENODEV {
		return os.NewSyscallError("ioctl", q.err)
	}
	return q.err
}

func (h host) Interfaces() ([]Interface, error) {
	var list []Interface
	err := h.ask(linksRequest(1), unix.RTM_NEWLINK, func(m message) {
		if l, family, ok := parseLink(m); ok && family == unix.AF_UNSPEC {
			list = append(list, l.Interface)
		}
	}, func() { list = nil })
	sortByIndex(list)
	return list, err
}

func (h host) addresses(ipv6 bool) (own []ownAddress, err error) {
	err = h.ask(addressesRequest(familyOf(ipv6)), unix.RTM_NEWADDR, func(m message) {
		if o, ok := parseAddress(m); ok {
			own = append(own, o)
		}
	}, func() { own = nil })
	return own, err
}

func (h host) Address4(index int) (netip.Addr, bool) {
	own, err := h.addresses(false)
	if err != nil {
		return netip.Addr{}, false
	}
	for _, o := range own {
		if o.index == index && o.addr.Is4() {
			return o.addr, true
		}
	}
	return netip.Addr{}, false
}

// Route asks the routing table (RTM_GETROUTE). An address of this machine is
// routed to lo; what it sends to a group leaves by, and comes back from, the
// interface that has the address.
func (h host) Route(to netip.Addr) (int, error) {
	if to.Zone() != "" {
		return zoneIndex(h, to.Zone())
	}
	if !to.IsValid() {
		return 0, errors.New("route to no address")
	}
	to = to.Unmap()
	var r route
	err := h.ask(routeRequest(to), unix.RTM_NEWROUTE, func(m message) { r, _ = parseRoute(m) }, func() {})
	if err != nil {
		return 0, fmt.Errorf("route to %v: %w", to, err)
	}
	switch r.kind {
	case unix.RTN_LOCAL, unix.RTN_ANYCAST:
		if index := h.owner(to); index != 0 {
			return index, nil
		}
	case unix.RTN_UNREACHABLE, unix.RTN_BLACKHOLE, unix.RTN_PROHIBIT, unix.RTN_THROW:
		return 0, fmt.Errorf("route to %v: %w", to, unix.EHOSTUNREACH)
	}
	if len(r.out) == 0 || r.out[0] == 0 {
		return 0, fmt.Errorf("route to %v names no interface", to)
	}
	return r.out[0], nil
}

func (h host) owner(a netip.Addr) int {
	own, err := h.addresses(a.Is6())
	if err != nil {
		return 0
	}
	list, err := h.Interfaces()
	if err != nil {
		return 0
	}
	for i, o := range own {
		own[i].lo = slices.ContainsFunc(list, func(ifi Interface) bool { return ifi.Index == o.index && ifi.Loopback })
	}
	return owner(own, a)
}

// DefaultRoutes looks at all routing tables.
func (h host) DefaultRoutes(ipv6 bool) []int {
	var found []route
	err := h.ask(routesRequest(ipv6), unix.RTM_NEWROUTE, func(m message) {
		if r, ok := parseRoute(m); ok && r.isDefault && r.kind == unix.RTN_UNICAST {
			found = append(found, r)
		}
	}, func() { found = nil })
	if err != nil {
		return nil
	}
	slices.SortStableFunc(found, func(a, b route) int { return cmp.Compare(a.metric, b.metric) })
	var indexes []int
	for _, r := range found {
		for _, index := range r.out {
			if index > 0 && !slices.Contains(indexes, index) {
				indexes = append(indexes, index)
			}
		}
	}
	return indexes
}

// Limit reads below /proc/sys, which shows a thread its own namespace.
func (h host) Limit(knob string) (int, bool) {
	var b []byte
	err := h.Inside(func() (err error) {
		b, err = os.ReadFile("/proc/sys/" + strings.ReplaceAll(knob, ".", "/"))
		return err
	})
	if err != nil {
		return 0, false
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	return n, err == nil
}

func (h host) Namespace() uint64 {
	var cookie uint64
	if h.raw.Control(func(fd uintptr) { cookie = namespaceOf(int(fd)) }) != nil {
		return 0
	}
	return cookie
}

// namespaceOf gives the cookie of a socket's namespace (Linux 5.14), else 0.
func namespaceOf(fd int) uint64 {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return cookie
}

// Inside calls f on a thread that is in the socket's namespace.
func (h host) Inside(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if want := h.Namespace(); want != 0 {
		probe, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		here := namespaceOf(probe)
		unix.Close(probe)
		if here != want {
			return h.enter(f)
		}
	}
	return f()
}

// enter calls f on a thread that it moves to the socket's namespace, and back.
func (h host) enter(f func() error) error {
	ns, err := -1, error(nil)
	if e := h.raw.Control(func(fd uintptr) { ns, err = unix.IoctlRetInt(int(fd), unix.SIOCGSKNS) }); e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("the socket is in another network namespace, which this process may not enter: %w", os.NewSyscallError("SIOCGSKNS", err))
	}
	defer unix.Close(ns)
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(home)
			err = unix.Setns(ns, unix.CLONE_NEWNET)
		}
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("the socket is in another network namespace, which this process may not enter: %w", os.NewSyscallError("setns", err))
			return
		}
		err = f()
		// A thread that stays locked ends together with its goroutine.
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// netlink opens a socket in the namespace.
func (h host) netlink(flags int, groups uint32) (fd int, err error) {
	err = h.Inside(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|flags, unix.NETLINK_ROUTE)
		return os.NewSyscallError("socket", err)
	})
	if err != nil || groups == 0 {
		return fd, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	return fd, nil
}

// ask sends a request and calls f for each message of that kind in the answer.
// It calls restart before it asks again because a list changed while it came.
func (h host) ask(req []byte, kind uint16, f func(message), restart func()) error {
	fd, err := h.netlink(0, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf := make([]byte, 64<<10)
	dump := ne.Uint16(req[6:])&unix.NLM_F_DUMP != 0
	for range 10 {
		restart()
		var again bool
		if again, err = exchange(fd, buf, req, dump, kind, f); err != nil || !again {
			return err
		}
	}
	return errors.New("the system's list changes faster than it can be read")
}

// exchange sends a request and reads the answer to its end.
func exchange(fd int, buf, req []byte, dump bool, kind uint16, f func(message)) (again bool, err error) {
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, os.NewSyscallError("sendto", err)
	}
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		switch err {
		case nil:
		case unix.EINTR:
			continue
		case unix.ENOBUFS:
			again = true
			continue
		default:
			return false, os.NewSyscallError("recvfrom", err)
		}
		for m := range messages(buf[:n]) {
			if m.flags&unix.NLM_F_DUMP_INTR != 0 {
				again = true
			}
			switch m.kind {
			case unix.NLMSG_ERROR:
				if errno := m.failure(); errno != 0 {
					return false, errno
				}
				return again, nil
			case unix.NLMSG_DONE:
				return again, nil
			case kind:
				f(m)
			}
		}
		if !dump {
			return again, nil
		}
	}
}

func (h host) Watch() (Source, error) {
	fd, err := h.netlink(unix.SOCK_NONBLOCK, groups)
	if err != nil {
		return nil, err
	}
	return watch(fd)
}
