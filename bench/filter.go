//go:build linux && cgo

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"example.com/mcast"
)

// filter measures the decisions, without a socket: what the read path asks
// for each datagram, and what a request asks before the system hears of it.
func filter(o *options, out *report) error {
	const calls = 1024
	if !o.wants("filter", "Allows") && !o.wants("filter", "Check") {
		return nil
	}
	var subjects []subject
	for _, groups := range []int{1, 1000} {
		f := new(mcast.Filter)
		source, other := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
		gs := make([]mcast.Group, groups)
		for i := range gs {
			gs[i] = mcast.Group{Addr: netip.AddrFrom4([4]byte{232, 1, byte(i >> 8), byte(i)}), Interface: "eth0"}
			if err := f.Apply(mcast.Request{Op: mcast.OpJoinSource, Group: gs[i], Source: source}); err != nil {
				return err
			}
		}
		random := make([]mcast.Group, calls)
		for i := range random {
			random[i] = gs[rand.IntN(groups)]
		}
		same := make([]mcast.Group, calls)
		for i := range same {
			same[i] = gs[groups/2]
		}
		for name, list := range map[string][]mcast.Group{"repeat": same, "random": random} {
			subjects = append(subjects,
				subject{name: fmt.Sprint("Allows ", groups, name), units: calls, run: func() error {
					for i := range list {
						if !f.Allows(list[i], source) {
							return errors.New("refused")
						}
					}
					return nil
				}},
				subject{name: fmt.Sprint("Check ", groups, name), units: calls, run: func() error {
					for i := range list {
						if err := f.Check(mcast.Request{Op: mcast.OpJoinSource, Group: list[i], Source: other}); err != nil {
							return err
						}
					}
					return nil
				}})
		}
	}
	m, err := measure(o.rounds, subjects)
	if err != nil {
		return err
	}
	t := out.table("Filter: ns per call", "call", "1 group", "1,000 groups, the same one", "1,000 groups, random order")
	for _, call := range []string{"Allows", "Check"} {
		t.row(call, fmt.Sprintf("%.1f", m.ns(call+" 1repeat")), fmt.Sprintf("%.1f", m.ns(call+" 1000repeat")), fmt.Sprintf("%.1f", m.ns(call+" 1000random")))
	}
	out.atMost("Allows: ns at 1,000 groups, the same one", m.ns("Allows 1000repeat"), 15)
	out.atMost("Allows: ns at 1,000 groups, random order", m.ns("Allows 1000random"), 35)
	return nil
}
