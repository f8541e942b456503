package mcast

import (
	"encoding/binary"
	"net/netip"
	"os"
	"time"
)

// A controlFormat is how a system lays out control messages (RFC 3542 section
// 20.2), and which ones tell a datagram's group and interface.
type controlFormat struct {
	word     int  // bytes of cmsg_len; cmsg_level and cmsg_type are 4 each
	align    int  // of the data and of the next message
	embeds   bool // the interface may stand in a link-local group's second 16 bits (KAME)
	ip, ipv6 []packetInfo
	socket   int        // SOL_SOCKET
	stamps   []stamp    // the first that the system knows is used
	coalesce packetInfo // with the size of coalesced datagrams, at level udpLevel
}

// An arrival is what control messages tell about a datagram; what they do not
// stays zero.
type arrival struct {
	group   Group // the address it was sent to and the interface it came in by
	time    time.Time
	segment int // if not 0: these are several datagrams of this size, the last perhaps shorter
}

// A stamp is an option that asks for the time of arrival, and its layout.
type stamp struct {
	option, message int
	seconds         int           // bytes of the seconds, before the rest
	rest            int           // bytes of the rest
	unit            time.Duration // of the rest
}

const udpLevel = 17 // IPPROTO_UDP, SOL_UDP

// A packetInfo is an option that asks for a control message, and where in it
// to look.
type packetInfo struct {
	option, message int
	size            int  // bytes at least
	addr, index     int  // offsets; -1: not in this one
	short           bool // the index has 2 bytes, not 4
}

// controls has the format of each system with its own reading here.
func (p *platform) controls() controlFormat {
	switch p.name {
	case "linux": // in_pktinfo: ifindex, spec_dst, addr; in6_pktinfo: addr, ifindex
		return controlFormat{
			word: p.word, align: p.controlAlign,
			ip:   []packetInfo{{option: 8, message: 8, size: 12, addr: 8, index: 0}},
			ipv6: []packetInfo{{option: 49, message: 50, size: 20, addr: 0, index: 16}},
			// SO_TIMESTAMPNS_NEW: two 64-bit numbers (Linux 5.1); _OLD: struct timespec.
			socket: p.socketLevel, stamps: []stamp{
				{option: 64, message: 64, seconds: 8, rest: 8, unit: time.Nanosecond},
				{option: 35, message: 35, seconds: p.word, rest: p.word, unit: time.Nanosecond},
			},
			coalesce: packetInfo{option: 104, message: 104}, // UDP_GRO
		}
	case "darwin": // IP_PKTINFO as on Linux; IPV6_RECVPKTINFO, IPV6_PKTINFO
		return controlFormat{
			word: 4, align: 4, embeds: true,
			ip:   []packetInfo{{option: 26, message: 26, size: 12, addr: 8, index: 0}},
			ipv6: []packetInfo{{option: 61, message: 46, size: 20, addr: 0, index: 16}},
			// SO_TIMESTAMP, SCM_TIMESTAMP: struct timeval.
			socket: p.socketLevel, stamps: []stamp{{option: 0x400, message: 2, seconds: 8, rest: 4, unit: time.Microsecond}},
		}
	case "freebsd": // IP_RECVDSTADDR: in_addr; IP_RECVIF: sockaddr_dl, sdl_index after sdl_len and sdl_family
		return controlFormat{
			word: 4, align: p.controlAlign, embeds: true,
			ip: []packetInfo{
				{option: 7, message: 7, size: 4, addr: 0, index: -1},
				{option: 20, message: 20, size: 4, addr: -1, index: 2, short: true},
			},
			ipv6: []packetInfo{{option: 36, message: 46, size: 20, addr: 0, index: 16}},
		}
	case "windows": // in_pktinfo and in6_pktinfo: addr, ifindex
		return controlFormat{
			word: p.word, align: p.controlAlign,
			ip:       []packetInfo{{option: 19, message: 19, size: 8, addr: 0, index: 4}},
			ipv6:     []packetInfo{{option: 19, message: 19, size: 20, addr: 0, index: 16}},
			coalesce: packetInfo{option: 3, message: 3}, // UDP_RECV_MAX_COALESCED_SIZE, UDP_COALESCED_INFO
		}
	}
	return controlFormat{}
}

func (f *controlFormat) infos(ipv6 bool) []packetInfo {
	if ipv6 {
		return f.ipv6
	}
	return f.ip
}

// parse reads the control messages of a datagram.
func (f *controlFormat) parse(b []byte, order binary.ByteOrder, ipv6 bool) (a arrival) {
	header := f.word + 8
	data := header + -header&(f.align-1)
	for len(b) >= data {
		n := uint64(order.Uint32(b))
		if f.word == 8 {
			n = order.Uint64(b)
		}
		if n < uint64(data) || n > uint64(len(b)) {
			break
		}
		f.message(&a, int(int32(order.Uint32(b[f.word:]))), int(int32(order.Uint32(b[f.word+4:]))), b[data:n], order, ipv6)
		next := n + -n&uint64(f.align-1)
		if next >= uint64(len(b)) {
			break
		}
		b = b[next:]
	}
	a.group.Addr = a.group.Addr.Unmap()
	if f.embeds {
		a.group.Addr = unembed(a.group)
	}
	return a
}

// message reads one control message.
func (f *controlFormat) message(a *arrival, level, kind int, d []byte, order binary.ByteOrder, ipv6 bool) {
	switch {
	case level == levelIP && !ipv6 || level == levelIPv6 && ipv6:
		size := 4
		if ipv6 {
			size = 16
		}
		for i := range f.infos(ipv6) {
			info := &f.infos(ipv6)[i]
			if kind != info.message || len(d) < info.size {
				continue
			}
			if info.addr >= 0 {
				a.group.Addr, _ = netip.AddrFromSlice(d[info.addr : info.addr+size])
			}
			switch {
			case info.short:
				a.group.Interface = int(order.Uint16(d[info.index:]))
			case info.index >= 0:
				a.group.Interface = int(int32(order.Uint32(d[info.index:])))
			}
		}
	case level == f.socket && f.socket != 0:
		for _, s := range f.stamps {
			if kind == s.message && len(d) >= s.seconds+s.rest {
				a.time = time.Unix(integer(d, s.seconds, order), integer(d[s.seconds:], s.rest, order)*int64(s.unit))
			}
		}
	case level == udpLevel && kind == f.coalesce.message && len(d) >= 4:
		a.segment = int(int32(order.Uint32(d)))
	}
}

// integer reads a signed number of 4 or 8 bytes.
func integer(b []byte, size int, order binary.ByteOrder) int64 {
	if size == 8 {
		return int64(order.Uint64(b))
	}
	return int64(int32(order.Uint32(b)))
}

// unembed gives a group's address without the interface that kernels from
// KAME keep in the second 16 bits of link-local addresses.
func unembed(g Group) netip.Addr {
	if g.Addr.Is6() && (g.Addr.IsLinkLocalMulticast() || g.Addr.IsInterfaceLocalMulticast()) {
		if a := g.Addr.As16(); int(a[2])<<8|int(a[3]) == g.Interface {
			a[2], a[3] = 0, 0
			return netip.AddrFrom16(a)
		}
	}
	return g.Addr
}

// askForInfo sets the options that ask for these control messages.
func (k *kernel) askForInfo(f *controlFormat, ipv6 bool) error {
	at := levelIP
	if ipv6 {
		at = levelIPv6
	}
	for _, info := range f.infos(ipv6) {
		if err := k.sock.setsockopt(at, info.option, k.uint32(nil, 1)); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

// askForTime sets the first option for times that the system knows.
func (k *kernel) askForTime(f *controlFormat) {
	for _, s := range f.stamps {
		if k.sock.setsockopt(f.socket, s.option, k.uint32(nil, 1)) == nil {
			return
		}
	}
}

// askForGRO asks the system to coalesce datagrams, and reports whether it can:
// Linux 5.0 (UDP_GRO), Windows 10 2004 (UDP_RECV_MAX_COALESCED_SIZE, which
// takes the largest size).
// https://learn.microsoft.com/en-us/windows/win32/winsock/ipproto-udp-socket-options
func (k *kernel) askForGRO(f *controlFormat) bool {
	if f.coalesce.option == 0 {
		return false
	}
	value := uint32(1)
	if k.name == "windows" {
		value = largest - 1
	}
	return k.sock.setsockopt(udpLevel, f.coalesce.option, k.uint32(nil, value)) == nil
}
