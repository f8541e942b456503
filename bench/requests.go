//go:build linux && cgo

package main

import (
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"example.com/mcast"
)

// An option is one setsockopt(2), laid out.
type option struct {
	name  int
	value []byte
}

// set makes the system call and nothing else.
func (o *option) set(fd int) error {
	_, _, e := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_IP, uintptr(o.name),
		uintptr(unsafe.Pointer(&o.value[0])), uintptr(len(o.value)), 0)
	if e != 0 {
		return fmt.Errorf("setsockopt %d: %w", o.name, e)
	}
	return nil
}

// A pair is two requests that undo each other, by the library and bare.
type pair struct {
	name       string
	most       float64 // what the ratio may be; 0: no target
	alloc      float64 // how many allocations there may be; 0: no target
	start, end func(c *mcast.Conn) error
	do, undo   func(c *mcast.Conn) error
	bare       [2]option
	bareStart  *option
}

// requests measures the requests of a Conn beside bare system calls.
func requests(o *options, out *report) error {
	ch, err := channel4()
	if err != nil {
		return err
	}
	asm := mcast.Group{Addr: netip.MustParseAddr("239.77.1.1"), Interface: ch.Group.Interface}
	ssm := ch.Group
	var even, odd []netip.Addr // sources, as many as Linux allows by default
	for i := range byte(20) {
		a := netip.AddrFrom4([4]byte{127, 0, 0, 10 + i})
		if i%2 == 0 {
			even = append(even, a)
		} else {
			odd = append(odd, a)
		}
	}
	join := option{unix.MCAST_JOIN_GROUP, groupReq(ch.index, asm.Addr)}
	joinSource := option{unix.MCAST_JOIN_SOURCE_GROUP, groupSourceReq(ch.index, ssm.Addr, ch.Source)}
	pairs := []pair{
		{
			name: "JoinSource, LeaveSource",
			most: 1.35,
			do:   func(c *mcast.Conn) error { return c.JoinSource(ssm, ch.Source) },
			undo: func(c *mcast.Conn) error { return c.LeaveSource(ssm, ch.Source) },
			bare: [2]option{joinSource, {unix.MCAST_LEAVE_SOURCE_GROUP, joinSource.value}},
		}, {
			name: "Join, Leave",
			do:   func(c *mcast.Conn) error { return c.Join(asm) },
			undo: func(c *mcast.Conn) error { return c.Leave(asm) },
			bare: [2]option{join, {unix.MCAST_LEAVE_GROUP, join.value}},
		}, {
			name:  "Block, Unblock",
			start: func(c *mcast.Conn) error { return c.Join(asm) },
			do:    func(c *mcast.Conn) error { return c.Block(asm, ch.Source) },
			undo:  func(c *mcast.Conn) error { return c.Unblock(asm, ch.Source) },
			end:   func(c *mcast.Conn) error { return c.Leave(asm) },
			bare: [2]option{
				{unix.MCAST_BLOCK_SOURCE, groupSourceReq(ch.index, asm.Addr, ch.Source)},
				{unix.MCAST_UNBLOCK_SOURCE, groupSourceReq(ch.index, asm.Addr, ch.Source)},
			},
			bareStart: &join,
		}, {
			name:  "SetFilter of 10 sources, of 10 others",
			most:  1.6,
			alloc: 12, // 6 a call
			start: func(c *mcast.Conn) error { return c.JoinSource(ssm, ch.Source) },
			do:    func(c *mcast.Conn) error { return c.SetFilter(ssm, mcast.Include, even...) },
			undo:  func(c *mcast.Conn) error { return c.SetFilter(ssm, mcast.Include, odd...) },
			end:   func(c *mcast.Conn) error { return c.Leave(ssm) },
			bare: [2]option{
				{unix.MCAST_MSFILTER, groupFilter(ch.index, ssm.Addr, true, even)},
				{unix.MCAST_MSFILTER, groupFilter(ch.index, ssm.Addr, true, odd)},
			},
			bareStart: &joinSource,
		},
	}

	t := out.table("Requests: CPU time per pair in ns, and as a multiple of the bare setsockopt pair's", "pair of requests", "mcast", "bare", "of bare", "allocs", "bytes")
	for _, p := range pairs {
		if !o.wants("requests", p.name) {
			continue
		}
		if err := p.measure(o, out, t); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

func (p *pair) measure(o *options, out *report, t *table) error {
	const units = 8
	c, err := mcast.Listen("udp4", ":0", nil)
	if err != nil {
		return err
	}
	defer c.Close()
	u, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return err
	}
	defer u.Close()
	if p.start != nil {
		if err := p.start(c); err != nil {
			return err
		}
		if err := withFD(u, p.bareStart.set); err != nil {
			return err
		}
	}
	return withFD(u, func(fd int) error {
		lib := subject{name: "mcast", units: units, run: func() error {
			for range units {
				if err := p.do(c); err != nil {
					return err
				}
				if err := p.undo(c); err != nil {
					return err
				}
			}
			return nil
		}}
		bare := func(name string) subject {
			return subject{name: name, units: units, run: func() error {
				for range units {
					if err := p.bare[0].set(fd); err != nil {
						return err
					}
					if err := p.bare[1].set(fd); err != nil {
						return err
					}
				}
				return nil
			}}
		}
		m, err := measure(o.rounds, []subject{lib, bare("bare"), bare("again")})
		if err != nil {
			return err
		}
		allocs, bytes, err := lib.allocations()
		if err != nil {
			return err
		}
		t.row(p.name, fmt.Sprintf("%.0f", m.ns("mcast")), fmt.Sprintf("%.0f", m.ns("bare")), fmt.Sprintf("%.2f", m.ratio("mcast", "bare")),
			fmt.Sprintf("%.3g", allocs), fmt.Sprintf("%.0f", bytes))
		out.null(p.name+": bare beside bare", m.ratio("again", "bare"))
		if p.most != 0 {
			out.atMost(p.name+": of bare", m.ratio("mcast", "bare"), p.most)
			out.headline("`"+p.name+"`, beside the bare system calls", fmt.Sprintf("%.2f", m.ratio("mcast", "bare")))
		}
		if p.alloc != 0 {
			out.atMost(p.name+": allocations", allocs, p.alloc)
		}
		return nil
	})
}
