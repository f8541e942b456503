package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"example.com/mcast"
	"example.com/mcast/examples/internal/incoming"
)

// A conn is the receiver of one family and port: a socket, or a tunnel.
type conn struct {
	incoming.Receiver
	address
	kept     func() (dropped, filtered uint64) // from us: by the system, by the filter
	fallback *fallback                         // for what the socket does not hear; nil: none
}

// An address is where a socket listens: the family and the port.
type address struct {
	ipv6 bool
	port int
}

// open opens a receiver.
func open(ctx context.Context, at address, o options, show *display) (c conn, err error) {
	if o.relay != "" && o.after == 0 {
		g, err := dial(ctx, at, o, show)
		if err != nil {
			return c, err
		}
		return conn{Receiver: g, address: at, kept: func() (dropped, filtered uint64) { return keptBy(g) }}, nil
	}
	network := "udp4"
	if at.ipv6 {
		network = "udp6"
	}
	// Where nothing routes groups, a tunnel is there for all the more.
	cfg := &mcast.Config{Timestamps: true, HopLimit: o.verbose, OnEvent: show.membership, WaitForInterface: o.relay != ""}
	if o.bind != "" {
		cfg.Control = bindTo(o.bind)
	}
	socket, err := mcast.Listen(network, fmt.Sprintf(":%d", at.port), cfg)
	if err != nil {
		return c, err
	}
	c = conn{Receiver: socket, address: at}
	if o.relay != "" {
		c.fallback = newFallback(at, o, show)
	}
	c.kept = func() (dropped, filtered uint64) {
		s := socket.Stats()
		d, f := c.fallback.kept()
		return s.Dropped + d, s.Filtered + f
	}
	return c, nil
}

// joinAll opens a receiver for each family and port, and joins.
func joinAll(ctx context.Context, o options, show *display) (conns []conn, err error) {
	for _, ch := range o.channels {
		at := address{ch.Group.Addr.Is6(), ch.Port}
		i := slices.IndexFunc(conns, func(c conn) bool { return c.address == at })
		if i < 0 {
			c, err := open(ctx, at, o, show)
			if err != nil {
				return conns, err
			}
			i, conns = len(conns), append(conns, c)
		}
		if err := join(conns[i], ch, o.block); err != nil {
			return conns, err
		}
	}
	return conns, nil
}

func join(r incoming.Requests, ch mcast.Channel, block []netip.Addr) error {
	if err := incoming.Join(r, ch); err != nil || ch.Source.IsValid() {
		return err
	}
	for _, s := range block {
		if blocks(ch, s) {
			if err := r.Block(ch.Group, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// leaveAll leaves what was joined, the last first.
func leaveAll(conns []conn) error {
	var errs []error
	for _, c := range conns {
		for _, m := range slices.Backward(c.Memberships()) {
			errs = append(errs, c.Leave(m.Group))
		}
	}
	return errors.Join(errs...)
}

// oldVersions says on which interfaces with channels the system speaks a version
// of IGMP or MLD whose reports name no sources, and why.
func oldVersions(conns []conn) (texts []string) {
	for _, c := range conns {
		for _, m := range c.Memberships() {
			if m.Mode != mcast.Include || m.Index == 0 {
				continue
			}
			text := oldVersion(m.Group.Interface, c.ipv6)
			if text != "" && !slices.Contains(texts, text) {
				texts = append(texts, text)
			}
		}
	}
	return texts
}
