package cmsg

import (
	"encoding/binary"
	"time"
)

// Linux has the format of Linux: struct cmsghdr of include/linux/socket.h is
// aligned to a long, which has word bytes.
func Linux(word int, order binary.ByteOrder) *Format {
	// include/uapi/linux/in.h and in6.h: in_pktinfo has ipi_ifindex, then
	// ipi_spec_dst, the source of what is sent, then ipi_addr, the destination of
	// what arrived; in6_pktinfo has ipi6_addr, then ipi6_ifindex.
	pktinfo6 := packetInfo{message: 50, size: 20, addr: 0, index: 16} // IPV6_PKTINFO
	return &Format{
		SocketLevel: 1,
		big:         order.Uint16([]byte{0, 1}) == 1,
		word:        word, align: word,
		ip: family{
			options: []int{8}, // IP_PKTINFO
			infos:   []packetInfo{{message: 8, size: 12, addr: 8, index: 0}},
			hops:    hopLimit{option: 12, message: 2, size: 4}, // IP_RECVTTL; IP_TTL (ip_cmsg_recv_ttl in net/ipv4/ip_sockglue.c)
			send:    packetInfo{message: 8, size: 12, addr: 4, index: 0},
		},
		ipv6: family{
			options: []int{49}, // IPV6_RECVPKTINFO
			infos:   []packetInfo{pktinfo6},
			hops:    hopLimit{option: 51, message: 52, size: 4}, // IPV6_RECVHOPLIMIT; IPV6_HOPLIMIT
			send:    pktinfo6,
		},
		// include/uapi/asm-generic/socket.h. SO_TIMESTAMPNS_NEW: two 64-bit numbers
		// (Linux 5.1); SO_TIMESTAMPNS_OLD: struct timespec.
		stamps: []stamp{
			{option: 64, message: 64, seconds: 8, rest: 8, unit: time.Nanosecond},
			{option: 35, message: 35, seconds: word, rest: word, unit: time.Nanosecond},
		},
		// include/uapi/linux/udp.h: UDP_GRO (Linux 5.0), UDP_SEGMENT (Linux 4.18).
		coalesce: 104,
		segment:  103,
	}
}

// Darwin has the format of macOS: cmsg_len has 4 bytes, and all is aligned to 4
// (__DARWIN_ALIGN32 in bsd/sys/socket.h).
func Darwin() *Format {
	return &Format{
		SocketLevel: 0xffff,
		word:        4, align: 4, embeds: true,
		ip: family{
			options: []int{26},                                                // IP_RECVPKTINFO, bsd/netinet/in.h
			infos:   []packetInfo{{message: 26, size: 12, addr: 8, index: 0}}, // IP_PKTINFO: in_pktinfo as on Linux
			hops:    hopLimit{option: 24, message: 24, size: 1},               // IP_RECVTTL, a u_char (ip_savecontrol in bsd/netinet/ip_input.c)
		},
		ipv6: family{
			options: []int{61},                                                 // IPV6_RECVPKTINFO, bsd/netinet6/in6.h
			infos:   []packetInfo{{message: 46, size: 20, addr: 0, index: 16}}, // IPV6_PKTINFO
			hops:    hopLimit{option: 37, message: 47, size: 4},                // IPV6_RECVHOPLIMIT; IPV6_HOPLIMIT
		},
		// SO_TIMESTAMP and SCM_TIMESTAMP, bsd/sys/socket.h: struct timeval, of a long
		// and 4 bytes.
		stamps: []stamp{{option: 0x400, message: 2, seconds: 8, rest: 4, unit: time.Microsecond}},
	}
}

// FreeBSD has the format of FreeBSD, where cmsg_len has 4 bytes, and all is
// aligned to a long (sys/sys/socket.h), which has word bytes. Numbers of 64 bits
// are aligned to align bytes: 8, but on 386 4.
func FreeBSD(word, align int) *Format {
	second := 8 // bytes of a time_t: 4 on 386 alone (sys/x86/include/_types.h)
	if align == 4 {
		second = 4
	}
	pktinfo6 := packetInfo{message: 46, size: 20, addr: 0, index: 16} // IPV6_PKTINFO, sys/netinet6/in6.h
	return &Format{
		SocketLevel: 0xffff,
		word:        4, align: word, embeds: true,
		ip: family{
			// sys/netinet/in.h. IP_RECVDSTADDR: in_addr; IP_RECVIF: sockaddr_dl, with
			// sdl_index after sdl_len and sdl_family.
			options: []int{7, 20},
			infos: []packetInfo{
				{message: 7, size: 4, addr: 0, index: -1},
				{message: 20, size: 4, addr: -1, index: 2, short: true},
			},
			hops: hopLimit{option: 65, message: 65, size: 1},          // IP_RECVTTL, a u_char (ip_savecontrol in sys/netinet/ip_input.c)
			send: packetInfo{message: 7, size: 4, addr: 0, index: -1}, // IP_SENDSRCADDR
		},
		ipv6: family{
			options: []int{36}, // IPV6_RECVPKTINFO
			infos:   []packetInfo{pktinfo6},
			hops:    hopLimit{option: 37, message: 47, size: 4}, // IPV6_RECVHOPLIMIT; IPV6_HOPLIMIT
			send:    pktinfo6,
		},
		// SO_TIMESTAMP and SCM_TIMESTAMP, sys/sys/socket.h: struct timeval, of a time_t
		// and a long.
		stamps: []stamp{{option: 0x400, message: 2, seconds: second, rest: word, unit: time.Microsecond}},
	}
}

// Windows has the format of Windows: WSACMSGHDR of ws2def.h, where cmsg_len is a
// SIZE_T of word bytes.
//
// It has no Coalesce: with UDP_RECV_MAX_COALESCED_SIZE some drivers coalesce
// without UDP_COALESCED_INFO, and nobody can take those datagrams apart.
func Windows(word int) *Format {
	// IP_PKTINFO and IPV6_PKTINFO: in_pktinfo and in6_pktinfo have the address, then
	// the interface, of what arrived and of what is sent.
	// https://learn.microsoft.com/en-us/windows/win32/api/ws2ipdef/ns-ws2ipdef-in_pktinfo
	pktinfo := packetInfo{message: 19, size: 8, addr: 0, index: 4}
	pktinfo6 := packetInfo{message: 19, size: 20, addr: 0, index: 16}
	return &Format{
		SocketLevel: 0xffff,
		word:        word, align: word,
		ip: family{
			options: []int{19},
			infos:   []packetInfo{pktinfo},
			hops:    hopLimit{option: 21, message: 4, size: 4}, // IP_HOPLIMIT; IP_TTL, as msquic reads it (src/platform/datapath_winuser.c)
			send:    pktinfo,
		},
		ipv6: family{
			options: []int{19},
			infos:   []packetInfo{pktinfo6},
			hops:    hopLimit{option: 21, message: 21, size: 4}, // IPV6_HOPLIMIT
			send:    pktinfo6,
		},
	}
}
