package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/incoming"
)

// collect looks at everything. It works from the goroutine that calls it, so
// that a program may run it in a network namespace of that thread.
func collect(ctx context.Context, o options) *facts {
	f := &facts{
		System: runtime.GOOS, Group: o.Group.Addr, Source: o.Source, Port: uint16(o.Port),
		Listen: o.duration.Seconds(), Named: o.index != 0, Joined: -1, Filters: -1,
		Own: []netip.Addr{}, indexes: map[string]int{}, Around: []sighting{},
		Others: []string{}, Routes: []route{}, Members: []member{}, Sockets: []udpSocket{}, Blocked: []blocked{}, Unseen: []unseen{},
	}
	index := o.index
	if index == 0 {
		var err error
		if index, err = choose(o.Channel); err != nil {
			f.NoRoute = err.Error()
		}
	}
	f.interfaces(index)
	if f.Link == nil {
		f.askAll(ctx, o.relays, o.duration)
		return f
	}
	p := newProbe(f)
	defer p.close()
	p.before(ctx)
	f.listenAll(ctx, o.duration, p)
	p.after()
	f.askAll(ctx, o.relays, o.duration)
	return f
}

// interfaces finds the interface, and those that could be meant instead.
func (f *facts) interfaces(index int) {
	ifis, err := net.Interfaces()
	if err != nil {
		f.miss("interfaces", err.Error())
	}
	for _, ifi := range ifis {
		l := newLink(ifi)
		f.indexes[l.Name] = l.Index
		switch is6 := f.Group.Is6(); {
		case ifi.Index == index:
			f.Link = &l
		case l.Up && l.Running && l.Multicast && !l.Loopback && l.has(is6):
			f.Others = append(f.Others, l.Name)
		}
		for _, p := range l.Addrs {
			f.Own = append(f.Own, p.Addr())
			if f.Source == p.Addr() {
				f.Owner = l.Name
			}
		}
	}
}

func newLink(ifi net.Interface) link {
	l := link{
		Index: ifi.Index, Name: ifi.Name, Addrs: []netip.Prefix{},
		Up:        ifi.Flags&net.FlagUp != 0,
		Running:   ifi.Flags&net.FlagRunning != 0,
		Multicast: ifi.Flags&net.FlagMulticast != 0,
		Loopback:  ifi.Flags&net.FlagLoopback != 0,
	}
	addrs, _ := ifi.Addrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			l.Addrs = append(l.Addrs, netip.PrefixFrom(p.Addr().Unmap(), p.Bits()))
		}
	}
	return l
}

// listenAll listens, and where that tells too little, once more: for the port
// that the wire shows, and after silence, for any source and anywhere else.
func (f *facts) listenAll(ctx context.Context, d time.Duration, p *probe) {
	f.Heard = f.listen(ctx, d, p)
	if f.Heard.Error != "" || ctx.Err() != nil {
		return
	}
	w := p.wire()
	if f.Port == 0 {
		ours := w.incoming(func(x flow) bool { return x.VLAN == 0 && f.wants(x.Source) })
		if len(ours) > 0 {
			f.Port = slices.MaxFunc(ours, func(a, b flow) int { return cmp.Compare(a.Count, b.Count) }).Port
			f.Heard = f.listen(ctx, d, p)
		}
	}
	if f.Heard.Received > 0 || ctx.Err() != nil {
		return
	}
	strangers := w.incoming(func(x flow) bool { return !f.wants(x.Source) })
	f.lookAround(ctx, d, f.Source.IsValid() && len(strangers) == 0 && (f.Port != 0 || w != nil), p)
}

// listen joins the group from the source, or from any, and listens.
func (f *facts) listen(ctx context.Context, d time.Duration, p *probe) heard {
	h := heard{Sources: []sourceCount{}}
	ch := mcast.Channel{Group: mcast.Group{Addr: f.Group, Interface: strconv.Itoa(f.Link.Index)}, Source: f.Source}
	c, err := mcast.Listen(network(f.Group), fmt.Sprintf(":%d", f.Port), &mcast.Config{AnySource: true, NoWatch: true})
	if err != nil {
		h.fail(err)
		return h
	}
	defer c.Close()
	if err := incoming.Join(c, ch); err != nil {
		h.fail(err)
		return h
	}
	h.Tried = f.Port != 0
	counts := map[netip.Addr]int{}
	read(ctx, c, d, func(m *mcast.Message) {
		if a := m.Source.Addr().WithZone(""); len(counts) < 1000 || counts[a] > 0 {
			counts[a]++
		}
	})
	for a, n := range counts {
		h.Sources = append(h.Sources, sourceCount{a, n})
	}
	h.sort()
	p.joined()
	s := c.Stats()
	h.Received, h.Filtered, h.Dropped, h.Buffer = s.Received, s.Filtered, s.Dropped, s.ReadBuffer
	return h
}

func (h *heard) sort() {
	slices.SortFunc(h.Sources, func(a, b sourceCount) int { return a.Source.Compare(b.Source) })
}

var sysctlName = regexp.MustCompile(`\bnet\.[a-z0-9_.]*[a-z0-9_]`)

func (h *heard) fail(err error) {
	h.Error = err.Error()
	h.InUse = isInUse(err)
	if errors.Is(err, mcast.ErrLimit) {
		h.Knob = sysctlName.FindString(h.Error)
	}
}
