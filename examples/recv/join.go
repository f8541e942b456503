package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"example.com/mcast"
)

// A receiver is where datagrams come from: a socket of this host, or what does
// the same from elsewhere.
type receiver interface {
	Join(g mcast.Group) error
	JoinSource(g mcast.Group, source netip.Addr) error
	Block(g mcast.Group, source netip.Addr) error
	Leave(g mcast.Group) error
	Memberships() []mcast.Membership
	ReadBatch(ms []mcast.Message) (int, error)
	SetReadDeadline(t time.Time) error
	Close() error
}

// A conn is the receiver of one family and port.
type conn struct {
	receiver
	address
	kept func() (dropped, filtered uint64) // from us: by the system, by the filter
}

// An address is where a socket listens: the family and the port.
type address struct {
	ipv6 bool
	port int
}

// open opens a receiver.
func open(at address, o options, show *display) (c conn, err error) {
	network := "udp4"
	if at.ipv6 {
		network = "udp6"
	}
	cfg := &mcast.Config{Timestamps: true, HopLimit: o.verbose, OnEvent: show.membership}
	if o.bind != "" {
		cfg.Control = bindTo(o.bind)
	}
	socket, err := mcast.Listen(network, fmt.Sprintf(":%d", at.port), cfg)
	if err != nil {
		return c, err
	}
	return conn{socket, at, func() (dropped, filtered uint64) {
		s := socket.Stats()
		return s.Dropped, s.Filtered
	}}, nil
}

// joinAll opens a receiver for each family and port, and joins.
func joinAll(o options, show *display) (conns []conn, err error) {
	for _, ch := range o.channels {
		at := address{ch.Group.Addr.Is6(), ch.Port}
		i := slices.IndexFunc(conns, func(c conn) bool { return c.address == at })
		if i < 0 {
			c, err := open(at, o, show)
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

func join(r receiver, ch mcast.Channel, block []netip.Addr) error {
	if ch.Source.IsValid() {
		return r.JoinSource(ch.Group, ch.Source)
	}
	if err := r.Join(ch.Group); err != nil {
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
