package cmsg

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// Parse reads the control messages of a datagram. It allocates nothing, and
// takes any bytes: what it cannot read, it skips.
func (f *Format) Parse(b []byte, ipv6 bool) Info {
	var info Info
	data := f.dataAt()
	for len(b) >= data {
		n := uint64(f.uint32(b))
		if f.word == 8 {
			n = f.uint64(b)
		}
		if n < uint64(data) || n > uint64(len(b)) {
			break
		}
		f.message(&info, int32(f.uint32(b[f.word:])), int32(f.uint32(b[f.word+4:])), b[data:n], ipv6)
		next := int(n) + -int(n)&(f.align-1)
		if next >= len(b) {
			break
		}
		b = b[next:]
	}
	if f.embeds {
		info.Dst = withoutScope(info.Dst, info.Index)
	}
	return info
}

// dataAt is where a control message has its data.
func (f *Format) dataAt() int {
	header := f.word + 8
	return header + -header&(f.align-1)
}

// message reads one control message.
func (f *Format) message(info *Info, level, kind int32, d []byte, ipv6 bool) {
	switch fam, own := f.family(ipv6); {
	case int(level) == own:
		fam.read(f, info, int(kind), d, ipv6)
	case int(level) == f.SocketLevel:
		for i := range f.stamps {
			if s := &f.stamps[i]; int(kind) == s.message && len(d) >= s.seconds+s.rest {
				info.Time = time.Unix(f.int(d, s.seconds), f.int(d[s.seconds:], s.rest)*int64(s.unit))
			}
		}
	case level == levelUDP && int(kind) == f.coalesce && f.coalesce != 0 && len(d) >= 4:
		info.Segment = max(0, int(int32(f.uint32(d))))
	}
}

// read reads a control message at the level of its address family.
func (fam *family) read(f *Format, info *Info, kind int, d []byte, ipv6 bool) {
	for i := range fam.infos {
		p := &fam.infos[i]
		if kind != p.message || len(d) < p.size {
			continue
		}
		switch {
		case p.addr < 0:
		case ipv6:
			info.Dst = netip.AddrFrom16([16]byte(d[p.addr:])).Unmap()
		default:
			info.Dst = netip.AddrFrom4([4]byte(d[p.addr:]))
		}
		switch {
		case p.short:
			info.Index = int(f.uint16(d[p.index:]))
		case p.index >= 0:
			info.Index = max(0, int(int32(f.uint32(d[p.index:]))))
		}
	}
	if h := &fam.hops; kind == h.message && h.size != 0 && len(d) >= h.size {
		n := uint32(d[0])
		if h.size == 4 {
			n = f.uint32(d)
		}
		if n <= 255 {
			info.HopLimit = int(n)
		}
	}
}

func (f *Format) uint16(b []byte) uint16 {
	if f.big {
		return binary.BigEndian.Uint16(b)
	}
	return binary.LittleEndian.Uint16(b)
}

func (f *Format) uint32(b []byte) uint32 {
	if f.big {
		return binary.BigEndian.Uint32(b)
	}
	return binary.LittleEndian.Uint32(b)
}

func (f *Format) uint64(b []byte) uint64 {
	if f.big {
		return binary.BigEndian.Uint64(b)
	}
	return binary.LittleEndian.Uint64(b)
}

// int reads a signed number of 4 or 8 bytes.
func (f *Format) int(b []byte, size int) int64 {
	if size == 8 {
		return int64(f.uint64(b))
	}
	return int64(int32(f.uint32(b)))
}

// withoutScope gives an address without the interface that kernels from KAME
// keep in the second 16 bits of those that are bound to a link.
func withoutScope(a netip.Addr, index int) netip.Addr {
	if a.Is6() && (a.IsLinkLocalMulticast() || a.IsInterfaceLocalMulticast() || a.IsLinkLocalUnicast()) {
		if b := a.As16(); int(b[2])<<8|int(b[3]) == index {
			b[2], b[3] = 0, 0
			return netip.AddrFrom16(b)
		}
	}
	return a
}
