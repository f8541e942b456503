//go:build !linux

package main

import (
	"context"
	"errors"
	"runtime"

	"example.com/mcast"
	"example.com/mcast/examples/internal/incoming"
)

// choose asks the library: it joins, looks, and leaves.
func choose(ch mcast.Channel) (index int, err error) {
	c, err := mcast.Listen(network(ch.Group.Addr), ":0", &mcast.Config{AnySource: true, NoWatch: true})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := incoming.Join(c, ch); err != nil {
		return 0, err
	}
	for _, m := range c.Memberships() {
		index = m.Index
	}
	if index == 0 {
		return 0, errors.New("the system does not tell which interface it chose: name one with -i")
	}
	return index, nil
}

// A probe looks at what only Linux shows.
type probe struct{ f *facts }

func newProbe(f *facts) *probe { return &probe{f} }

func (p *probe) before(context.Context) {
	const needs = "doctor looks at it on Linux only, not on " + runtime.GOOS
	p.f.miss("routes back to the source, limits, versions of IGMP and MLD, members, sockets, the firewall", needs)
	p.f.miss("queriers, reports and datagrams on the wire", needs)
}

func (p *probe) joined()                           {}
func (p *probe) wire() *wire                       { return nil }
func (p *probe) after()                            {}
func (p *probe) watches() bool                     { return false }
func (p *probe) watchAll() (end func() []sighting) { return func() []sighting { return nil } }
func (p *probe) close()                            {}
