//go:build !plan9

package kerneltest

import (
	"bytes"
	"net/netip"
	"syscall"
)

// Options that concern no membership: they are kept and read back. What they do is
// not modelled, but a number, level or length that the system does not know is
// refused as the system refuses it.

// More option levels.
const (
	levelUDP       = 17
	levelSocket    = 0xffff // SOL_SOCKET of the BSDs and Windows
	levelSocketLin = 1      // SOL_SOCKET of Linux; MIPS has 0xffff
)

// A setting is one such option.
type setting struct {
	name     string
	min, max int  // length of its value; max 0: any longer one will do
	read     bool // can only be asked for
}

// integer takes an int or what is longer, as most systems do.
func integer(name string) setting { return setting{name: name, min: 4} }

// octet takes a single byte too.
func octet(name string) setting { return setting{name: name, min: 1} }

// exact takes no other length: the IPv6 options of the BSDs.
func exact(name string) setting { return setting{name: name, min: 4, max: 4} }

// answers can only be asked for.
func answers(name string, n int) setting { return setting{name: name, min: n, read: true} }

// uapi/linux/in.h, in6.h, udp.h and asm-generic/socket.h. ip_sockglue.c takes a
// byte where an int is meant, ipv6_sockglue.c, udp.c and sock.c do not.
var linuxSettings = map[option]setting{
	{levelIP, 1}: octet("IP_TOS"), {levelIP, 2}: octet("IP_TTL"), {levelIP, 8}: octet("IP_PKTINFO"),
	{levelIP, 10}: octet("IP_MTU_DISCOVER"), {levelIP, 11}: octet("IP_RECVERR"),
	{levelIP, 12}: octet("IP_RECVTTL"), {levelIP, 13}: octet("IP_RECVTOS"),
	{levelIP, 15}: octet("IP_FREEBIND"), {levelIP, 20}: octet("IP_RECVORIGDSTADDR"),
	{levelIP, 32}: integer("IP_MULTICAST_IF"), {levelIP, 33}: octet("IP_MULTICAST_TTL"),
	{levelIP, 34}: octet("IP_MULTICAST_LOOP"), {levelIP, 49}: octet("IP_MULTICAST_ALL"),
	{levelIP, 50}: integer("IP_UNICAST_IF"),

	{levelIPv6, 16}: integer("IPV6_UNICAST_HOPS"), {levelIPv6, 17}: integer("IPV6_MULTICAST_IF"),
	{levelIPv6, 18}: integer("IPV6_MULTICAST_HOPS"), {levelIPv6, 19}: integer("IPV6_MULTICAST_LOOP"),
	{levelIPv6, 23}: integer("IPV6_MTU_DISCOVER"), {levelIPv6, 25}: integer("IPV6_RECVERR"),
	{levelIPv6, 26}: integer("IPV6_V6ONLY"), {levelIPv6, 29}: integer("IPV6_MULTICAST_ALL"),
	{levelIPv6, 49}: integer("IPV6_RECVPKTINFO"), {levelIPv6, 51}: integer("IPV6_RECVHOPLIMIT"),
	{levelIPv6, 66}: integer("IPV6_RECVTCLASS"), {levelIPv6, 67}: integer("IPV6_TCLASS"),
	{levelIPv6, 76}: integer("IPV6_UNICAST_IF"), {levelIPv6, 78}: integer("IPV6_FREEBIND"),

	{levelUDP, 103}: integer("UDP_SEGMENT"), {levelUDP, 104}: integer("UDP_GRO"),

	{levelSocketLin, 2}: integer("SO_REUSEADDR"), {levelSocketLin, 3}: answers("SO_TYPE", 4),
	{levelSocketLin, 4}: answers("SO_ERROR", 4), {levelSocketLin, 6}: integer("SO_BROADCAST"),
	{levelSocketLin, 7}: integer("SO_SNDBUF"), {levelSocketLin, 8}: integer("SO_RCVBUF"),
	{levelSocketLin, 12}: integer("SO_PRIORITY"), {levelSocketLin, 15}: integer("SO_REUSEPORT"),
	{levelSocketLin, 25}: {name: "SO_BINDTODEVICE"}, {levelSocketLin, 29}: integer("SO_TIMESTAMP"),
	{levelSocketLin, 32}: integer("SO_SNDBUFFORCE"), {levelSocketLin, 33}: integer("SO_RCVBUFFORCE"),
	{levelSocketLin, 35}: integer("SO_TIMESTAMPNS"), {levelSocketLin, 36}: integer("SO_MARK"),
	{levelSocketLin, 37}: integer("SO_TIMESTAMPING"), {levelSocketLin, 38}: answers("SO_PROTOCOL", 4),
	{levelSocketLin, 39}: answers("SO_DOMAIN", 4), {levelSocketLin, 40}: integer("SO_RXQ_OVFL"),
	{levelSocketLin, 46}: integer("SO_BUSY_POLL"), {levelSocketLin, 49}: integer("SO_INCOMING_CPU"),
	{levelSocketLin, 55}: answers("SO_MEMINFO", 36), {levelSocketLin, 56}: answers("SO_INCOMING_NAPI_ID", 4),
	{levelSocketLin, 57}: answers("SO_COOKIE", 8), {levelSocketLin, 63}: integer("SO_TIMESTAMP_NEW"),
	{levelSocketLin, 64}: integer("SO_TIMESTAMPNS_NEW"), {levelSocketLin, 65}: integer("SO_TIMESTAMPING_NEW"),
	{levelSocketLin, 69}: integer("SO_PREFER_BUSY_POLL"), {levelSocketLin, 70}: integer("SO_BUSY_POLL_BUDGET"),
	{levelSocketLin, 71}: answers("SO_NETNS_COOKIE", 8),
}

// bsd/netinet/in.h, bsd/netinet6/in6.h and bsd/sys/socket.h of XNU 11417. The
// numbers of RFC 3542 are those that __APPLE_USE_RFC_3542 gives.
var darwinSettings = map[option]setting{
	{levelIP, 3}: integer("IP_TOS"), {levelIP, 4}: integer("IP_TTL"), {levelIP, 7}: integer("IP_RECVDSTADDR"),
	{levelIP, 9}: integer("IP_MULTICAST_IF"), {levelIP, 10}: octet("IP_MULTICAST_TTL"),
	{levelIP, 11}: octet("IP_MULTICAST_LOOP"), {levelIP, 20}: integer("IP_RECVIF"),
	{levelIP, 24}: integer("IP_RECVTTL"), {levelIP, 25}: integer("IP_BOUND_IF"),
	{levelIP, 26}: integer("IP_PKTINFO"), {levelIP, 27}: integer("IP_RECVTOS"),
	{levelIP, 28}: integer("IP_DONTFRAG"), {levelIP, 66}: integer("IP_MULTICAST_IFINDEX"),

	{levelIPv6, 4}: exact("IPV6_UNICAST_HOPS"), {levelIPv6, 9}: exact("IPV6_MULTICAST_IF"),
	{levelIPv6, 10}: exact("IPV6_MULTICAST_HOPS"), {levelIPv6, 11}: exact("IPV6_MULTICAST_LOOP"),
	{levelIPv6, 27}: exact("IPV6_V6ONLY"), {levelIPv6, 35}: exact("IPV6_RECVTCLASS"),
	{levelIPv6, 36}: exact("IPV6_TCLASS"), {levelIPv6, 37}: exact("IPV6_RECVHOPLIMIT"),
	{levelIPv6, 61}: exact("IPV6_RECVPKTINFO"), {levelIPv6, 62}: exact("IPV6_DONTFRAG"),
	{levelIPv6, 125}: exact("IPV6_BOUND_IF"),

	{levelSocket, 0x4}: integer("SO_REUSEADDR"), {levelSocket, 0x20}: integer("SO_BROADCAST"),
	{levelSocket, 0x200}: integer("SO_REUSEPORT"), {levelSocket, 0x400}: integer("SO_TIMESTAMP"),
	{levelSocket, 0x800}: integer("SO_TIMESTAMP_MONOTONIC"), {levelSocket, 0x1001}: integer("SO_SNDBUF"),
	{levelSocket, 0x1002}: integer("SO_RCVBUF"), {levelSocket, 0x1007}: answers("SO_ERROR", 4),
	{levelSocket, 0x1008}: answers("SO_TYPE", 4), {levelSocket, 0x1020}: answers("SO_NREAD", 4),
	{levelSocket, 0x1022}: integer("SO_NOSIGPIPE"), {levelSocket, 0x10000}: integer("SO_TIMESTAMP_CONTINUOUS"),
}

// sys/netinet/in.h, sys/netinet6/in6.h and sys/sys/socket.h of FreeBSD 14.
var freebsdSettings = map[option]setting{
	{levelIP, 3}: integer("IP_TOS"), {levelIP, 4}: integer("IP_TTL"), {levelIP, 7}: integer("IP_RECVDSTADDR"),
	{levelIP, 9}: integer("IP_MULTICAST_IF"), {levelIP, 10}: octet("IP_MULTICAST_TTL"),
	{levelIP, 11}: octet("IP_MULTICAST_LOOP"), {levelIP, 20}: integer("IP_RECVIF"),
	{levelIP, 65}: integer("IP_RECVTTL"), {levelIP, 67}: integer("IP_DONTFRAG"),
	{levelIP, 68}: integer("IP_RECVTOS"),

	{levelIPv6, 4}: exact("IPV6_UNICAST_HOPS"), {levelIPv6, 9}: exact("IPV6_MULTICAST_IF"),
	{levelIPv6, 10}: exact("IPV6_MULTICAST_HOPS"), {levelIPv6, 11}: exact("IPV6_MULTICAST_LOOP"),
	{levelIPv6, 27}: exact("IPV6_V6ONLY"), {levelIPv6, 36}: exact("IPV6_RECVPKTINFO"),
	{levelIPv6, 37}: exact("IPV6_RECVHOPLIMIT"), {levelIPv6, 57}: exact("IPV6_RECVTCLASS"),
	{levelIPv6, 61}: exact("IPV6_TCLASS"), {levelIPv6, 62}: exact("IPV6_DONTFRAG"),

	{levelSocket, 0x4}: integer("SO_REUSEADDR"), {levelSocket, 0x20}: integer("SO_BROADCAST"),
	{levelSocket, 0x200}: integer("SO_REUSEPORT"), {levelSocket, 0x400}: integer("SO_TIMESTAMP"),
	{levelSocket, 0x800}: integer("SO_NOSIGPIPE"), {levelSocket, 0x2000}: integer("SO_BINTIME"),
	{levelSocket, 0x10000}: integer("SO_REUSEPORT_LB"), {levelSocket, 0x1001}: integer("SO_SNDBUF"),
	{levelSocket, 0x1002}: integer("SO_RCVBUF"), {levelSocket, 0x1007}: answers("SO_ERROR", 4),
	{levelSocket, 0x1008}: answers("SO_TYPE", 4), {levelSocket, 0x1014}: integer("SO_SETFIB"),
	{levelSocket, 0x1017}: integer("SO_TS_CLOCK"),
}

// ws2ipdef.h, ws2tcpip.h and winsock2.h; a DWORD each.
var windowsSettings = map[option]setting{
	{levelIP, 3}: integer("IP_TOS"), {levelIP, 4}: integer("IP_TTL"), {levelIP, 9}: integer("IP_MULTICAST_IF"),
	{levelIP, 10}: integer("IP_MULTICAST_TTL"), {levelIP, 11}: integer("IP_MULTICAST_LOOP"),
	{levelIP, 14}: integer("IP_DONTFRAGMENT"), {levelIP, 19}: integer("IP_PKTINFO"),
	{levelIP, 21}: integer("IP_RECVTTL"), {levelIP, 24}: integer("IP_RECVIF"),
	{levelIP, 25}: integer("IP_RECVDSTADDR"), {levelIP, 31}: integer("IP_UNICAST_IF"),
	{levelIP, 40}: integer("IP_RECVTOS"),

	{levelIPv6, 4}: integer("IPV6_UNICAST_HOPS"), {levelIPv6, 9}: integer("IPV6_MULTICAST_IF"),
	{levelIPv6, 10}: integer("IPV6_MULTICAST_HOPS"), {levelIPv6, 11}: integer("IPV6_MULTICAST_LOOP"),
	{levelIPv6, 14}: integer("IPV6_DONTFRAG"), {levelIPv6, 19}: integer("IPV6_PKTINFO"),
	{levelIPv6, 21}: integer("IPV6_HOPLIMIT"), {levelIPv6, 24}: integer("IPV6_RECVIF"),
	{levelIPv6, 25}: integer("IPV6_RECVDSTADDR"), {levelIPv6, 27}: integer("IPV6_V6ONLY"),
	{levelIPv6, 31}: integer("IPV6_UNICAST_IF"), {levelIPv6, 39}: integer("IPV6_TCLASS"),
	{levelIPv6, 40}: integer("IPV6_RECVTCLASS"),

	{levelUDP, 2}: integer("UDP_SEND_MSG_SIZE"), {levelUDP, 3}: integer("UDP_RECV_MAX_COALESCED_SIZE"),

	{levelSocket, 0x4}: integer("SO_REUSEADDR"), {levelSocket, ^0x4 & 0xffffffff}: integer("SO_EXCLUSIVEADDRUSE"),
	{levelSocket, 0x20}: integer("SO_BROADCAST"), {levelSocket, 0x1001}: integer("SO_SNDBUF"),
	{levelSocket, 0x1002}: integer("SO_RCVBUF"), {levelSocket, 0x1007}: answers("SO_ERROR", 4),
	{levelSocket, 0x1008}: answers("SO_TYPE", 4),
}

// setPlain keeps a value.
func (s *Socket) setPlain(r request, value []byte) syscall.Errno {
	k := s.k
	o := k.sys.plain[r.option]
	switch {
	case o.read:
		return k.sys.errno.noProtoOpt
	case len(value) < o.min, o.max > 0 && len(value) > o.max:
		return k.sys.errno.short
	}
	if e := k.sender(r.name, value); e != 0 {
		return e
	}
	if e := k.sys.model.plain(s, r.option, value); e != 0 {
		return e
	}
	s.plain[r.option] = bytes.Clone(value)
	return 0
}

// sender judges the interface that datagrams are to be sent by: ip_setsockopt and
// ipv6_setsockopt of Linux (observed), inp_set_multicast_if and
// in6p_set_multicast_if of XNU and FreeBSD. Of Windows the answer is assumed.
func (k *Kernel) sender(name string, value []byte) syscall.Errno {
	number := func(at int) int { return int(int32(k.Order.Uint32(value[at:]))) }
	address := func(at int) netip.Addr { return netip.AddrFrom4([4]byte(value[at:])) }
	index, missing, beyond := 0, bsdEADDRNOTAVAIL, bsdEINVAL
	switch {
	case name == "IP_MULTICAST_IFINDEX":
		index, beyond = number(0), 6 // ENXIO
	case name == "IPV6_MULTICAST_IF":
		index = number(0)
	case name != "IP_MULTICAST_IF":
		return 0
	case (k.sys == linux || k.sys.lenByte) && len(value) >= 12 && number(8) != 0: // ip_mreqn
		index = number(8)
	default:
		a := address(0)
		if k.sys == linux && len(value) >= 8 {
			a = address(4)
		}
		if b := a.As4(); k.sys.indexAddress && b[0] == 0 {
			index = int(b[1])<<16 | int(b[2])<<8 | int(b[3])
		} else if !a.IsUnspecified() {
			if index = k.byAddress(a); index == 0 {
				index = k.highest() + 1
			}
		}
		beyond = missing
	}
	switch {
	case k.sys == linux && name == "IPV6_MULTICAST_IF":
		missing, beyond = linuxENODEV, linuxENODEV
	case k.sys == linux:
		missing, beyond = linuxEADDRNOTAVAIL, linuxEADDRNOTAVAIL
	case k.sys == windows:
		missing, beyond = k.UnknownInterface, k.UnknownInterface
	}
	switch _, ok := k.Interfaces[index]; {
	case ok, index == 0:
		return 0
	case index < 0, index > k.highest():
		return beyond
	}
	return missing
}

// getPlain reads it back, zeros if there is none.
func (s *Socket) getPlain(r request, out []byte) (int, error) {
	k := s.k
	v, ok := s.plain[r.option]
	switch {
	case r.name == "IP_MULTICAST_ALL" || r.name == "IPV6_MULTICAST_ALL":
		if v = make([]byte, 4); s.multicastAll(r.level) {
			k.Order.PutUint32(v, 1)
		}
	case ok && k.sys == windows && r.name == "IP_MULTICAST_IF" && len(v) >= 4 && v[0] == 0:
		// Set as an address 0.x.y.z, it is read back as an index.
		v = []byte{v[3], v[2], v[1], 0}
	case !ok:
		v = make([]byte, max(4, k.sys.plain[r.option].min))
	}
	return copy(out, v), nil
}

// Option returns what an option was set to, nil if it never was.
func (s *Socket) Option(level, name int) []byte {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	return bytes.Clone(s.plain[option{level, uint32(name)}])
}
