package amt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Port is the UDP port of relays (RFC 7450 section 7.2).
const Port = 2268

// The types of messages, RFC 7450 section 5.1. The first byte of a message is
// the version, 0, in its upper half and the type in its lower one.
const (
	typeDiscovery     = 1
	typeAdvertisement = 2
	typeRequest       = 3
	typeQuery         = 4
	typeUpdate        = 5
	typeData          = 6
	typeTeardown      = 7
)

const (
	dataHeader   = 2  // what stands before the datagram in Multicast Data
	updateHeader = 12 // what stands before the report in a Membership Update
)

// A mac is the Response MAC by which a relay knows that a gateway has received
// its Membership Query.
type mac [6]byte

// A discovery is a Relay Discovery, RFC 7450 section 5.1.1.
type discovery struct{ nonce uint32 }

// An advertisement is a Relay Advertisement, section 5.1.2.
type advertisement struct {
	nonce uint32
	relay netip.Addr
}

// A request is a Request, section 5.1.3.
type request struct {
	flags byte // requestMLD or none
	nonce uint32
}

// Flags of a Request. The P flag says which protocol the query is to be of.
// The Linux kernel's relay has it at the other end of the byte.
const (
	requestMLD      = 0x01
	requestMLDLinux = 0x80
)

// A query is a Membership Query, section 5.1.4.
type query struct {
	limit   bool // L: the relay takes no new gateways
	mac     mac
	nonce   uint32
	packet  []byte         // the IP packet with the general query, and what may follow it
	gateway netip.AddrPort // where the relay sees the gateway; zero without the G flag
}

// Flags of a Membership Query.
const (
	queryLimit   = 0x02
	queryGateway = 0x01
)

// An update is a Membership Update, section 5.1.5.
type update struct {
	mac    mac
	nonce  uint32
	packet []byte // the IP packet with the report
}

// A teardown is a Teardown, section 5.1.7. All of it is as it was before the
// gateway's address changed.
type teardown struct {
	mac     mac
	nonce   uint32
	gateway netip.AddrPort
}

var (
	errLength  = errors.New("wrong length")
	errVersion = errors.New("unknown version")
	errType    = errors.New("another type")
	errAddress = errors.New("unusable address")
)

// messageType returns the type of a message of version 0.
func messageType(b []byte) (byte, error) {
	switch {
	case len(b) == 0:
		return 0, errLength
	case b[0]>>4 != 0:
		return 0, errVersion
	}
	return b[0] & 15, nil
}

// checkMessage checks the type of a message and that it has one of the
// lengths; with none of them, that it is at least as long as least.
func checkMessage(b []byte, kind byte, least int, lengths ...int) error {
	got, err := messageType(b)
	if err != nil {
		return err
	}
	if got != kind {
		return errType
	}
	if slices.Contains(lengths, len(b)) {
		return nil
	}
	if len(lengths) > 0 || len(b) < least {
		return fmt.Errorf("%w: %d bytes", errLength, len(b))
	}
	return nil
}

func (m discovery) append(b []byte) []byte {
	return binary.BigEndian.AppendUint32(append(b, typeDiscovery, 0, 0, 0), m.nonce)
}

func parseDiscovery(b []byte) (m discovery, err error) {
	if err = checkMessage(b, typeDiscovery, 0, 8); err == nil {
		m.nonce = binary.BigEndian.Uint32(b[4:])
	}
	return m, err
}

func (m advertisement) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(append(b, typeAdvertisement, 0, 0, 0), m.nonce)
	return append(b, m.relay.AsSlice()...)
}

func parseAdvertisement(b []byte) (m advertisement, err error) {
	if err = checkMessage(b, typeAdvertisement, 0, 12, 24); err != nil {
		return m, err
	}
	m.nonce = binary.BigEndian.Uint32(b[4:])
	m.relay, _ = netip.AddrFromSlice(b[8:])
	if m.relay.Is4In6() {
		return m, errAddress
	}
	return m, nil
}

func (m request) append(b []byte) []byte {
	return binary.BigEndian.AppendUint32(append(b, typeRequest, m.flags, 0, 0), m.nonce)
}

func parseRequest(b []byte) (m request, err error) {
	if err = checkMessage(b, typeRequest, 0, 8); err == nil {
		m.flags, m.nonce = b[1], binary.BigEndian.Uint32(b[4:])
	}
	return m, err
}

func (m query) append(b []byte) []byte {
	var flags byte
	if m.limit {
		flags |= queryLimit
	}
	if m.gateway.IsValid() {
		flags |= queryGateway
	}
	b = append(append(b, typeQuery, flags), m.mac[:]...)
	b = append(binary.BigEndian.AppendUint32(b, m.nonce), m.packet...)
	if m.gateway.IsValid() {
		b = appendGateway(b, m.gateway)
	}
	return b
}

func parseQuery(b []byte) (m query, err error) {
	if err = checkMessage(b, typeQuery, 12); err != nil {
		return m, err
	}
	m.limit = b[1]&queryLimit != 0
	m.mac, m.nonce, m.packet = mac(b[2:]), binary.BigEndian.Uint32(b[8:]), b[12:]
	if b[1]&queryGateway != 0 {
		// The gateway's address and port are the last 18 bytes.
		end := len(m.packet) - gatewayFields
		if end < 0 {
			return m, fmt.Errorf("%w: %d bytes", errLength, len(b))
		}
		m.gateway, m.packet = parseGateway(m.packet[end:]), m.packet[:end]
	}
	return m, nil
}

func (m update) append(b []byte) []byte {
	b = append(append(b, typeUpdate, 0), m.mac[:]...)
	return append(binary.BigEndian.AppendUint32(b, m.nonce), m.packet...)
}

func parseUpdate(b []byte) (m update, err error) {
	if err = checkMessage(b, typeUpdate, updateHeader); err == nil {
		m.mac, m.nonce, m.packet = mac(b[2:]), binary.BigEndian.Uint32(b[8:]), b[12:]
	}
	return m, err
}

func (m teardown) append(b []byte) []byte {
	b = append(append(b, typeTeardown, 0), m.mac[:]...)
	return appendGateway(binary.BigEndian.AppendUint32(b, m.nonce), m.gateway)
}

func parseTeardown(b []byte) (m teardown, err error) {
	if err = checkMessage(b, typeTeardown, 0, 12+gatewayFields); err == nil {
		m.mac, m.nonce, m.gateway = mac(b[2:]), binary.BigEndian.Uint32(b[8:]), parseGateway(b[12:])
	}
	return m, err
}

func appendData(b, packet []byte) []byte { return append(append(b, typeData, 0), packet...) }

// parseData returns the datagram in Multicast Data, section 5.1.6.
func parseData(b []byte) ([]byte, error) {
	if len(b) >= dataHeader && b[0] == typeData {
		return b[dataHeader:], nil
	}
	return nil, checkMessage(b, typeData, dataHeader)
}

// gatewayFields is the length of a gateway's port and address. An IPv4 address
// stands in the last four of the sixteen bytes, the others are 0 (RFC 7450
// section 5.1.4.8).
const gatewayFields = 2 + 16

func appendGateway(b []byte, g netip.AddrPort) []byte {
	b = binary.BigEndian.AppendUint16(b, g.Port())
	if g.Addr().Is4() {
		b = append(b, make([]byte, 12)...)
	}
	return append(b, g.Addr().AsSlice()...)
}

func parseGateway(b []byte) netip.AddrPort {
	port, addr := binary.BigEndian.Uint16(b), [16]byte(b[2:])
	if [12]byte(addr[:]) == [12]byte{} {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(addr[12:])), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(addr), port)
}
