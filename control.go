package mcast

import (
	"encoding/binary"
	"net/netip"
	"os"
)

// A controlFormat is how a system lays out control messages (RFC 3542 section
// 20.2), and which ones tell a datagram's group and interface.
type controlFormat struct {
	word     int  // bytes of cmsg_len; cmsg_level and cmsg_type are 4 each
	align    int  // of the data and of the next message
	embeds   bool // the interface may stand in a link-local group's second 16 bits (KAME)
	ip, ipv6 []packetInfo
}

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
			word: p.word, align: p.word,
			ip:   []packetInfo{{option: 8, message: 8, size: 12, addr: 8, index: 0}},
			ipv6: []packetInfo{{option: 49, message: 50, size: 20, addr: 0, index: 16}},
		}
	case "darwin": // IP_PKTINFO as on Linux; IPV6_RECVPKTINFO, IPV6_PKTINFO
		return controlFormat{
			word: 4, align: 4, embeds: true,
			ip:   []packetInfo{{option: 26, message: 26, size: 12, addr: 8, index: 0}},
			ipv6: []packetInfo{{option: 61, message: 46, size: 20, addr: 0, index: 16}},
		}
	case "freebsd": // IP_RECVDSTADDR: in_addr; IP_RECVIF: sockaddr_dl, sdl_index after sdl_len and sdl_family
		return controlFormat{
			word: 4, align: p.word, embeds: true,
			ip: []packetInfo{
				{option: 7, message: 7, size: 4, addr: 0, index: -1},
				{option: 20, message: 20, size: 4, addr: -1, index: 2, short: true},
			},
			ipv6: []packetInfo{{option: 36, message: 46, size: 20, addr: 0, index: 16}},
		}
	case "windows": // in_pktinfo and in6_pktinfo: addr, ifindex
		return controlFormat{
			word: p.word, align: p.word,
			ip:   []packetInfo{{option: 19, message: 19, size: 8, addr: 0, index: 4}},
			ipv6: []packetInfo{{option: 19, message: 19, size: 20, addr: 0, index: 16}},
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

// parse finds the address that a datagram was sent to and the interface that
// it came in by in its control messages; what is not there stays zero.
func (f *controlFormat) parse(b []byte, order binary.ByteOrder, ipv6 bool) (g Group) {
	level, size := uint32(levelIP), 4
	if ipv6 {
		level, size = levelIPv6, 16
	}
	header := f.word + 8
	data := header + -header&(f.align-1)
	for len(b) >= header {
		n := uint64(order.Uint32(b))
		if f.word == 8 {
			n = order.Uint64(b)
		}
		if n < uint64(data) || n > uint64(len(b)) {
			break
		}
		if order.Uint32(b[f.word:]) == level {
			for i, kind := 0, order.Uint32(b[f.word+4:]); i < len(f.infos(ipv6)); i++ {
				info, d := &f.infos(ipv6)[i], b[data:n]
				if kind != uint32(info.message) || len(d) < info.size {
					continue
				}
				if info.addr >= 0 {
					g.Addr, _ = netip.AddrFromSlice(d[info.addr : info.addr+size])
				}
				switch {
				case info.short:
					g.Interface = int(order.Uint16(d[info.index:]))
				case info.index >= 0:
					g.Interface = int(order.Uint32(d[info.index:]))
				}
			}
		}
		next := n + -n&uint64(f.align-1)
		if next >= uint64(len(b)) {
			break
		}
		b = b[next:]
	}
	g.Addr = g.Addr.Unmap()
	if f.embeds && (g.Addr.IsLinkLocalMulticast() || g.Addr.IsInterfaceLocalMulticast()) && g.Addr.Is6() {
		if a := g.Addr.As16(); int(a[2])<<8|int(a[3]) == g.Interface {
			a[2], a[3] = 0, 0
			g.Addr = netip.AddrFrom16(a)
		}
	}
	return g
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
