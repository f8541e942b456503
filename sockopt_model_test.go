//go:build !plan9

package mcast

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"example.com/mcast/internal/kerneltest"
)

// What model kernels are given besides memberships, and how their answers are
// explained.

// optionsSet are the options other than memberships that a socket was given,
// with a mark for those that failed.
func optionsSet(s *kerneltest.Socket) string {
	var set []string
	for _, r := range s.Requests() {
		name := r.Name
		if r.Err != nil {
			name += "!"
		}
		if r.Get || r.Group.IsValid() {
			name = "not wanted: " + name
		}
		set = append(set, name)
	}
	return strings.Join(set, " ")
}

// TestSocketOptions: what asks for control messages, and for coalescing, is
// known to every system by that number and length.
func TestSocketOptions(t *testing.T) {
	all := &Config{Timestamps: true, HopLimit: true, NoWatch: true}
	for _, tt := range []struct {
		y     modelSystem
		ipv6  bool
		plain string // by default
		all   string // with times and hop limits, and what coalesces
	}{
		{y: onLinux, plain: "IP_MULTICAST_ALL IP_PKTINFO", all: "SO_TIMESTAMPNS_NEW IP_RECVTTL IP_MULTICAST_ALL IP_PKTINFO UDP_GRO"},
		{y: onLinux, ipv6: true, plain: "IPV6_MULTICAST_ALL IPV6_RECVPKTINFO", all: "SO_TIMESTAMPNS_NEW IPV6_RECVHOPLIMIT IPV6_MULTICAST_ALL IPV6_RECVPKTINFO UDP_GRO"},
		{y: onDarwin, plain: "IP_PKTINFO", all: "SO_TIMESTAMP IP_RECVTTL IP_PKTINFO"},
		{y: onDarwin, ipv6: true, plain: "IPV6_RECVPKTINFO", all: "SO_TIMESTAMP IPV6_RECVHOPLIMIT IPV6_RECVPKTINFO"},
		{y: onFreeBSD, plain: "IP_RECVDSTADDR IP_RECVIF", all: "SO_TIMESTAMP IP_RECVTTL IP_RECVDSTADDR IP_RECVIF"},
		{y: onFreeBSD, ipv6: true, plain: "IPV6_RECVPKTINFO", all: "SO_TIMESTAMP IPV6_RECVHOPLIMIT IPV6_RECVPKTINFO"},
		{y: onWindows, plain: "IP_PKTINFO", all: "IP_RECVTTL IP_PKTINFO"},
		{y: onWindows, ipv6: true, plain: "IPV6_PKTINFO", all: "IPV6_HOPLIMIT IPV6_PKTINFO"},
	} {
		systems := []modelSystem{tt.y}
		for _, y := range moreSystems() {
			if y.platform.name == tt.y.name && !strings.Contains(y.name, "4.19") {
				systems = append(systems, y)
			}
		}
		for _, y := range systems {
			name := fmt.Sprint(y.name, " ", tt.ipv6)
			_, _, s := newModelConn(t, y, tt.ipv6, quiet)
			if got := optionsSet(s); got != tt.plain {
				t.Errorf("%s: %s, want %s", name, got, tt.plain)
			}
			c, h, s := newModelConn(t, y, tt.ipv6, all)
			if took, want := c.Conn.ledger.kernel.setOne(c.origin.control.Coalesce()), tt.y.name == "linux"; took != want {
				t.Errorf("%s: coalesces %v, want %v", name, took, want)
			}
			if got := optionsSet(s); got != tt.all {
				t.Errorf("%s: %s, want %s", name, got, tt.all)
			}
			for _, r := range s.Requests() {
				want := uint32(1)
				if strings.HasSuffix(r.Name, "_MULTICAST_ALL") {
					want = 0
				}
				if len(r.Value) != 4 || h.kernel.Order.Uint32(r.Value) != want {
					t.Errorf("%s: %s is set to %x", name, r.Name, r.Value)
				}
			}
		}
	}
	// Before Linux 5.1 a time has two longs, and before 4.20 IPv6 hands a socket
	// the groups of all others.
	old := onLinux.with("4.19", func(k *kerneltest.Kernel) {
		k.NoIPv6MulticastAll = true
		k.Fault = func(level, name int, _ []byte) error {
			if level == 1 && name == 64 {
				return syscall.Errno(92)
			}
			return nil
		}
	})
	_, _, s := newModelConn(t, old, true, all)
	if got, want := optionsSet(s), "SO_TIMESTAMPNS_NEW! SO_TIMESTAMPNS IPV6_RECVHOPLIMIT IPV6_MULTICAST_ALL! IPV6_RECVPKTINFO"; got != want {
		t.Errorf("Linux 4.19: %s, want %s", got, want)
	}
}

// TestBoundSocketOptions: asking for group and interface costs; a Linux socket
// that is bound to its group asks when it joins on a second interface.
func TestBoundSocketOptions(t *testing.T) {
	if !bindsGroups {
		t.Skip("this system binds no socket to a group, so its data is not used so")
	}
	group := Group{Addr: netip.MustParseAddr("239.1.2.3")}
	h := newModelHost(t, onLinux)
	c := h.open(endpoint{group: group}, &Config{NoWatch: true})
	for _, step := range []struct {
		request func(Group) error
		ifname  string
		want    string
	}{
		{c.Join, "eth0", "IP_MULTICAST_ALL MCAST_JOIN_GROUP"},
		{c.Leave, "eth0", "MCAST_LEAVE_GROUP"},
		{c.Join, "eth0", "MCAST_JOIN_GROUP"},
		{c.Join, "eth1", "IP_PKTINFO MCAST_JOIN_GROUP"},
	} {
		group.Interface = step.ifname
		if err := step.request(group); err != nil {
			t.Fatal(err)
		}
		got := requestNames(c.socket.Requests())
		if !strings.HasSuffix(got, step.want) {
			t.Errorf("%s: sent %s, want %s", step.ifname, got, step.want)
		}
	}
	if got, want := requestNames(c.socket.Requests()), "IP_MULTICAST_ALL MCAST_JOIN_GROUP MCAST_LEAVE_GROUP MCAST_JOIN_GROUP IP_PKTINFO MCAST_JOIN_GROUP"; got != want {
		t.Errorf("sent %s, want %s", got, want)
	}
	for _, at := range []endpoint{
		{ipv6: true, group: Group{Addr: netip.MustParseAddr("ff1e::3")}},
		{group: group},
	} {
		y := onLinux
		if !at.ipv6 { // hears others' groups
			y = y.with("old", func(k *kerneltest.Kernel) {
				k.Fault = func(_, name int, _ []byte) error {
					if name == 49 {
						return syscall.Errno(92)
					}
					return nil
				}
			})
		}
		b := newModelHost(t, y).open(at, &Config{NoWatch: true})
		if got := optionsSet(b.socket); !strings.HasSuffix(got, "PKTINFO") {
			t.Errorf("bound to %v: %s, want the interface to be asked for", at.group, got)
		}
	}
}

// requestNames are the options of requests, with a mark for those that failed.
func requestNames(rs []kerneltest.Request) string {
	var out []string
	for _, r := range rs {
		name := r.Name
		if r.Get {
			name = "get " + name
		}
		if r.Err != nil {
			name += "!"
		}
		out = append(out, name)
	}
	return strings.Join(out, " ")
}

// TestMulticastInterface: what to send by is named as each system wants it.
func TestMulticastInterface(t *testing.T) {
	for _, tt := range []struct {
		y    modelSystem
		ipv6 bool
		want string
	}{
		{onLinux, false, "IP_MULTICAST_IF 000000000000000003000000: ok"},
		{onLinux, true, "IPV6_MULTICAST_IF 03000000: ok"},
		{onDarwin, false, "IP_MULTICAST_IF 00000003: ok"},
		{onDarwin, true, "IPV6_MULTICAST_IF 03000000: ok"},
		{onFreeBSD, false, "IP_MULTICAST_IF 000000000000000003000000: ok"},
		{onFreeBSD, true, "IPV6_MULTICAST_IF 03000000: ok"},
		{onWindows, false, "IP_MULTICAST_IF 00000003: ok"},
		{onWindows, true, "IPV6_MULTICAST_IF 03000000: ok"},
	} {
		c, _, s := newModelConn(t, tt.y, tt.ipv6, &Config{NoWatch: true})
		if err := c.sendBy(3); err != nil {
			t.Errorf("%s: %v", tt.y.name, err)
		}
		if rs := s.Requests(); rs[len(rs)-1].String() != tt.want {
			t.Errorf("%s: %v, want %s", tt.y.name, rs[len(rs)-1], tt.want)
		}
	}
	// Solaris has an address of the interface in IPv4.
	s := &goldenSocket{}
	c := &Conn{sock: s}
	c.platform = solarisPlatform(8, binary.LittleEndian)
	c.ledger.kernel = *kernelOf(c.platform, s)
	if err := c.sendBy(3); err != nil || !slices.Equal(s.told[0].value, goldenAddress.AsSlice()) || s.told[0].number != 0x10 {
		t.Errorf("Solaris: %v, %v", err, s.told)
	}
	if err := c.sendBy(0); err != nil || !slices.Equal(s.told[1].value, make([]byte, 4)) {
		t.Errorf("Solaris, no interface: %v, %v", err, s.told)
	}
}

// TestExplain: which error an answer of the system is, and what to do about it.
func TestExplain(t *testing.T) {
	g4, g6 := netip.MustParseAddr("239.1.2.3"), netip.MustParseAddr("ff1e::3")
	on := func(a netip.Addr) demand { return demand{at: groupIndex{a, 2}} }
	makes := func(a netip.Addr, members, sources int) demand {
		return demand{at: groupIndex{a, 2}, makes: true, members: members, sources: sources, pool: true}
	}
	holds := func(a netip.Addr, sources int, full bool) demand {
		return demand{at: groupIndex{a, 2}, sources: sources, full: full}
	}
	pooled := func(d demand) demand { d.pool = true; return d }
	alone := func(d demand) demand { d.pool = false; return d }
	nowhere := func(d demand) demand { d.at.index = 77; return d }
	gone := "unusable interface: there is no interface 77"
	down := "unusable interface: eth0 takes no memberships now: see that it is up and has an address"
	for _, tt := range []struct {
		y     modelSystem
		d     demand
		errno syscall.Errno
		kind  error // nil: the system's word
		text  string
	}{
		{onLinux, on(g4), 92, errors.ErrUnsupported, "unsupported operation: linux does not offer this for IPv4"},
		{onLinux, on(g6), 95, errors.ErrUnsupported, "unsupported operation: linux does not offer this for IPv6"},
		{onDarwin, on(g6), 102, errors.ErrUnsupported, "unsupported operation: darwin does not offer this for IPv6"},
		{onWindows, on(g4), 10045, errors.ErrUnsupported, "unsupported operation: windows does not offer this for IPv4"},

		{onLinux, on(g4), 19, ErrInterface, down},
		{onLinux, on(g4), 3, ErrInterface, down},
		{onDarwin, on(g4), 49, ErrInterface, down},
		{onFreeBSD, on(g4), 6, ErrInterface, down},
		{onWindows, on(g4), 10049, ErrInterface, down},
		{onLinux, nowhere(on(g4)), 19, ErrInterface, gone},
		{onLinux, nowhere(makes(g4, 20, 0)), 105, ErrInterface, gone},
		{onWindows, nowhere(on(g4)), 10022, ErrInterface, gone}, // whatever the number
		{onWindows, nowhere(on(g6)), 10065, ErrInterface, gone},

		{onLinux, on(g4), 22, nil, "setsockopt: "},
		{onLinux, holds(g4, 3, true), 22, nil, "setsourcefilter: "},
		{onLinux, on(g4), 98, nil, "setsockopt: "},

		{onLinux, makes(g4, 20, 0), 105, ErrLimit, "20 groups a socket: raise net.ipv4.igmp_max_memberships, or use a Pool"},
		{onLinux, alone(makes(g4, 20, 1)), 105, ErrLimit, "20 groups a socket: raise net.ipv4.igmp_max_memberships"},
		{onLinux, makes(g4, 19, 0), 105, ErrLimit, "memory for 19 groups a socket: raise net.core.optmem_max, or use a Pool"},
		{onLinux, makes(g6, 546, 1), 12, ErrLimit, "memory for 546 groups a socket: raise net.core.optmem_max, or use a Pool"},
		{onLinux, alone(makes(g6, 546, 1)), 12, ErrLimit, "memory for 546 groups a socket: raise net.core.optmem_max"},
		{onLinux, pooled(holds(g4, 11, false)), 105, ErrLimit, "11 sources in a filter: raise net.ipv4.igmp_max_msf, or use a Pool"},
		{onLinux, holds(g4, 11, true), 105, ErrLimit, "11 sources in a filter: raise net.ipv4.igmp_max_msf"},
		{onLinux, holds(g6, 65, true), 105, ErrLimit, "65 sources in a filter: raise net.ipv6.mld_max_msf"},
		{onLinux, holds(g4, 10, true), 105, ErrLimit, "memory for 10 sources in a filter: raise net.core.optmem_max"},
		{onLinux, pooled(holds(g6, 64, true)), 12, ErrLimit, "memory for 64 sources in a filter: raise net.core.optmem_max, or use a Pool"},

		{onDarwin, makes(g4, 4095, 0), 59, ErrLimit, "4095 groups a socket: at most 4095 (IP_MAX_MEMBERSHIPS), or use a Pool"},
		{onDarwin, alone(makes(g6, 4095, 0)), 59, ErrLimit, "4095 groups a socket: at most 4095 (IP_MAX_MEMBERSHIPS)"},
		{onDarwin, makes(g4, 3, 1), 28, ErrLimit, "3 groups a socket, at most 4095 (IP_MAX_MEMBERSHIPS), or sources of the group in all sockets: net.inet.ip.mcast.maxgrpsrc"},
		{onDarwin, makes(g6, 3, 1), 28, ErrLimit, "3 groups a socket, at most 4095 (IP_MAX_MEMBERSHIPS), or sources of the group in all sockets: net.inet6.ip6.mcast.maxgrpsrc"},
		{onDarwin, holds(g4, 129, true), 55, ErrLimit, "129 sources set at once: net.inet.ip.mcast.maxsocksrc"},
		{onFreeBSD, holds(g6, 129, true), 55, ErrLimit, "129 sources set at once: net.inet6.ip6.mcast.maxsocksrc"},
		{onFreeBSD, holds(g4, 513, false), 28, ErrLimit, "513 sources in a filter: net.inet.ip.mcast.maxgrpsrc"},
		{onDarwin, holds(g6, 513, false), 12, ErrLimit, "513 sources in a filter: net.inet6.ip6.mcast.maxgrpsrc"},

		{onWindows, makes(g4, 5, 0), 10055, ErrLimit, "5 groups a socket: spread them over several sockets, or use a Pool"},
		{onWindows, alone(makes(g4, 5, 0)), 10055, ErrLimit, "5 groups a socket: spread them over several sockets"},
		{onWindows, holds(g4, 6, true), 10055, ErrLimit, "6 sources in a filter"},
	} {
		h := newModelHost(t, tt.y)
		k := kernel{platform: tt.y.platform, host: h}
		err := k.explain(tt.d, tt.errno)
		text := tt.text
		if tt.kind == ErrLimit {
			text = "system limit reached: " + text
		}
		if tt.kind != nil {
			call := "setsockopt"
			if tt.d.full {
				call = "setsourcefilter"
			}
			text += " (" + call + ": " + tt.errno.Error() + ")"
		} else {
			text += tt.errno.Error()
		}
		if err == nil || err.Error() != text || tt.kind != nil && !errors.Is(err, tt.kind) || !errors.Is(err, tt.errno) {
			t.Errorf("%s %d: %v\nwant %s", tt.y.name, tt.errno, err, text)
		}
		var sys *os.SyscallError
		if !errors.As(err, &sys) {
			t.Errorf("%s %d: %v is no SyscallError", tt.y.name, tt.errno, err)
		}
	}

	h := newModelHost(t, onLinux)
	k := kernel{platform: onLinux.platform, host: h}
	for _, as := range []error{nil, net.ErrClosed, because(ErrInterface, "eth0 has no IPv4 address")} {
		if err := k.explain(on(g4), as); err != as {
			t.Errorf("%v becomes %v", as, err)
		}
	}
	// Where a limit cannot be read, the first suspect is named.
	h.blind = true
	for d, want := range map[demand]string{
		makes(g4, 3, 0):      "3 groups a socket: raise net.ipv4.igmp_max_memberships",
		holds(g4, 11, false): "11 sources in a filter: raise net.ipv4.igmp_max_msf",
		holds(g4, 10, false): "memory for 10 sources in a filter",
		holds(g6, 65, false): "65 sources in a filter: raise net.ipv6.mld_max_msf",
		holds(g6, 64, false): "memory for 64 sources in a filter",
	} {
		if err := k.explain(d, syscall.Errno(105)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestReadFullErrors: what a system answers that has no such membership, or no
// such interface.
func TestReadFullErrors(t *testing.T) {
	for _, tt := range []struct {
		y     modelSystem
		errno syscall.Errno
		want  error // nil: no membership
	}{
		{onLinux, 99, nil},
		{onLinux, 22, nil},
		{onLinux, 19, ErrInterface},
		{onLinux, 14, syscall.Errno(14)},
		{onDarwin, 49, nil},
		{onDarwin, 22, nil},
		{onDarwin, 6, ErrInterface},
		{onFreeBSD, 49, nil},
		{onFreeBSD, 19, ErrInterface},
		{onWindows, 10022, nil},
		{onWindows, 10049, nil},
		{onWindows, 10014, syscall.Errno(10014)},
	} {
		s := &goldenSocket{refuse: func(goldenCall) syscall.Errno { return tt.errno }}
		f, err := kernelOf(tt.y.platform, s).readFull(goldenPlaces[false])
		if !f.none() || tt.want == nil && err != nil || tt.want != nil && (!errors.Is(err, tt.want) || !errors.Is(err, tt.errno)) {
			t.Errorf("%s %d: %v, %v, want %v", tt.y.name, tt.errno, f, err, tt.want)
		}
	}
}
