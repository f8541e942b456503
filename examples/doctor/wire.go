package main

import (
	"encoding/binary"
	"net/netip"
)

// A packet is what matters of an IP packet: one of the three is set.
type packet struct {
	from, to netip.Addr
	port     uint16 // of a UDP datagram, or of its first fragment
	query    int    // of IGMP or MLD: the version
	report   int    // the version; groups are what it joins or has joined
	groups   []netip.Addr
}

// parsePacket reads an IP packet, which may be cut short.
func parsePacket(b []byte) (p packet, ok bool) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		p.from, p.to = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		header := int(b[0]&15) * 4
		if header < 20 || header > len(b) || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			return p, false
		}
		if total := int(binary.BigEndian.Uint16(b[2:])); total >= header && total < len(b) {
			b = b[:total] // the rest is padding
		}
		return p, p.payload(b[9], b[header:])
	case len(b) >= 40 && b[0]>>4 == 6:
		p.from, p.to = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		next, rest := b[6], b[40:]
		if n := int(binary.BigEndian.Uint16(b[4:])); n < len(rest) && n > 0 {
			rest = rest[:n]
		}
		for { // RFC 8200 section 4
			n := 8
			switch next {
			case 0, 43, 60: // hop-by-hop, routing and destination options
				if len(rest) < 8 {
					return p, false
				}
				n += 8 * int(rest[1])
			case 44: // fragment
				if len(rest) < 8 || binary.BigEndian.Uint16(rest[2:])&^7 != 0 {
					return p, false
				}
			default:
				return p, p.payload(next, rest)
			}
			if len(rest) < n {
				return p, false
			}
			next, rest = rest[0], rest[n:]
		}
	}
	return p, false
}

func (p *packet) payload(protocol byte, b []byte) bool {
	switch protocol {
	case 17:
		if len(b) < 8 {
			return false
		}
		p.port = binary.BigEndian.Uint16(b[2:])
		return true
	case 2:
		return p.igmp(b)
	case 58:
		return p.mld(b)
	}
	return false
}

// igmp reads RFC 3376 sections 4 and 7.
func (p *packet) igmp(b []byte) bool {
	if len(b) < 8 {
		return false
	}
	switch b[0] {
	case 0x11:
		switch {
		case len(b) >= 12:
			p.query = 3
		case b[1] == 0:
			p.query = 1
		default:
			p.query = 2
		}
	case 0x12, 0x16:
		p.report = 1
		if b[0] == 0x16 {
			p.report = 2
		}
		p.groups = []netip.Addr{netip.AddrFrom4([4]byte(b[4:]))}
	case 0x22:
		p.report = 3
		p.records(b, 4)
	default:
		return false
	}
	return true
}

// mld reads RFC 3810 sections 5 and 8.
func (p *packet) mld(b []byte) bool {
	if len(b) < 8 {
		return false
	}
	switch {
	case b[0] == 130 && len(b) >= 28:
		p.query = 2
	case b[0] == 130:
		p.query = 1
	case b[0] == 131 && len(b) >= 24:
		p.report = 1
		p.groups = []netip.Addr{netip.AddrFrom16([16]byte(b[8:]))}
	case b[0] == 143:
		p.report = 2
		p.records(b, 16)
	default:
		return false
	}
	return true
}

// records reads the group records of a report, with addresses of size bytes.
func (p *packet) records(b []byte, size int) {
	n := int(binary.BigEndian.Uint16(b[6:]))
	b = b[8:]
	for range n {
		if len(b) < 4+size {
			return
		}
		group, _ := netip.AddrFromSlice(b[4 : 4+size])
		if typ := b[0]; typ != 3 && typ != 6 { // CHANGE_TO_INCLUDE and BLOCK leave
			p.groups = append(p.groups, group)
		} else if typ == 3 && binary.BigEndian.Uint16(b[2:]) > 0 {
			p.groups = append(p.groups, group)
		}
		length := 4 + size + int(binary.BigEndian.Uint16(b[2:]))*size + int(b[1])*4
		if len(b) < length {
			return
		}
		b = b[length:]
	}
}
