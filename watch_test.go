//go:build !plan9

package mcast

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// What is known of links after news of them. A change is "index name flags
// carrier-changes", where the flags are "-", "u" (up) or "ur" (up, with a
// carrier), or "index gone".
func TestLinks(t *testing.T) {
	for _, test := range []struct{ news, want, gone string }{
		{"5 eth0 - 1", "", ""},
		{"5 eth0 ur 1", "", ""},
		{"5 eth0 ur 2, 5 eth0 - 3, 5 eth0 ur 4", "up", ""},
		{"5 eth0 ur 2, 5 eth0 - 2", "down", ""},
		{"5 eth0 - 1, 5 eth0 ur 2", "up", ""},
		// An interface that comes up without a carrier announces to nobody.
		{"5 eth0 - 1, 5 eth0 u 1, 5 eth0 ur 2", "up carrier", ""},
		{"5 eth0 u 1, 5 eth0 ur 2", "carrier", ""},
		{"5 eth0 ur 2, 5 eth0 u 3", "", ""},
		{"5 eth0 ur 2, 5 eth0 u 3, 5 eth0 ur 4", "carrier", ""},
		{"5 eth0 ur 2, 5 eth0 ur 2", "", ""},
		// Lost and back before anybody looked.
		{"5 eth0 ur 2, 5 eth0 ur 4", "carrier", ""},
		// Systems, and messages, that do not count.
		{"5 eth0 ur 2, 5 eth0 ur 0, 5 eth0 ur 2", "", ""},
		{"5 eth0 ur 0, 5 eth0 ur 0", "", ""},
		{"5 eth0 ur 0, 5 eth0 u 0, 5 eth0 ur 0", "carrier", ""},
		{"5 eth0 ur 2, 5 gone", "", "5"},
		{"5 gone", "", ""},
		{"5 eth0 ur 2, 5 gone, 5 gone", "", "5"},
		{"5 eth0 ur 2, 5 gone, 5 eth0 ur 2", "", "5"},
		{"5 eth0 ur 2, 5 gone, 5 eth0 - 1, 5 eth0 ur 2", "up", "5"},
		{"5 eth0 ur 2, 5 gone, 6 eth0 ur 2", "", "5"},
		// Another one with the same index, the end of the first got lost.
		{"5 eth0 ur 8, 5 eth0 ur 2", "", "5"},
		{"5 eth0 ur 2, 5 lan0 ur 2", "", ""},
	} {
		var l links
		var gone []int
		now := time.Unix(1000, 0)
		for i, s := range strings.Split(test.news, ", ") {
			var c linkChange
			var flags string
			if _, err := fmt.Sscan(s, &c.index, &c.name, &flags, &c.changes); err != nil {
				c.gone = true
			}
			c.up, c.running = strings.Contains(flags, "u"), strings.Contains(flags, "r")
			now = now.Add(time.Second)
			gone = append(gone, l.apply([]linkChange{c}, now)...)
			if i == 0 {
				l.settle()
			}
			if !c.gone && l.index(c.name) != c.index {
				t.Errorf("%s: %s has index %d, want %d", test.news, c.name, l.index(c.name), c.index)
			}
		}
		if got := strings.Trim(fmt.Sprint(gone), "[]"); got != test.gone {
			t.Errorf("%s: gone %q, want %q", test.news, got, test.gone)
		}
		var got []string
		for _, s := range l.known {
			if s.cameUp {
				got = append(got, "up")
			}
			if s.carrier {
				got = append(got, "carrier")
			}
			if !s.up && !s.downAt.IsZero() {
				got = append(got, "down")
			}
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: %v, want %q", test.news, got, test.want)
		}
		l.settle()
		for i, s := range l.known {
			if s.cameUp || s.carrier {
				t.Errorf("%s: %d is not settled", test.news, i)
			}
		}
	}
}

// Messages of routing sockets, as the systems' headers lay them out: those of
// macOS have a length of 112 bytes (if_msghdr), 20 and addresses (ifa_msghdr).
var routingMessages = []struct {
	name      string
	announces bool
	hex       string
	want      []linkHint
}{
	{"macOS up", false, "7000 05 0e 00000000 43880000 0400 0000" + strings.Repeat("00", 96), []linkHint{{index: 4, up: true, running: true}}},
	{"macOS without a carrier", false, "7000 05 0e 00000000 03880000 0400 0000" + strings.Repeat("00", 96), []linkHint{{index: 4, up: true}}},
	{"macOS down", false, "7000 05 0e 00000000 02880000 0c00 0000" + strings.Repeat("00", 96), []linkHint{{index: 12}}},
	{"macOS address", false, "1400 05 0c 00000000 00000000 0400 0000 00000000", []linkHint{{look: true}}},
	{"macOS address gone", false, "1400 05 0d 00000000 00000000 0400 0000 00000000", []linkHint{{look: true}}},
	{"macOS RTM_IFINFO2", false, "1000 05 12 00000000 00000000 0400 0000", nil},
	{"macOS has no announcements", false, "1800 05 11 0400 656d3000000000000000000000000000 0100", nil},
	{
		"FreeBSD down, up", true, "a800 05 0e 00000000 02880000 0200 0000" + strings.Repeat("00", 152) + "a800 05 0e 00000000 43880000 0200 0000" + strings.Repeat("00", 152),
		[]linkHint{{index: 2}, {index: 2, up: true, running: true}},
	},
	{"FreeBSD arrival", true, "1800 05 11 0400 656d3000000000000000000000000000 0000", []linkHint{{look: true}}},
	{"FreeBSD departure", true, "1800 05 11 0400 656d3000000000000000000000000000 0100", []linkHint{{index: 4, gone: true}}},
	{"a route", true, "1000 05 01 00000000 00000000 0400 0000", nil},
	{"nothing", true, "", nil},
	{"short", true, "0e00 05", nil},
	{"a length of 0", true, "0000 05 0e 00000000 43880000 0400 0000", nil},
	{"a length of 3", true, "0300 05 0e 00000000 43880000 0400 0000", nil},
	{"longer than there is", true, "7000 05 0e 00000000 43880000 0400 0000", nil},
	{"too short for its type", true, "0c00 05 0e 00000000 43880000 1600 05 11 0400 656d30000000000000000000000000 0000", nil},
}

func routingBytes(t testing.TB, s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseRouting(t *testing.T) {
	for _, test := range routingMessages {
		b := routingBytes(t, test.hex)
		if got := parseRouting(b, binary.LittleEndian, test.announces); !slices.Equal(got, test.want) {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
		// Whatever is cut off, what is whole stays.
		for n := range len(b) {
			got := parseRouting(b[:n:n], binary.LittleEndian, test.announces)
			if len(got) > len(test.want) || !slices.Equal(got, test.want[:len(got)]) {
				t.Errorf("%s: the first %d bytes: %+v", test.name, n, got)
			}
		}
	}
	// The same in the other byte order.
	b := routingBytes(t, "0070 05 0e 00000000 00008843 0004 0000"+strings.Repeat("00", 96))
	if got, want := parseRouting(b, binary.BigEndian, false), []linkHint{{index: 4, up: true, running: true}}; !slices.Equal(got, want) {
		t.Errorf("big-endian: %+v", got)
	}
}

func FuzzRouting(f *testing.F) {
	for _, test := range routingMessages {
		f.Add(routingBytes(f, test.hex), false, test.announces)
	}
	f.Fuzz(func(t *testing.T, b []byte, big, announces bool) {
		var order binary.ByteOrder = binary.LittleEndian
		if big {
			order = binary.BigEndian
		}
		hints := parseRouting(b, order, announces)
		if len(hints) > len(b)/4 {
			t.Errorf("%d hints in %d bytes", len(hints), len(b))
		}
		for _, h := range hints {
			switch {
			case h.look && h != linkHint{look: true}, h.gone && (h.up || h.running || !announces), h.index < 0, h.index > 0xffff:
				t.Errorf("%+v", h)
			}
		}
	})
}

func TestEventString(t *testing.T) {
	g := Group{netip.MustParseAddr("232.1.1.1"), 2}
	for want, e := range map[string]Event{
		"lost 232.1.1.1 on eth0 (2)":                  {Kind: EventLost, Group: g, Old: 2, Name: "eth0"},
		"pending 232.1.1.1 on eth0 (2)":               {Kind: EventPending, Group: g, Old: 2, Name: "eth0"},
		"restored 232.1.1.1 on eth0 (2, was 5)":       {Kind: EventRestored, Group: g, Old: 5, New: 2, Name: "eth0"},
		"restored 232.1.1.1 on eth0 (2)":              {Kind: EventRestored, Group: g, Old: 2, New: 2, Name: "eth0"},
		"failed 232.1.1.1 on eth0 (2): out of memory": {Kind: EventFailed, Group: g, Old: 2, Name: "eth0", Err: errors.New("out of memory")},
	} {
		if e.String() != want {
			t.Errorf("%q, want %q", e, want)
		}
	}
	if s := EventKind(9).String(); s != "EventKind(9)" {
		t.Error(s)
	}
}

// A mendModel is a socket on a model of a kernel, whose memberships are mended.
type mendModel struct {
	*kernelModel
	l      links
	events []Event
}

func newMendModel(t *testing.T, y requestSystem, ipv6 bool) *mendModel {
	m := &mendModel{kernelModel: newModel(t, y, ipv6)}
	m.requests.kernel.guard = func(x Membership) {
		_, q := m.open(ipv6)
		x.Pending = false
		if _, err := q.kernel.setFull(Membership{Group: x.Group}, x, 0); err != nil {
			t.Errorf("guard: %v", err)
		}
	}
	m.l.apply(m.all(), time.Now())
	return m
}

func (m *mendModel) all() (changes []linkChange) {
	for i := range m.k.Interfaces {
		changes = append(changes, m.now(i))
	}
	return changes
}

// now is news of an interface as it is now.
func (m *mendModel) now(index int) linkChange {
	ifi, ok := m.k.Interfaces[index]
	return linkChange{link{index: index, name: ifi.Name, up: ifi.Up, running: ifi.Up}, !ok}
}

// mend is what the watcher does upon news.
func (m *mendModel) mend(changes ...linkChange) (errs []error, unrouted bool) {
	m.release(m.l.apply(changes, time.Now()))
	m.leaveForMending(&m.l, false)
	errs, unrouted = m.joinAfterMending(&m.l)
	m.l.settle()
	m.events, m.requests.events = m.requests.events, nil
	return errs, unrouted
}

func (m *mendModel) wantEvents(want ...string) {
	m.t.Helper()
	var got []string
	for _, e := range m.events {
		got = append(got, fmt.Sprintf("%v %d %d %d", e.Kind, e.Group.Interface, e.Old, e.New))
	}
	if !slices.Equal(got, want) {
		m.t.Errorf("events %q, want %q\n%s", got, want, m.log())
	}
	m.events = nil
}

// live checks that the filter has these memberships, and the kernel, besides
// what it may keep of interfaces that are gone, too.
func (m *mendModel) live(want ...Membership) {
	m.t.Helper()
	sortMemberships(want)
	if got := m.filter.Memberships(); fmt.Sprint(got) != fmt.Sprint(want) {
		m.t.Fatalf("memberships %v, want %v\n%s", got, want, m.log())
	}
	in, keeps := m.inKernel(), m.y.name == "darwin" || m.y.name == "freebsd"
	for _, x := range want {
		has := slices.ContainsFunc(in, func(y Membership) bool {
			// Linux has one filter for an IPv6 group, whatever the interfaces.
			return equalMembership(x, y) || x.Group == y.Group && m.y.platform.oneFilter && m.ipv6 && m.filter.count(x.Group.Addr) > 1
		})
		if has == x.Pending && !(has && keeps) {
			m.t.Fatalf("the kernel has %v, want %v\n%s", in, want, m.log())
		}
		for n := range 4 {
			heard := !x.Pending && slices.Contains(x.Sources, m.source(n)) == (x.Mode == Include)
			if m.filter.Allows(x.Group, m.source(n)) != heard {
				m.t.Errorf("%v: source %d allowed: %v", x, n, !heard)
			}
			if heard && !m.sock.Delivers(x.Group.Interface, x.Group.Addr, m.source(n)) {
				m.t.Errorf("%v: the kernel drops source %d", x, n)
			}
		}
	}
	if keeps {
		return
	}
	if n := len(slices.DeleteFunc(slices.Clone(want), func(x Membership) bool { return x.Pending })); len(in) != n {
		m.t.Errorf("the kernel has %v, want %v", in, want)
	}
	if harm := m.k.Harmed(); len(harm) > 0 {
		m.t.Error(harm)
	}
}

func (m *mendModel) on(x Membership, index int) Membership { x.Group.Interface = index; return x }

func pending(x Membership) Membership { x.Pending = true; return x }

// other is a second group.
func (m *mendModel) other(x Membership) Membership {
	x.Group.Addr = x.Group.Addr.Next()
	return x
}

// A membership follows the name of its interface.
func TestMendingFollowsName(t *testing.T) {
	eachSystem(t, fourSystems, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newMendModel(t, y, ipv6)
		a, b := m.include(1, 2), m.other(m.exclude(3))
		m.must(m.become(a))
		m.must(m.set(b.Group, b.Mode, b.Sources))
		eth0 := m.k.Interfaces[2]

		m.k.RemoveInterface(2)
		m.mend(m.now(2))
		m.wantEvents("lost 2 2 0", "pending 2 2 0", "lost 2 2 0", "pending 2 2 0")
		m.live(pending(a), pending(b))

		// A name that does not return costs nothing, whatever else happens.
		if n := m.during(func() { m.mend(m.now(3)) }); n > 0 {
			t.Errorf("%d calls for what is pending", n)
		}

		// Another index, and more than one life.
		for i, index := range []int{7, 8, 8, 2} {
			m.k.AddInterface(index, eth0)
			m.mend(m.now(index))
			old := []int{2, 7, 8, 8}[i]
			e := fmt.Sprintf("restored %d %d %d", index, old, index)
			m.wantEvents(e, e)
			m.live(m.on(a, index), m.on(b, index))
			m.k.RemoveInterface(index)
			m.mend(m.now(index))
			m.live(pending(m.on(a, index)), pending(m.on(b, index)))
		}
		// All at once.
		m.k.AddInterface(9, eth0)
		m.mend(m.now(9))
		m.k.RemoveInterface(9)
		m.k.AddInterface(9, eth0)
		m.mend(linkChange{link: link{index: 9}, gone: true}, m.now(9))
		m.wantEvents("lost 9 9 0", "pending 9 9 0", "lost 9 9 0", "pending 9 9 0", "restored 9 9 9", "restored 9 9 9")
		m.live(m.on(a, 9), m.on(b, 9))
		// A new name is the same interface.
		lan := eth0
		lan.Name = "lan0"
		m.k.AddInterface(9, lan)
		m.mend(m.now(9))
		m.wantEvents()
		m.k.RemoveInterface(9)
		m.mend(m.now(9))
		m.k.AddInterface(10, eth0)
		m.mend(m.now(10))
		m.live(pending(m.on(a, 9)), pending(m.on(b, 9)))
		m.k.AddInterface(11, lan)
		m.mend(m.now(11))
		m.live(m.on(a, 11), m.on(b, 11))
	})
}

// Two interfaces come back with the indexes swapped.
func TestMendingSwap(t *testing.T) {
	eachSystem(t, fourSystems, func(t *testing.T, y requestSystem, ipv6 bool) {
		for _, both := range []bool{false, true} {
			m := newMendModel(t, y, ipv6)
			a, b := m.include(1, 2), m.on(m.include(3), 3)
			m.must(m.become(a))
			m.must(m.set(b.Group, b.Mode, b.Sources))
			eth0, eth1 := m.k.Interfaces[2], m.k.Interfaces[3]
			m.k.RemoveInterface(2)
			m.k.RemoveInterface(3)
			m.mend(m.now(2), m.now(3))
			m.live(pending(a), pending(b))
			m.k.AddInterface(3, eth0)
			if both {
				m.k.AddInterface(2, eth1)
				m.mend(m.now(2), m.now(3))
			} else {
				m.mend(m.now(3))
				m.live(pending(m.on(b, 2)), m.on(a, 3))
				m.k.AddInterface(2, eth1)
				m.mend(m.now(2))
			}
			m.live(m.on(b, 2), m.on(a, 3))
		}
	})
}

// Requests on what is pending go to the filter alone.
func TestMendingRequests(t *testing.T) {
	eachSystem(t, fourSystems, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newMendModel(t, y, ipv6)
		m.must(m.become(m.include(1, 2)))
		eth0 := m.k.Interfaces[2]
		m.k.RemoveInterface(2)
		m.mend(m.now(2))
		g := m.group(2)
		n := m.during(func() {
			m.must(m.do(OpJoinSource, g, m.source(3)))
			m.must(m.do(OpLeaveSource, Group{Addr: g.Addr}, m.source(1)))
			for op, want := range map[Op]error{OpJoin: ErrMode, OpBlock: ErrMode, OpUnblock: ErrMode, OpJoinSource: ErrJoined, OpLeaveSource: ErrNotJoined} {
				s := m.source(3)
				if op == OpLeaveSource {
					s = m.source(1)
				}
				if err := m.do(op, g, s); !errors.Is(err, want) {
					t.Errorf("%v: %v, want %v", op, err, want)
				}
			}
			m.live(pending(m.include(2, 3)))
			m.must(m.set(g, Exclude, nil))
			m.must(m.do(OpBlock, g, m.source(1)))
			m.must(m.do(OpBlock, g, m.source(2)))
			m.must(m.do(OpUnblock, g, m.source(1)))
			m.live(pending(m.exclude(2)))
			if _, err := m.system(g); !errors.Is(err, ErrNotJoined) {
				t.Errorf("SystemFilter: %v", err)
			}
			m.must(m.do(OpLeave, g, netip.Addr{}))
			m.live()
			if err := m.do(OpBlock, g, m.source(1)); !errors.Is(err, ErrNotJoined) {
				t.Error(err)
			}
		})
		if n > 0 {
			t.Errorf("the kernel was called %d times\n%s", n, m.log())
		}
		m.k.AddInterface(7, eth0)
		m.mend(m.now(7))
		m.wantEvents()
		m.live()
	})
}

// The caller was faster.
func TestMendingAlreadyJoined(t *testing.T) {
	eachSystem(t, fourSystems, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newMendModel(t, y, ipv6)
		m.must(m.become(m.include(1, 2)))
		eth0 := m.k.Interfaces[2]
		m.k.RemoveInterface(2)
		m.mend(m.now(2))
		m.k.AddInterface(7, eth0)
		m.must(m.do(OpJoinSource, m.group(7), m.source(3)))
		n := m.during(func() { m.mend(m.now(7)) })
		if n > 0 {
			t.Errorf("%d calls\n%s", n, m.log())
		}
		m.wantEvents("restored 7 2 7")
		m.live(m.on(m.include(3), 7))
	})
}

// What failed is tried again, and nothing is left behind meanwhile.
func TestMendingFails(t *testing.T) {
	eachSystem(t, fourSystems, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newMendModel(t, y, ipv6)
		m.must(m.become(m.include(1, 2)))
		eth0 := m.k.Interfaces[2]
		m.k.RemoveInterface(2)
		m.mend(m.now(2))
		m.k.AddInterface(7, eth0)
		m.fault = func(_, level, name int) error { return errors.New("no") }
		errs, _ := m.mend(m.now(7))
		var e *OpError
		if len(errs) != 1 || !errors.As(errs[0], &e) || e.Op != "Repair" || e.Group != m.group(7) {
			t.Errorf("%v", errs)
		}
		if len(m.events) != 1 || m.events[0].Err == nil {
			t.Errorf("%v", m.events)
		}
		m.wantEvents("failed 2 2 0")
		m.live(pending(m.include(1, 2)))
		m.fault = nil
		m.mend()
		m.wantEvents("restored 7 2 7")
		m.live(m.on(m.include(1, 2), 7))
	})
}

// What the routing table chose follows it.
func TestMendingRoute(t *testing.T) {
	eachSystem(t, fourSystems, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newMendModel(t, y, ipv6)
		m.host.routes = make(map[netip.Addr]int)
		m.must(m.do(OpJoinSource, m.group(0), m.source(1)))
		m.live(m.include(1))
		m.k.RemoveInterface(2)
		m.host.routes[m.source(1)] = 0
		if _, unrouted := m.mend(m.now(2)); !unrouted {
			t.Error("no news will tell of the route")
		}
		m.live(pending(m.include(1)))
		m.host.routes[m.source(1)] = 3
		if _, unrouted := m.mend(); unrouted {
			t.Error("there is a route")
		}
		m.wantEvents("restored 3 2 3")
		m.live(m.on(m.include(1), 3))
	})
}

// Somebody else has joined where a stale membership of ours is.
func TestMendingGuard(t *testing.T) {
	eachSystem(t, fourSystems, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newMendModel(t, y, ipv6)
		m.must(m.become(m.include(1, 2)))
		eth0 := m.k.Interfaces[2]
		m.k.RemoveInterface(2)
		m.k.AddInterface(2, eth0)
		sock, q := m.open(ipv6)
		m.must(q.do(OpJoinSource, m.group(2), m.source(1)))
		m.mend(linkChange{link: link{index: 2}, gone: true}, m.now(2))
		m.live(m.include(1, 2))
		m.must(m.do(OpLeave, m.group(2), netip.Addr{}))
		if !sock.Delivers(2, m.group(2).Addr, m.source(1)) {
			t.Error("the other one was harmed")
		}
	})
}

// While an interface is down, Linux loses what is changed.
func TestMendingDown(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		for _, changed := range []bool{false, true} {
			m := newMendModel(t, onLinux, ipv6)
			m.must(m.become(m.include(1)))
			m.must(m.set(m.other(m.exclude()).Group, Exclude, nil))
			for _, p := range m.places {
				p.changed = p.changed.Add(-time.Hour)
			}
			m.k.SetUp(2, false)
			m.mend(m.now(2))
			m.wantEvents()
			want := []Membership{m.include(1), m.other(m.exclude())}
			if changed {
				m.must(m.do(OpJoinSource, m.group(2), m.source(2)))
				m.must(m.do(OpBlock, want[1].Group, m.source(2)))
				want = []Membership{m.include(1, 2), m.other(m.exclude(2))}
			}
			m.k.SetUp(2, true)
			m.mend(m.now(2))
			if changed {
				m.wantEvents("lost 2 2 0", "restored 2 2 2")
			} else {
				m.wantEvents()
			}
			m.live(want...)
		}
	}
}

// A fakeSource hands the watcher the news that a test makes.
type fakeSource struct {
	news chan []linkChange
	end  chan struct{}
}

func (s *fakeSource) read() ([]linkChange, error) {
	select {
	case c := <-s.news:
		return c, nil
	case <-s.end:
		return nil, io.EOF
	}
}

func (s *fakeSource) close() { close(s.end) }

// watch runs a watcher for models until the function it returns is called.
func watch(source *fakeSource, ms ...*mendModel) (stop func()) {
	w := &watcher{members: make(map[*requests]struct{}), done: make(chan struct{})}
	var l links
	for _, m := range ms {
		w.members[m.requests] = struct{}{}
		l.apply(m.all(), time.Now())
	}
	go w.run(source, w.done, &l)
	return func() {
		source.close()
		<-w.done
	}
}

func newFakeSource() *fakeSource {
	return &fakeSource{make(chan []linkChange), make(chan struct{})}
}

// failing sets fault while a watcher runs.
func (m *mendModel) failing(fault func(call, level, name int) error) {
	m.requests.mu.Lock()
	defer m.requests.mu.Unlock()
	m.fault = fault
}

// pause lets time go by in a synctest bubble, and everybody else act.
func pause(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// A hundred changes a second become a few mendings.
func TestWatcherStorm(t *testing.T) {
	for _, gone := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			m := newMendModel(t, onLinux, false)
			m.must(m.become(m.exclude(1)))
			source := newFakeSource()
			defer watch(source, m)()
			eth0 := m.k.Interfaces[2]
			joins := 0
			m.notify = func(e Event) {
				if e.Kind == EventRestored {
					joins++
				}
			}
			for range 150 {
				if gone {
					m.k.RemoveInterface(2)
					source.news <- []linkChange{m.now(2)}
				} else {
					c := m.now(2)
					c.running = false
					source.news <- []linkChange{c}
				}
				pause(10 * time.Millisecond)
				m.k.AddInterface(2, eth0)
				source.news <- []linkChange{m.now(2)}
				pause(10 * time.Millisecond)
			}
			pause(time.Second)
			if joins < 2 || joins > 32 {
				t.Errorf("gone: %v: %d joins in 3 s", gone, joins)
			}
			m.live(m.exclude(1))
			m.end()
		})
	}
}

// What fails is tried again, but not often; a name that never returns is not.
func TestWatcherRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMendModel(t, onLinux, false)
		m.must(m.become(m.include(1)))
		source := newFakeSource()
		defer watch(source, m)()
		eth0 := m.k.Interfaces[2]
		m.k.RemoveInterface(2)
		source.news <- []linkChange{m.now(2)}
		pause(time.Second)
		if n := m.during(func() { pause(time.Hour) }); n > 0 {
			t.Errorf("%d calls for a name that does not return", n)
		}
		var failed []time.Time
		m.notify = func(e Event) {
			if e.Kind == EventFailed {
				failed = append(failed, time.Now())
			}
		}
		m.failing(func(_, level, name int) error { return errors.New("no") })
		m.k.AddInterface(7, eth0)
		start := time.Now()
		source.news <- []linkChange{m.now(7)}
		pause(time.Hour)
		if n := len(failed); n < 100 || n > 140 || failed[4].Sub(start) > 10*time.Second {
			t.Errorf("%d tries in an hour, %v", n, failed[:min(n, 5)])
		}
		m.failing(nil)
		pause(lastRetry)
		m.live(m.on(m.include(1), 7))
		// With news, it is tried at once.
		m.failing(func(_, level, name int) error { return errors.New("no") })
		c := m.now(7)
		c.running = false
		source.news <- []linkChange{c}
		source.news <- []linkChange{m.now(7)}
		pause(10 * time.Minute)
		m.failing(nil)
		source.news <- nil
		pause(settleTime)
		if m.live(pending(m.on(m.include(1), 7))); t.Failed() { // the leave had failed, too
			return
		}
		pause(firstRetry)
		m.live(m.on(m.include(1), 7))
		m.end()
	})
}

// A program that takes its time over events stops neither the mending of
// others nor its own requests, and may make any request but Close.
func TestWatcherSlowEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow, other := newMendModel(t, onLinux, false), newMendModel(t, onLinux, false)
		source := newFakeSource()
		defer watch(source, slow, other)()
		var mu sync.Mutex
		var events []string
		block := make(chan struct{})
		slow.notify = func(e Event) {
			<-block
			mu.Lock()
			defer mu.Unlock()
			events = append(events, e.Kind.String())
			if e.Kind == EventPending {
				slow.must(slow.do(OpJoinSource, e.Group, slow.source(2)))
			}
			slow.filter.Memberships()
			if err := slow.repair(); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, errors.ErrUnsupported) {
				t.Error(err)
			}
		}
		for _, m := range []*mendModel{slow, other} {
			m.must(m.become(m.include(1)))
			m.k.RemoveInterface(2)
		}
		source.news <- []linkChange{slow.now(2)}
		synctest.Wait()
		for _, m := range []*mendModel{slow, other} {
			m.live(pending(m.include(1)))
			m.must(m.do(OpJoinSource, m.group(2), m.source(3)))
			m.live(pending(m.include(1, 3)))
		}
		closed := false
		go func() {
			time.Sleep(time.Second)
			slow.end()
			closed = true
		}()
		time.Sleep(2 * time.Second)
		if closed {
			t.Error("Close did not wait for an event")
		}
		close(block)
		synctest.Wait()
		if !closed {
			t.Error("Close still waits")
		}
		if fmt.Sprint(events) != "[lost]" {
			t.Errorf("events %v: Close came after the first", events)
		}
		other.end()
	})
}

// Events of one Conn come one after the other and in order, and end with Close.
func TestEventsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMendModel(t, onLinux, false)
		var got []int
		busy := false
		m.notify = func(e Event) {
			if busy {
				t.Error("two at a time")
			}
			busy = true
			time.Sleep(time.Millisecond)
			busy = false
			got = append(got, e.Old)
		}
		for i := range 100 {
			m.requests.mu.Lock()
			m.event(EventLost, Group{Interface: i}, new(place), i, nil)
			m.handOver()
			m.requests.mu.Unlock()
			time.Sleep(time.Duration(i%3) * 700 * time.Microsecond)
		}
		time.Sleep(50 * time.Millisecond)
		m.end()
		n := len(got)
		if n < 50 || !slices.IsSorted(got) {
			t.Errorf("%v", got)
		}
		m.requests.mu.Lock()
		m.event(EventLost, Group{}, new(place), 0, nil)
		m.handOver()
		m.requests.mu.Unlock()
		synctest.Wait()
		if len(got) != n {
			t.Error("an event after Close")
		}
	})
}

// The log tells what events tell.
func TestEventsLogged(t *testing.T) {
	var b strings.Builder
	cfg := Config{Logger: slog.New(slog.NewTextHandler(&b, nil))}
	cfg.notify(Event{Kind: EventFailed, Group: Group{netip.MustParseAddr("232.1.1.1"), 2}, Old: 2, Name: "eth0", Err: errors.New("no memory")})
	cfg.notify(Event{Kind: EventRestored, Group: Group{netip.MustParseAddr("232.1.1.1"), 3}, Old: 2, New: 3, Name: "eth0"})
	for _, want := range []string{"level=WARN", "failed", "232.1.1.1", "eth0", "no memory", "level=INFO", "restored", "new=3"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in the log:\n%s", want, b.String())
		}
	}
}

// The watcher runs while there are memberships, and nothing is left of it.
func TestWatchStartsAndStops(t *testing.T) {
	notEmulated(t)
	source, err := openLinks()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("this system is not watched")
	}
	if err != nil {
		t.Fatal(err)
	}
	first, err := source.read()
	if err != nil || len(first) == 0 {
		t.Fatalf("links %v, %v", first, err)
	}
	// What waits for news ends with close.
	ended := make(chan error)
	go func() {
		for err == nil {
			_, err = source.read()
		}
		ended <- err
	}()
	source.close()
	<-ended

	index, sources := testInterface(t)
	running := func() bool {
		theWatcher.mu.Lock()
		defer theWatcher.mu.Unlock()
		return theWatcher.source != nil
	}
	g := Group{netip.MustParseAddr("232.9.9.9"), index}
	goroutines := runtime.NumGoroutine()
	for range 20 {
		var conns []*Conn
		for i := range 3 {
			c, err := Listen("udp4", ":0", &Config{NoWatch: i == 0})
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
			if err := c.JoinSource(g, sources[0]); err != nil {
				t.Fatal(err)
			}
			if running() != (i > 0) {
				t.Fatalf("%d: the watcher runs: %v", i, running())
			}
			if i > 0 {
				if name := theWatcher.name(index, theHost); name != theHost.name(index) {
					t.Fatalf("%d is %q, want %q", index, name, theHost.name(index))
				}
			}
		}
		for i, c := range conns {
			if err := c.Repair(); err != nil {
				t.Error(err)
			}
			if m := c.Memberships(); len(m) != 1 || m[0].Pending {
				t.Errorf("after Repair: %v", m)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if running() != (i < 2) {
				t.Fatalf("%d closed: the watcher runs: %v", i, running())
			}
		}
	}
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > goroutines && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		buf := make([]byte, 1<<20)
		t.Errorf("%d goroutines, %d before\n%s", n, goroutines, buf[:runtime.Stack(buf, true)])
	}
	theWatcher.known.Range(func(i, name any) bool {
		t.Errorf("still known: %v %v", i, name)
		return true
	})
}
