//go:build !plan9

package mcast

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"example.com/mcast/internal/kerneltest"
)

// What tests of a modelConn's requests share: groups, sources and memberships
// in both families.

// moreSystems are older, larger and smaller relatives of the four. Without
// MCAST_* there are no sources in IPv6.
func moreSystems() (all []modelSystem) {
	word32 := func(k *kerneltest.Kernel) { k.Word = 32 }
	big := func(k *kerneltest.Kernel) { k.Order = binary.BigEndian }
	as := func(y modelSystem, p *platform) modelSystem {
		y.platform = p
		return y
	}
	linux32be := as(onLinux, linuxPlatform(4, binary.BigEndian)).with("32-bit", word32).with("big-endian", big)
	return []modelSystem{
		as(onLinux, linuxPlatform(4, binary.LittleEndian)).with("32-bit", word32),
		as(onLinux, linuxPlatform(8, binary.BigEndian)).with("big-endian", big),
		linux32be,
		onLinux.with("4.19", func(k *kerneltest.Kernel) { k.NoIPv6MulticastAll = true }),
		withoutMCAST(onLinux),
		withoutMCAST(linux32be),
		withoutFull(onLinux),
		onDarwin.with("with byte counts", func(k *kerneltest.Kernel) { k.Reports, k.ByteCounts, k.ByteCountStep = false, 5, 8 }),
		withoutMCAST(onDarwin),
		as(onFreeBSD, freebsdPlatform(4, 4)).with("386", word32),
		withoutMCAST(onFreeBSD),
		withoutFull(onFreeBSD),
		as(onWindows, windowsPlatform(4)).with("32-bit", word32),
		onWindows.with("without join first", func(k *kerneltest.Kernel) { k.FilterNeedsJoin = false }),
		onWindows.with("without IP", func(k *kerneltest.Kernel) { k.NoIP = true }),
		withoutFull(onWindows),
	}
}

func withoutMCAST(y modelSystem) modelSystem {
	y = y.with("without MCAST", func(k *kerneltest.Kernel) { k.NoMCAST = true })
	y.only4 = true
	return y
}

func withoutFull(y modelSystem) modelSystem {
	y = y.with("without full filter", func(k *kerneltest.Kernel) { k.NoMSFilter, k.NoIoctl = true, true })
	y.noFull = true
	return y
}

// addr is an address, or its counterpart of the other family.
func (c *modelConn) addr(v4, v6 string) netip.Addr {
	if c.ipv6 {
		return netip.MustParseAddr(v6)
	}
	return netip.MustParseAddr(v4)
}

// group is a group that is not source-specific.
func (c *modelConn) group(ifname string) Group {
	return Group{c.addr("239.1.2.3", "ff1e::3"), ifname}
}

// source is the nth source.
func (c *modelConn) source(n int) netip.Addr {
	return c.addr(fmt.Sprintf("10.0.%d.%d", n>>8, n&255), fmt.Sprintf("2001:db8:1::%x", n))
}

func (c *modelConn) sources(ns ...int) (as []netip.Addr) {
	for _, n := range ns {
		as = append(as, c.source(n))
	}
	return as
}

// include and exclude are memberships of group on an interface, as they are
// shown.
func (c *modelConn) include(ifname string, ns ...int) Membership {
	return Membership{Group: c.group(ifname), Mode: Include, Sources: c.sources(ns...), Index: c.index(ifname)}
}

func (c *modelConn) exclude(ifname string, ns ...int) Membership {
	m := c.include(ifname, ns...)
	m.Mode = Exclude
	return m
}

func (c *modelConn) index(ifname string) int {
	index, _ := c.host.Index(ifname)
	return index
}

// pending is a membership that is not held.
func pending(m Membership) Membership {
	m.Index, m.Pending = 0, true
	return m
}

// set replaces the filter of a group.
func (c *modelConn) set(to Membership) error { return c.SetFilter(to.Group, to.Mode, to.Sources...) }

// failCalls has those calls of the kernel fail, counted from 0, that which says
// so of. The function that it returns ends that, and reports whether any did.
func (c *modelConn) failCalls(errno syscall.Errno, which func(call, level, name int) bool) (end func() bool) {
	calls, failed := 0, false
	c.host.mu.Lock() // which every call takes
	defer c.host.mu.Unlock()
	c.kernel.Fault = func(level, name int, _ []byte) error {
		calls++
		if which(calls-1, level, name) {
			failed = true
			return errno
		}
		return nil
	}
	return func() bool {
		c.host.mu.Lock()
		defer c.host.mu.Unlock()
		c.kernel.Fault = nil
		return failed
	}
}

// entries counts what is held, or was.
func (c *modelConn) entries() int {
	c.requests.mu.Lock()
	defer c.requests.mu.Unlock()
	return c.Conn.ledger.size
}

// leaves reports whether an option ends a membership.
func (y modelSystem) leaves(level, name int) bool {
	p := y.platform
	return name == p.mcast[OpLeave] || level == levelIP && name == p.ip[OpLeave] || level == levelIPv6 && name == p.ipv6[OpLeave]
}

// must fails the test if err is not nil.
func (c *modelConn) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatalf("%v\n%s", err, c.log())
	}
}

// log is what the kernel was told.
func (c *modelConn) log() string {
	lines := strings.SplitAfter(c.socket.Log(), "\n")
	lines = slices.DeleteFunc(lines, func(s string) bool { return strings.HasPrefix(s, "get ") })
	return "the kernel was told:\n" + strings.Join(lines[max(0, len(lines)-40):], "")
}

// sent are the calls that f makes of the kernel.
func (c *modelConn) sent(f func()) []kerneltest.Request {
	before := len(c.socket.Requests())
	f()
	return c.socket.Requests()[before:]
}

// shownAs is a membership with all that a program sees of it.
func shownAs(m Membership) string { return fmt.Sprint(m, " ", m.Index) }

// check fails the test unless the memberships are want, in the order in which
// they are shown: asked for, held, heard, and in the kernel.
func (c *modelConn) check(want ...Membership) {
	c.t.Helper()
	var shown, wanted []string
	for _, m := range c.Memberships() {
		shown = append(shown, shownAs(m))
	}
	held := make(map[groupIndex]sourceFilter)
	for _, m := range want {
		wanted = append(wanted, shownAs(m))
		if !m.Pending {
			held[groupIndex{m.Group.Addr, m.Index}] = newSourceFilter(m.Mode, m.Sources)
		}
	}
	if !slices.Equal(shown, wanted) {
		c.t.Fatalf("memberships %v, want %v\n%s", shown, wanted, c.log())
	}
	if s := disagreement(&c.Conn.ledger, c.socket); s != "" {
		c.t.Fatalf("%s\n%s", s, c.log())
	}
	// Where one filter is for all interfaces, each has the union.
	told := make(map[groupIndex]sourceFilter)
	for at, f := range held {
		for other, g := range held {
			if c.ipv6 && c.platform.name == "linux" && other.addr == at.addr {
				f = f.union(g)
			}
		}
		told[at] = f
	}
	if got, want := c.kept(), filterTexts(told); !slices.Equal(got, want) {
		c.t.Fatalf("the kernel has %v, want %v\n%s", got, want, c.log())
	}
	// What is heard, and whether or not the kernel keeps the rest out, no more.
	addrs := []netip.Addr{c.group("").Addr}
	for _, m := range want {
		addrs = append(addrs, m.Group.Addr)
	}
	indexes := []int{1, 2, 3, 4, 5, 6, 7, 8, 9} // those that are gone too
	for _, m := range want {
		indexes = append(indexes, m.Index)
	}
	for _, addr := range addrs {
		for _, index := range indexes {
			f := held[groupIndex{addr, index}]
			for _, s := range c.sources(1, 2, 3, 4, 99) {
				admitted := admits(&c.Conn.delivery, &c.Conn.ledger, index, addr, s)
				if admitted != f.allows(s) || admitted && !c.hears(index, addr, s) {
					c.t.Fatalf("%v%%%d from %v is admitted: %v, and heard: %v\n%s", addr, index, s, admitted, c.hears(index, addr, s), c.log())
				}
			}
		}
	}
	for _, m := range want {
		if m.Pending {
			continue
		}
		f := told[groupIndex{m.Group.Addr, m.Index}]
		is := Membership{Group: m.Group, Mode: f.mode, Sources: f.sources, Index: m.Index}
		if got, err := c.SystemFilter(m.Group); err != nil && !errors.Is(err, errors.ErrUnsupported) || err == nil && shownAs(got) != shownAs(is) {
			c.t.Fatalf("SystemFilter(%v) = %v, %v, want %v\n%s", m.Group, got, err, is, c.log())
		}
	}
}

// kept is what the kernel has of interfaces that there are, in words. What the
// BSDs keep of one that is gone stays in the socket, deaf, until it is closed.
func (c *modelConn) kept() (texts []string) {
	for _, m := range c.socket.Memberships() {
		gone := !m.Held && c.platform.hasLen
		if gone || !c.Conn.ledger.kernel.exists(m.Interface) {
			continue
		}
		mode := Include
		if m.Exclude {
			mode = Exclude
		}
		text := filterText(groupIndex{m.Group, m.Interface}, sourceFilter{mode, m.Sources})
		if !m.Held {
			text += " is lost"
		}
		texts = append(texts, text)
	}
	slices.Sort(texts)
	return texts
}

func filterText(at groupIndex, f sourceFilter) string {
	return Membership{Group: Group{at.addr, fmt.Sprint(at.index)}, Mode: f.mode, Sources: f.sources}.String()
}

// filterTexts are filters in words, sorted.
func filterTexts(filters map[groupIndex]sourceFilter) (texts []string) {
	for at, f := range filters {
		texts = append(texts, filterText(at, f))
	}
	slices.Sort(texts)
	return texts
}

// upTo is 1, 2 … n.
func upTo(n int) (ns []int) {
	for i := range n {
		ns = append(ns, i+1)
	}
	return ns
}
