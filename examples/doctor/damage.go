package main

import (
	"net/netip"
	"slices"
)

// counter is how much one of the system's counters grew meanwhile, which goes
// by another name in IPv6 (/proc/net/snmp, snmp6). They are the host's, not
// those of one socket.
func (f *facts) counter(protocol, name string) int64 {
	if f.Group.Is6() {
		return f.Counts[protocol+"6"+name]
	}
	return f.Counts[protocol+":"+name]
}

// checkBuffer: what a socket dropped, the system counts in one, be it for want
// of buffer or by a wrong checksum. The counters of the host tell them apart.
func checkBuffer(f *facts) []finding {
	const larger = "sysctl -w net.core.rmem_max=16777216"
	dropped, full, wrong := f.Heard.Dropped, f.counter("Udp", "RcvbufErrors"), f.counter("Udp", "InCsumErrors")
	switch {
	case dropped == 0 || full == 0 && wrong > 0:
		return nil
	case full == 0 && f.Counts == nil || full > 0 && wrong > 0:
		return say(note, commands(larger), "the system dropped %s, for want of buffer (%d bytes) or because of wrong checksums, which it counts in one", count(dropped, "datagram"), f.Heard.Buffer)
	}
	return say(note, commands(larger), "the system dropped %s for want of buffer (%d bytes)", count(dropped, "datagram"), f.Heard.Buffer)
}

// checkChecksum: a wrong checksum is nobody's fault on this host, and no buffer
// helps. It is mostly a card, or a virtual one, that was to compute it and did
// not.
func checkChecksum(f *facts) []finding {
	n := f.counter("Udp", "InCsumErrors")
	if n == 0 {
		return nil
	}
	const cause = "the sender, or a device on the way, computes it wrongly, often a virtual card; there, try: ethtool -K IFACE tx off"
	// Small ones are dropped before there is a socket to count them.
	arrived := f.Wire.incoming(func(x flow) bool { return x.VLAN == 0 && x.Port == f.Port && f.wants(x.Source) })
	if f.Heard.Received == 0 && (f.Heard.Dropped > 0 || len(arrived) > 0) {
		return say(problem, nil, "%s arrived with a wrong UDP checksum and were dropped, which a larger buffer does not change: %s", count(n, "datagram"), cause)
	}
	return say(note, nil, "%s with a wrong UDP checksum arrived on this host meanwhile, and were dropped: %s", count(n, "datagram"), cause)
}

// checkPackets: what the system dropped before it was a datagram.
func checkPackets(f *facts) (fs []finding) {
	if n := f.counter("Ip", "ReasmFails"); n > 0 {
		fs = append(fs, say(note, nil, "%s could not be put together from fragments on this host meanwhile: some of them are lost on the way; smaller datagrams, of up to 1400 bytes, need none", count(n, "packet"))...)
	}
	if n := f.counter("Ip", "InHdrErrors"); n > 0 {
		fs = append(fs, say(note, nil, "%s with a bad IP header (checksum, length, version, or hop limit) arrived on this host meanwhile, and were dropped", count(n, "packet"))...)
	}
	return fs
}

// checkMartian: sources that no host takes from a network (RFC 1812 section
// 5.3.7; fib_validate_source in Linux).
func checkMartian(f *facts) (fs []finding) {
	var odd, own []netip.Addr
	for _, x := range f.Wire.incoming(func(x flow) bool { return x.VLAN == 0 }) {
		a := x.Source
		switch {
		case f.Link.Loopback:
		case a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a.Is4() && a.As4()[0] == 0 || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
			odd = append(odd, a)
		case slices.Contains(f.Own, a):
			own = append(own, a)
		}
	}
	s := problem
	if f.Heard.Received > 0 {
		s = note
	}
	if len(odd) > 0 {
		fs = append(fs, say(s, nil, "datagrams arrive on %s with the source %s, which no host takes from a network (a martian): the sender is bound to the wrong address", f.Link.Name, list(odd))...)
	}
	if len(own) > 0 {
		fs = append(fs, say(s, nil, "datagrams arrive on %s with the source %s, an address of this host, and are dropped (as martians): another host has the address too, or the network sends back what this one sent", f.Link.Name, list(own))...)
	}
	return fs
}
