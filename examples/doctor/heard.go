package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// checkHeard says what came of listening. explained: some rule knows why
// nothing did.
func checkHeard(f *facts, explained bool) []finding {
	h, w := f.Heard, f.Wire
	bad := problem
	if explained {
		bad = note
	}
	if h.Error != "" {
		return nil
	}
	if h.Received > 0 {
		return say(ok, nil, "%s heard in %v, from %s", count(h.Received, "datagram"), f.duration(), list(heardFrom(h)))
	}
	nothing := fmt.Sprintf("nothing was heard in %v", f.duration())
	strangers := heard{}
	if f.Witness != nil {
		strangers = *f.Witness
	}
	ours := w.incoming(func(x flow) bool { return x.VLAN == 0 && x.Port == f.Port && f.wants(x.Source) })
	tagged := w.incoming(func(x flow) bool { return x.VLAN != 0 && f.wants(x.Source) })
	ports := w.incoming(func(x flow) bool { return x.VLAN == 0 && x.Port != f.Port && f.wants(x.Source) })
	others := w.incoming(func(x flow) bool { return x.VLAN == 0 && !f.wants(x.Source) })
	elsewhere := f.around(func(x sighting) bool { return x.Interface != f.Link.Name && x.Group == f.Group && f.wants(x.Source) })
	instead := f.around(func(x sighting) bool { return f.Source.IsValid() && x.Source == f.Source && x.Group != f.Group })
	switch {
	case len(ours) > 0:
		n := 0
		for _, x := range ours {
			n += x.Count
		}
		return say(bad, nil, "%s from %s arrived on %s, and none came to the socket", count(n, "datagram"), list(sources(ours)), f.Link.Name)
	case len(tagged) > 0:
		id := tagged[0].VLAN
		return say(bad, commands(fmt.Sprintf("ip link add link %s name %s.%d type vlan id %d", f.Link.Name, f.Link.Name, id, id), fmt.Sprintf("ip link set dev %s.%d up", f.Link.Name, id)),
			"%s: the datagrams from %s arrive on %s with the tag of VLAN %d; join on an interface of that VLAN", nothing, list(sources(tagged)), f.Link.Name, id)
	case len(ports) > 0:
		return say(bad, commands(f.doctor(f.Link.Name, f.Source, ports[0].Port)), "%s: the datagrams from %s go to port %d, not to %d", nothing, list(sources(ports)), ports[0].Port, f.Port)
	case len(elsewhere) > 0:
		x := elsewhere[0]
		return say(bad, commands(f.doctor(x.Interface, f.Source, x.Port)), "%s on %s: what %v sends to %v arrives on %s, not on %s", nothing, f.Link.Name, x.Source, f.Group, names(elsewhere), f.Link.Name)
	case len(others) > 0 || strangers.Received > 0:
		from := sources(others)
		if len(from) == 0 {
			from = heardFrom(strangers)
		}
		return say(bad, commands(f.doctor(f.Link.Name, from[0], f.Port)), "%s: what is sent to %v comes from %s, not from %v", nothing, f.Group, list(from), f.Source)
	case len(instead) > 0:
		x, other := instead[0], *f
		other.Group = x.Group
		return say(bad, commands(other.doctor(x.Interface, f.Source, x.Port)), "%s: %v sends to %v, port %d (on %s), not to %v", nothing, f.Source, x.Group, x.Port, x.Interface, f.Group)
	case w == nil && !h.Tried:
		return say(bad, nil, "without a port, and without the right to capture, nothing could be heard: name the port")
	case w == nil:
		return say(bad, nil, "%s; whether anything arrives on %s takes more rights, or another tool, to see", nothing, f.Link.Name)
	case slices.ContainsFunc(w.Flows, func(x flow) bool { return x.Sent }):
		return say(bad, nil, "%s: only this host sends to %v on %s, without looping it back (IP_MULTICAST_LOOP), or to another port", nothing, f.Group, f.Link.Name)
	}
	if f.Link.Loopback {
		return say(bad, nil, "%s, and nothing was sent to %v on %s: does a program on this host send, and by %s (IP_MULTICAST_IF)?", nothing, f.Group, f.Link.Name, f.Link.Name)
	}
	if f.Owner != "" {
		return say(bad, nil, "%s, and nothing is sent to %v on %s by this host, whose address %v is: does the program send by %s (IP_MULTICAST_IF)?", nothing, f.Group, f.Link.Name, f.Source, f.Link.Name)
	}
	if port := f.around(func(x sighting) bool { return x.Port == f.Port && f.Port != 0 && x.Group != f.Group }); len(port) > 0 {
		x, other := port[0], *f
		other.Group = x.Group
		source := netip.Addr{}
		if other.ssm() {
			source = x.Source
		}
		return say(bad, commands(other.doctor(x.Interface, source, x.Port)), "%s, and nothing sent to %v arrived on %s; what arrives for port %d is from %v to %v (on %s): is that meant?", nothing, f.Group, f.Link.Name, x.Port, x.Source, x.Group, x.Interface)
	}
	return say(bad, nil, "%s, and nothing sent to %v arrived on %s: is the sender sending, out of the right interface and with a TTL that reaches here; do the routers route it, and do the switches on the way have a querier?", nothing, f.Group, f.Link.Name)
}

// around returns what was seen anywhere for which pred is true.
func (f *facts) around(pred func(sighting) bool) (ss []sighting) {
	for _, x := range f.Around {
		if pred(x) {
			ss = append(ss, x)
		}
	}
	return ss
}

// names are the interfaces, each once.
func names(ss []sighting) string {
	var all []string
	for _, x := range ss {
		if !slices.Contains(all, x.Interface) {
			all = append(all, x.Interface)
		}
	}
	return strings.Join(all, " and ")
}
