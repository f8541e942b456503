package amtrelay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// sum is the checksum of RFC 1071 over all parts, of which only the last may
// have an odd length.
func sum(parts ...[]byte) uint16 {
	var s uint32
	for _, b := range parts {
		for i := 0; i+1 < len(b); i += 2 {
			s += uint32(b[i])<<8 | uint32(b[i+1])
		}
		if len(b)%2 == 1 {
			s += uint32(b[len(b)-1]) << 8
		}
		for s > 0xffff {
			s = s>>16 + s&0xffff
		}
	}
	return ^uint16(s)
}

// pseudo is the header that transport checksums also cover.
func pseudo(source, destination netip.Addr, protocol byte, length int) []byte {
	b := append(source.AsSlice(), destination.AsSlice()...)
	return append(b, byte(length>>8), byte(length), 0, protocol)
}

// ip4 makes an IPv4 packet.
func ip4(source, destination netip.Addr, ttl, protocol byte, id, flags uint16, options, payload []byte) []byte {
	b := make([]byte, 20, 20+len(options)+len(payload))
	b[0] = byte(0x45 + len(options)/4)
	binary.BigEndian.PutUint16(b[2:], uint16(cap(b)))
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], flags)
	b[8], b[9] = ttl, protocol
	copy(b[12:], source.AsSlice())
	copy(b[16:], destination.AsSlice())
	b = append(b, options...)
	binary.BigEndian.PutUint16(b[10:], sum(b))
	return append(b, payload...)
}

// ip6 makes an IPv6 packet.
func ip6(source, destination netip.Addr, hops, next byte, payload []byte) []byte {
	b := make([]byte, 40, 40+len(payload))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	b[6], b[7] = next, hops
	copy(b[8:], source.AsSlice())
	copy(b[24:], destination.AsSlice())
	return append(b, payload...)
}

// UDP makes an IP packet with a UDP datagram.
func UDP(source, destination netip.AddrPort, hops byte, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, source.Port())
	binary.BigEndian.PutUint16(b[2:], destination.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(cap(b)))
	b = append(b, payload...)
	c := sum(pseudo(source.Addr(), destination.Addr(), 17, len(b)), b)
	if c == 0 {
		c = 0xffff // RFC 768
	}
	binary.BigEndian.PutUint16(b[6:], c)
	if source.Addr().Is4() {
		return ip4(source.Addr(), destination.Addr(), hops, 17, 0, 0x4000, nil, b)
	}
	return ip6(source.Addr(), destination.Addr(), hops, 17, b)
}

// Fragments cuts an IP packet into fragments of at most size bytes of payload,
// rounded down to a multiple of 8.
func Fragments(packet []byte, id uint32, size int) (list [][]byte) {
	size &^= 7
	head := 20
	if packet[0]>>4 == 6 {
		head = 40
	}
	payload := packet[head:]
	for at := 0; at < len(payload); at += size {
		part := payload[at:min(at+size, len(payload))]
		more := uint16(0)
		if at+len(part) < len(payload) {
			more = 1
		}
		source, destination, _ := addresses(packet)
		if head == 20 {
			list = append(list, ip4(source, destination, packet[8], packet[9], uint16(id), more<<13|uint16(at/8), nil, part))
			continue
		}
		f := []byte{packet[6], 0, 0, 0}
		binary.BigEndian.PutUint16(f[2:], uint16(at)|more)
		f = binary.BigEndian.AppendUint32(f, id)
		list = append(list, ip6(source, destination, packet[7], 44, append(f, part...)))
	}
	return list
}

// addresses returns where a packet goes from and to.
func addresses(b []byte) (source, destination netip.Addr, ok bool) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), true
	case len(b) >= 40 && b[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), true
	}
	return source, destination, false
}

// GeneralQuery makes an IP packet with a general query of IGMPv3 or MLDv2.
func GeneralQuery(ipv6 bool, robustness int, interval time.Duration) []byte {
	code := intervalCode(interval)
	if !ipv6 {
		q := []byte{0x11, 16, 0, 0, 0, 0, 0, 0, byte(robustness & 7), code, 0, 0}
		binary.BigEndian.PutUint16(q[2:], sum(q))
		return ip4(netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("224.0.0.1"), 1, 2, 0, 0, []byte{0x94, 4, 0, 0}, q)
	}
	source, destination := netip.MustParseAddr("fe80::1"), netip.MustParseAddr("ff02::1")
	q := make([]byte, 28)
	q[0], q[24], q[25] = 130, byte(robustness&7), code
	binary.BigEndian.PutUint16(q[4:], 1000)
	binary.BigEndian.PutUint16(q[2:], sum(pseudo(source, destination, 58, len(q)), q))
	return ip6(source, destination, 1, 0, append([]byte{58, 0, 5, 2, 0, 0, 1, 0}, q...))
}

// intervalCode is the QQIC of RFC 3376 section 4.1.7, of an interval that it
// can say, or the next shorter one.
func intervalCode(d time.Duration) byte {
	seconds := int(d / time.Second)
	if seconds < 128 {
		return byte(seconds)
	}
	for exponent := range 8 {
		if mantissa := seconds >> (exponent + 3); mantissa < 32 {
			return byte(0x80 | exponent<<4 | mantissa&15)
		}
	}
	return 0xff
}

var errReport = errors.New("not a report that a relay takes")

// parseReport parses the IP packet of a Membership Update, strictly: RFC 3376
// section 4.2, RFC 3810 section 5.2. It must be as long as it says.
func parseReport(b []byte) (records []Record, err error) {
	source, destination, ok := addresses(b)
	if !ok {
		return nil, errReport
	}
	if b[0]>>4 == 4 {
		h := int(b[0]&15) * 4
		switch {
		case h != 24 || int(binary.BigEndian.Uint16(b[2:])) != len(b) || len(b) < h+8,
			sum(b[:h]) != 0,
			b[8] != 1 || b[9] != 2 || destination != netip.MustParseAddr("224.0.0.22"),
			binary.BigEndian.Uint32(b[20:]) != 0x94040000,
			binary.BigEndian.Uint16(b[6:])&0x3fff != 0:
			return nil, fmt.Errorf("%w: IPv4 header % x", errReport, b[:min(24, len(b))])
		}
		b = b[h:]
		if b[0] != 0x22 || sum(b) != 0 {
			return nil, fmt.Errorf("%w: IGMP % x", errReport, b[:8])
		}
		return parseRecords(b, 4)
	}
	switch {
	case int(binary.BigEndian.Uint16(b[4:])) != len(b)-40 || len(b) < 56,
		b[6] != 0 || b[7] != 1 || destination != netip.MustParseAddr("ff02::16"),
		binary.BigEndian.Uint64(b[40:]) != 0x3a00050200000100,
		!source.IsLinkLocalUnicast(): // RFC 3810 section 5.2.13
		return nil, fmt.Errorf("%w: IPv6 header % x", errReport, b[:min(48, len(b))])
	}
	b = b[48:]
	if b[0] != 143 || sum(pseudo(source, destination, 58, len(b)), b) != 0 {
		return nil, fmt.Errorf("%w: ICMPv6 % x", errReport, b[:8])
	}
	return parseRecords(b, 16)
}

func parseRecords(b []byte, addrLen int) (records []Record, err error) {
	n := int(binary.BigEndian.Uint16(b[6:]))
	b = b[8:]
	if n == 0 {
		return nil, fmt.Errorf("%w: no records", errReport)
	}
	for range n {
		head := 4 + addrLen
		if len(b) < head {
			return nil, fmt.Errorf("%w: cut short", errReport)
		}
		k := int(binary.BigEndian.Uint16(b[2:]))
		if b[0] < 1 || b[0] > 6 || b[1] != 0 || len(b) < head+k*addrLen {
			return nil, fmt.Errorf("%w: record % x", errReport, b[:head])
		}
		r := Record{Type: RecordType(b[0])}
		r.Group, _ = netip.AddrFromSlice(b[4:head])
		b = b[head:]
		for ; k > 0; k-- {
			s, _ := netip.AddrFromSlice(b[:addrLen])
			if s.IsMulticast() || s.IsUnspecified() {
				return nil, fmt.Errorf("%w: source %v", errReport, s)
			}
			r.Sources = append(r.Sources, s)
			b = b[addrLen:]
		}
		if !r.Group.IsMulticast() {
			return nil, fmt.Errorf("%w: group %v", errReport, r.Group)
		}
		records = append(records, r)
	}
	if len(b) > 0 {
		return nil, fmt.Errorf("%w: %d stray bytes", errReport, len(b))
	}
	return records, nil
}
