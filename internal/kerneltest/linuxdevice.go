//go:build !plan9

package kerneltest

import (
	"net/netip"
	"slices"
	"syscall"
)

// A linuxGroup is what a Linux device receives of one group, all sockets together:
// struct ip_mc_list and ifmcaddr6. Like the kernel it counts and does not look at
// the sockets again, so what a socket takes away that it never gave is another's.
type linuxGroup struct {
	users   int
	count   [2]int // filters, by mode: [excludes], [includes]
	sources map[netip.Addr][2]int
	saved   map[netip.Addr][2]int // put aside while the device is down
	holders map[*entry]bool       // whose membership is counted here
}

const excludes, includes = 0, 1 // MCAST_EXCLUDE and MCAST_INCLUDE of Linux

func linuxMode(exclude bool) int {
	if exclude {
		return excludes
	}
	return includes
}

// allows is ip_check_mc_rcu and ipv6_chk_mcast_addr.
func (g *linuxGroup) allows(source netip.Addr) bool {
	if n, ok := g.sources[source]; ok {
		return n[includes] > 0 || n[excludes] != g.count[excludes]
	}
	return g.count[excludes] > 0
}

// hasIPv6 is whether the device has an IPv6 side: addrconf_notify takes it away when
// the MTU is less than 1280.
func (i Interface) hasIPv6() bool { return i.MTU == 0 || i.MTU >= 1280 }

// add is ip_mc_add_src: it counts a filter, unless sources are added to one that is
// counted already.
func (d *device) add(group netip.Addr, exclude bool, sources []netip.Addr, more bool) syscall.Errno {
	g := d.groups[group]
	if g == nil {
		return linuxESRCH
	}
	mode := linuxMode(exclude)
	if !more {
		g.count[mode]++
	}
	for _, a := range sources {
		n := g.sources[a]
		n[mode]++
		g.sources[a] = n
	}
	return 0
}

// del is ip_mc_del_src. Nobody looks at its errors.
func (d *device) del(group netip.Addr, exclude bool, sources []netip.Addr, more bool) {
	g := d.groups[group]
	if g == nil {
		return
	}
	mode := linuxMode(exclude)
	if !more {
		if g.count[mode] == 0 {
			return
		}
		g.count[mode]--
	}
	for _, a := range sources {
		n := g.sources[a]
		if n[mode] == 0 {
			continue
		}
		if n[mode]--; n == [2]int{} {
			delete(g.sources, a)
		} else {
			g.sources[a] = n
		}
	}
}

// hold is ip_mc_inc_group for a new entry.
func (d *device) hold(e *entry) {
	if d.groups == nil {
		d.groups = make(map[netip.Addr]*linuxGroup)
	}
	g := d.groups[e.group]
	if g == nil {
		g = &linuxGroup{sources: make(map[netip.Addr][2]int), holders: make(map[*entry]bool)}
		d.groups[e.group] = g
	}
	g.users++
	g.holders[e] = true
	d.add(e.group, e.exclude, nil, false)
}

// drop gives up what an entry has: ip_mc_leave_src and ip_mc_dec_group. They take
// the device that has the entry's index now, whichever it is.
func (k *Kernel) drop(d *device, e *entry, what string) {
	if d == nil || d.groups[e.group] == nil {
		return
	}
	g := d.groups[e.group]
	k.claims(d, e, what)
	d.del(e.group, e.exclude, e.sources, false)
	delete(g.holders, e)
	if g.users--; g.users == 0 {
		delete(d.groups, e.group)
	}
}

// claims notes an entry of a past interface, or of a past IPv6 side of one, that is
// used on what has its index now. Observed: A joins on index 50, the device is made
// anew as 50, B joins, A closes, and B is gone from /proc/net/igmp.
func (k *Kernel) claims(d *device, e *entry, what string) {
	if g := d.groups[e.group]; g != nil && !g.holders[e] {
		for h := range g.holders {
			if h.spare && h.exclude == e.exclude && sameSources(h.sources, e.sources) {
				delete(g.holders, h)
				return
			}
		}
		k.harm(Stolen, "%s of %v%%%d, joined on an interface that has gone, changes what others joined on the one that has its index now",
			what, e.group, e.index)
	}
}

// sameSources is whether two lists have the same sources, in any order.
func sameSources(a, b []netip.Addr) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(s netip.Addr) bool { return !slices.Contains(b, s) })
}

// holds is whether the device has all that the entry asks for.
func (d *device) holds(e *entry) bool {
	if d == nil || d.groups[e.group] == nil || !d.groups[e.group].holders[e] {
		return false
	}
	g := *d.groups[e.group]
	if e.exclude {
		return g.count[excludes] > 0
	}
	if g.saved != nil {
		g.sources = g.saved // what the device will have when it is up again
	}
	return !slices.ContainsFunc(e.sources, func(a netip.Addr) bool { return !g.allows(a) })
}

// lower is ip_mc_down of the groups that in says: INCLUDE sources are put aside.
func (d *device) lower(in func(netip.Addr) bool) {
	for group, g := range d.groups {
		if in(group) && g.count[excludes] == 0 {
			g.saved, g.sources = g.sources, make(map[netip.Addr][2]int)
		}
	}
}

// raise is ip_mc_up. Observed from 4.15 to 7.2: the sources that were put aside take
// the place of those that came in between; the sockets' filters know nothing of it.
func (d *device) raise(in func(netip.Addr) bool) {
	for group, g := range d.groups {
		if in(group) {
			if g.saved != nil && g.count[excludes] == 0 {
				g.sources = g.saved
			}
			g.saved = nil
		}
	}
}
