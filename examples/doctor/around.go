package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"example.com/mcast"
)

// A sighting is what was seen of a group, from a source or to a port that might
// be meant, on any interface.
type sighting struct {
	Interface string     `json:"interface"`
	Source    netip.Addr `json:"source"`
	Group     netip.Addr `json:"group"`
	Port      uint16     `json:"port"`
	Count     int        `json:"count"`
}

// maxOthers is how many other interfaces are joined on.
const maxOthers = 16

// lookAround listens once more, after silence: on the interface for any source,
// and on the other ones; and where it may, it looks at what arrives on all of
// them for the group, from the source, or to the port.
func (f *facts) lookAround(ctx context.Context, d time.Duration, anySource bool, p *probe) {
	others := f.Others
	if f.Link.Loopback {
		others = nil
	}
	if len(others) > maxOthers {
		others = others[:maxOthers]
	}
	done := p.watchAll()
	defer func() {
		for _, s := range done() {
			if s.Interface != f.Link.Name || s.Group != f.Group {
				f.Around = append(f.Around, s)
			}
		}
		f.sortAround()
	}()
	c, err := mcast.Listen(network(f.Group), fmt.Sprintf(":%d", f.Port), &mcast.Config{AnySource: true, NoWatch: true})
	if err != nil {
		return
	}
	defer c.Close()
	joined := 0
	join := func(ifname string, source netip.Addr) bool {
		g := mcast.Group{Addr: f.Group, Interface: ifname}
		var err error
		if source.IsValid() {
			err = c.JoinSource(g, source)
		} else {
			err = c.Join(g)
		}
		if err == nil {
			joined++
		}
		return err == nil
	}
	here := strconv.Itoa(f.Link.Index)
	witness := heard{Sources: []sourceCount{}}
	if anySource && join(here, netip.Addr{}) {
		witness.Tried = f.Port != 0
		f.Witness = &witness
	}
	for _, name := range others {
		if ifi, found := f.indexes[name]; found {
			join(strconv.Itoa(ifi), f.Source)
		}
	}
	if joined == 0 && !p.watches() {
		return
	}
	counts := map[sighting]int{}
	read(ctx, c, d, func(m *mcast.Message) {
		k := sighting{m.Group.Interface, m.Source.Addr().WithZone(""), f.Group, f.Port, 0}
		if m.Index == f.Link.Index {
			k.Interface = f.Link.Name
			witness.Received++
		}
		if len(counts) < 1000 || counts[k] > 0 {
			counts[k]++
		}
	})
	for k, n := range counts {
		if k.Interface == f.Link.Name {
			witness.Sources = append(witness.Sources, sourceCount{k.Source, n})
		} else {
			k.Count = n
			f.Around = append(f.Around, k)
		}
	}
	witness.sort()
	s := c.Stats()
	witness.Filtered, witness.Dropped, witness.Buffer = s.Filtered, s.Dropped, s.ReadBuffer
}

// sortAround puts those with most datagrams first. What a socket and a capture
// have both seen is there once.
func (f *facts) sortAround() {
	slices.SortFunc(f.Around, func(a, b sighting) int {
		return cmp.Or(cmp.Compare(a.Interface, b.Interface), a.Source.Compare(b.Source), a.Group.Compare(b.Group), cmp.Compare(a.Port, b.Port), b.Count-a.Count)
	})
	f.Around = slices.CompactFunc(f.Around, func(a, b sighting) bool {
		a.Count = b.Count
		return a == b
	})
	slices.SortStableFunc(f.Around, func(a, b sighting) int { return b.Count - a.Count })
}

// read reads for a time.
func read(ctx context.Context, c *mcast.Conn, d time.Duration, got func(m *mcast.Message)) {
	c.SetReadDeadline(time.Now().Add(d))
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) }) // long ago: wakes the reader
	defer stop()
	ms := make([]mcast.Message, 32)
	for i := range ms {
		ms[i].Buf = make([]byte, 64) // the payload does not matter
	}
	for {
		n, err := c.ReadBatch(ms)
		if err != nil {
			return
		}
		for i := range ms[:n] {
			got(&ms[i])
		}
	}
}
