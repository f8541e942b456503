//go:build !plan9

package mcast

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"example.com/mcast/internal/kerneltest"
)

// What other sockets joined, and what this one had before it was a Conn's.

// TestHearsOnlyOwn: what other sockets joined is not heard; Linux keeps it out
// where it can, else the filter does.
func TestHearsOnlyOwn(t *testing.T) {
	for _, old := range []bool{false, true} {
		y := onLinux.with(fmt.Sprintf("4.19 %v", old), func(k *kerneltest.Kernel) { k.NoIPv6MulticastAll = old })
		eachModel(t, []modelSystem{y}, func(t *testing.T, y modelSystem, ipv6 bool) {
			c, h, s := newModelConn(t, y, ipv6, quiet)
			other := h.open(endpoint{ipv6: ipv6}, quiet)
			other.must(other.Join(other.group("eth0")))
			g := c.group("eth0")
			if got, want := s.Delivers(2, g.Addr, c.source(1)), old && ipv6; got != want {
				t.Errorf("the kernel leaks: %v, want %v", got, want)
			}
			if c.hears(2, g.Addr, c.source(1)) || !other.hears(2, g.Addr, c.source(1)) {
				t.Error("the filter leaks, or loses")
			}
		})
	}
}

// TestOthersMemberships: what the socket has from before, New's Conn neither
// takes over nor undoes.
func TestOthersMemberships(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		for _, theirs := range []sourceFilter{{mode: Exclude}, {Include, nil}} {
			h := newModelHost(t, y)
			before := h.open(endpoint{ipv6: ipv6}, quiet)
			if theirs.mode == Include {
				theirs.sources = before.sources(1, 2)
			}
			socket := h.kernel.Socket(ipv6)
			earlier := h.wrap(socket, endpoint{ipv6: ipv6}, quiet)
			g := earlier.group("eth0")
			earlier.must(earlier.SetFilter(g, theirs.mode, theirs.sources...))
			had := inKernel(socket)

			c := h.wrap(socket, endpoint{ipv6: ipv6}, quiet)
			c.Conn.ledger.others = true
			for _, request := range []func() error{
				func() error { return c.Join(g) },
				func() error { return c.JoinSource(g, c.source(1)) },
				func() error { return c.JoinSource(g, c.source(3)) },
				func() error { return c.SetFilter(g, Include, c.source(4)) },
				func() error { return c.SetFilter(g, Exclude, c.source(4)) },
				func() error { return c.Join(c.group("2")) },
				func() error { return c.Join(c.group("")) },
			} {
				if err := request(); !errors.Is(err, ErrJoined) || !strings.Contains(err.Error(), "it was not made here") {
					t.Errorf("%v, want ErrJoined", err)
				}
			}
			c.refused(ErrNotJoined, "", c.others(g)...)
			if now := inKernel(socket); !slices.EqualFunc([]map[groupIndex]sourceFilter{had}, []map[groupIndex]sourceFilter{now}, func(a, b map[groupIndex]sourceFilter) bool {
				return fmt.Sprint(a) == fmt.Sprint(b)
			}) {
				t.Errorf("the socket had %v, now %v", had, now)
			}
			if ms := c.Memberships(); len(ms) > 0 {
				t.Errorf("memberships: %v", ms)
			}
			// On another interface it is the Conn's.
			c.must(c.JoinSource(c.group("eth1"), c.source(1)))
			c.must(c.Leave(c.group("eth1")))
		}
	})
}
