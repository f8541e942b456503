package amt

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// What is wrong with a packet from a tunnel.
var (
	errPacket      = errors.New("not an IP packet")
	errChecksum    = errors.New("wrong checksum")
	errDestination = errors.New("not for a multicast group")
	errSource      = errors.New("not from a unicast address")
	errProtocol    = errors.New("not UDP")
)

// An ipHeader is what an IPv4 or IPv6 packet says before its payload.
type ipHeader struct {
	source      netip.Addr
	destination netip.Addr
	protocol    byte // of the payload
	hopLimit    uint8
	payload     []byte // as long as the header says
	fragmented  bool   // the payload is a part, fragment says which
	fragment    fragment
}

// parse parses an IPv4 or IPv6 packet. Bytes behind it are ignored.
func (h *ipHeader) parse(b []byte) error {
	if len(b) == 0 {
		return errPacket
	}
	h.fragmented = false
	switch b[0] >> 4 {
	case 4:
		return h.parseIPv4(b)
	case 6:
		return h.parseIPv6(b)
	}
	return errPacket
}

// parseIPv4: RFC 791 section 3.1.
func (h *ipHeader) parseIPv4(b []byte) error {
	if len(b) < 20 {
		return errPacket
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < 20 || total < header || total > len(b) {
		return errPacket
	}
	if checksum(onesSum(0, b[:header])) != 0 {
		return errChecksum
	}
	h.source, h.destination = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	h.hopLimit, h.protocol, h.payload = b[8], b[9], b[header:total]
	if f := binary.BigEndian.Uint16(b[6:]); f&0x3fff != 0 {
		h.fragmented = true
		h.fragment = fragment{
			id:     uint32(binary.BigEndian.Uint16(b[4:])),
			offset: int(f&0x1fff) * 8,
			more:   f&0x2000 != 0,
		}
	}
	return nil
}

// parseIPv6: RFC 8200 sections 3 and 4.
func (h *ipHeader) parseIPv6(b []byte) error {
	if len(b) < 40 {
		return errPacket
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length > len(b)-40 {
		return errPacket
	}
	h.source, h.destination = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	h.protocol, h.hopLimit, h.payload = b[6], b[7], b[40:40+length]
	return h.parseExtensions()
}

// parseExtensions goes past the extension headers, up to a fragment's.
func (h *ipHeader) parseExtensions() error {
	for {
		b := h.payload
		switch h.protocol {
		case protocolHopByHop, protocolDestination, protocolRouting:
			if len(b) < 8 || len(b) < 8+8*int(b[1]) {
				return errPacket
			}
			if h.protocol == protocolRouting && b[3] != 0 {
				return errDestination // segments are left: it is on its way elsewhere
			}
			h.protocol, h.payload = b[0], b[8+8*int(b[1]):]
		case protocolFragment:
			if len(b) < 8 {
				return errPacket
			}
			f := binary.BigEndian.Uint16(b[2:])
			h.fragment = fragment{id: binary.BigEndian.Uint32(b[4:]), offset: int(f &^ 7), more: f&1 != 0}
			h.protocol, h.payload = b[0], b[8:]
			if h.fragment.offset > 0 || h.fragment.more { // else it is all there (RFC 6946)
				h.fragmented = true
				return nil
			}
		default:
			return nil
		}
	}
}

// A datagram is a UDP datagram to a group.
type datagram struct {
	source   netip.AddrPort
	group    netip.Addr
	port     uint16
	hopLimit uint8
	payload  []byte
}

// checkAddresses checks that a packet goes from a unicast address to a group
// that may leave its link (RFC 7450 section 5.2.3.3).
func (h *ipHeader) checkAddresses() error {
	if !h.destination.IsMulticast() || stayingGroup(h.destination) {
		return errDestination
	}
	s := h.source
	if s.IsMulticast() || s.IsUnspecified() || s.IsLoopback() || s.Is4In6() || s == broadcast {
		return errSource
	}
	return nil
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// stayingGroup reports whether routers, and so relays, never forward a group:
// RFC 5771 section 4, RFC 4291 section 2.7.
func stayingGroup(a netip.Addr) bool {
	return a.IsLinkLocalMulticast() || a.IsInterfaceLocalMulticast() || a.Is6() && a.As16()[1]&15 == 0
}

// parseUDP checks the UDP datagram that a packet carries whole.
func (h *ipHeader) parseUDP(d *datagram) error {
	b := h.payload
	if h.protocol != protocolUDP {
		return errProtocol
	}
	if len(b) < 8 {
		return errPacket
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length < 8 || length > len(b) {
		return errPacket
	}
	b = b[:length]
	// A checksum of 0 is none, and that only IPv4 allows: RFC 768, RFC 8200
	// section 8.1.
	sum := binary.BigEndian.Uint16(b[6:])
	if sum == 0 && h.source.Is6() || sum != 0 && checksum(onesSum(pseudoHeader(h.source, h.destination, protocolUDP, length), b)) != 0 {
		return errChecksum
	}
	d.source = netip.AddrPortFrom(h.source, binary.BigEndian.Uint16(b))
	d.group, d.port = h.destination, binary.BigEndian.Uint16(b[2:])
	d.hopLimit, d.payload = h.hopLimit, b[8:]
	return nil
}
