package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// A ReportType is a kind of IGMP or MLD message.
type ReportType uint8

// The messages of IGMP (RFC 1112, 2236, 3376) and MLD (RFC 2710, 3810).
const (
	IGMPv1Report ReportType = iota + 1
	IGMPv2Report
	IGMPv2Leave
	IGMPv3Report
	IGMPQuery // of any version
	MLDv1Report
	MLDv1Done
	MLDv2Report
	MLDQuery // of any version
)

var reportTypes = [...]string{"", "IGMPv1 report", "IGMPv2 report", "IGMPv2 leave", "IGMPv3 report", "IGMP query", "MLDv1 report", "MLDv1 done", "MLDv2 report", "MLD query"}

func (t ReportType) String() string {
	if t == 0 || int(t) >= len(reportTypes) {
		return fmt.Sprintf("ReportType(%d)", uint8(t))
	}
	return reportTypes[t]
}

// A RecordType is the type of a group record: RFC 3376 section 4.2.12,
// RFC 3810 section 5.2.12.
type RecordType uint8

// The types of group records.
const (
	ModeIsInclude       RecordType = 1
	ModeIsExclude       RecordType = 2
	ChangeToIncludeMode RecordType = 3
	ChangeToExcludeMode RecordType = 4
	AllowNewSources     RecordType = 5
	BlockOldSources     RecordType = 6
)

var recordTypes = [...]string{"", "MODE_IS_INCLUDE", "MODE_IS_EXCLUDE", "CHANGE_TO_INCLUDE_MODE", "CHANGE_TO_EXCLUDE_MODE", "ALLOW_NEW_SOURCES", "BLOCK_OLD_SOURCES"}

func (t RecordType) String() string {
	if t == 0 || int(t) >= len(recordTypes) {
		return fmt.Sprintf("RecordType(%d)", uint8(t))
	}
	return recordTypes[t]
}

// A Record is what a report says about one group. The reports that have no
// records are read as the record they stand for (RFC 3376 section 7.3.2,
// RFC 3810 section 8.3.2): an IGMPv1, IGMPv2 or MLDv1 report is a
// MODE_IS_EXCLUDE, a leave or a done is a CHANGE_TO_INCLUDE_MODE, both without
// sources.
type Record struct {
	Type    RecordType
	Group   netip.Addr
	Sources []netip.Addr // in the order they stand in the report
}

func (r Record) String() string {
	return fmt.Sprintf("%v %v %v", r.Type, r.Group, r.Sources)
}

// Is reports whether the record has that type and group, and those sources in
// any order.
func (r Record) Is(typ RecordType, group netip.Addr, sources ...netip.Addr) bool {
	return r.Type == typ && r.Group == group && slices.Equal(sorted(r.Sources), sorted(sources))
}

func sorted(addrs []netip.Addr) []netip.Addr {
	return slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)
}

// A Report is one IGMP or MLD message.
type Report struct {
	Type     ReportType
	From, To netip.Addr
	Outgoing bool // sent by the host of the capture, not received by it
	Time     time.Time

	Records []Record // of a report, leave or done
	Query   *Query   // of a query
}

func (r Report) String() string {
	direction := "<"
	if r.Outgoing {
		direction = ">"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %v from %v to %v", direction, r.Type, r.From, r.To)
	for _, rec := range r.Records {
		fmt.Fprintf(&b, "; %v", rec)
	}
	if r.Query != nil {
		fmt.Fprintf(&b, "; %+v", *r.Query)
	}
	return b.String()
}

// A Query is what a query asks.
type Query struct {
	Version     int           // 1, 2 or 3 of IGMP, 1 or 2 of MLD
	Group       netip.Addr    // unspecified in a general query
	Sources     []netip.Addr  // of a group-and-source-specific query
	MaxResponse time.Duration // 0 in IGMPv1, which means 10 s
}

// A Flow is what a multicast UDP datagram is counted by.
type Flow struct {
	Source netip.Addr
	Group  netip.AddrPort // address and port it is sent to
}

func (f Flow) String() string { return fmt.Sprintf("%v@%v", f.Source, f.Group) }

// A Frame is what is known of an Ethernet frame. Report and Flow are nil when
// it carries something else.
type Frame struct {
	Report *Report
	Flow   *Flow
}

var errTruncated = errors.New("truncated")

// ParseFrame parses an Ethernet frame. An error means that it claims to be
// what it is not: a truncated packet, a wrong checksum of IGMP or MLD.
func ParseFrame(b []byte) (Frame, error) {
	if len(b) < 14 {
		return Frame{}, fmt.Errorf("ethernet: %w", errTruncated)
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		return parseIPv4(b[14:])
	case 0x86dd:
		return parseIPv6(b[14:])
	}
	return Frame{}, nil
}

const (
	protoHopByHop = 0
	protoIGMP     = 2
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoICMPv6   = 58
	protoDstOpts  = 60
)

func parseIPv4(b []byte) (Frame, error) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return Frame{}, fmt.Errorf("IPv4: %w", errTruncated)
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < 20 || total < header || total > len(b) {
		return Frame{}, fmt.Errorf("IPv4: %w", errTruncated)
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		return Frame{}, nil // not the first fragment
	}
	switch payload := b[header:total]; b[9] {
	case protoIGMP:
		r, err := parseIGMPMessage(payload)
		return report(r, src, dst, err)
	case protoUDP:
		return parseUDP(src, dst, payload)
	}
	return Frame{}, nil
}

func parseIPv6(b []byte) (Frame, error) {
	if len(b) < 40 || b[0]>>4 != 6 {
		return Frame{}, fmt.Errorf("IPv6: %w", errTruncated)
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length > len(b)-40 {
		return Frame{}, fmt.Errorf("IPv6: %w", errTruncated)
	}
	src, dst := netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	next, payload := b[6], b[40:40+length]
	for {
		switch next {
		case protoHopByHop, protoRouting, protoDstOpts:
			// RFC 8200 section 4.3
			if len(payload) < 8 || len(payload) < 8+8*int(payload[1]) {
				return Frame{}, fmt.Errorf("IPv6 extension header: %w", errTruncated)
			}
			next, payload = payload[0], payload[8+8*int(payload[1]):]
		case protoFragment:
			if len(payload) < 8 {
				return Frame{}, fmt.Errorf("IPv6 fragment header: %w", errTruncated)
			}
			if binary.BigEndian.Uint16(payload[2:])&^7 != 0 {
				return Frame{}, nil // not the first fragment
			}
			next, payload = payload[0], payload[8:]
		case protoICMPv6:
			r, err := parseMLDMessage(src, dst, payload)
			return report(r, src, dst, err)
		case protoUDP:
			return parseUDP(src, dst, payload)
		default:
			return Frame{}, nil
		}
	}
}

func report(r *Report, src, dst netip.Addr, err error) (Frame, error) {
	if r == nil || err != nil {
		return Frame{}, err
	}
	r.From, r.To = src, dst
	return Frame{Report: r}, nil
}

func parseUDP(src, dst netip.Addr, b []byte) (Frame, error) {
	if len(b) < 8 {
		return Frame{}, fmt.Errorf("UDP: %w", errTruncated)
	}
	if !dst.IsMulticast() {
		return Frame{}, nil
	}
	// The checksum is not looked at: between namespaces nobody fills it in.
	return Frame{Flow: &Flow{Source: src, Group: netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))}}, nil
}

// checksum is that of RFC 1071 over all parts: 0 if it is right.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for i, c := range b {
			if i%2 == 0 {
				sum += uint32(c) << 8
			} else {
				sum += uint32(c)
			}
			sum = sum&0xffff + sum>>16
		}
	}
	return ^uint16(sum)
}

var errChecksum = errors.New("wrong checksum")

func addr4(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }
func addr6(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)) }

// parseIGMPMessage returns nil for a message of another type.
func parseIGMPMessage(b []byte) (*Report, error) {
	if len(b) < 8 {
		return nil, fmt.Errorf("IGMP: %w", errTruncated)
	}
	if checksum(b) != 0 {
		return nil, fmt.Errorf("IGMP: %w", errChecksum)
	}
	// RFC 3376 sections 4 and 7.1
	switch b[0] {
	case 0x11:
		q := &Query{Group: addr4(b[4:8])}
		switch {
		case len(b) == 8 && b[1] == 0:
			q.Version = 1
		case len(b) == 8:
			q.Version = 2
			q.MaxResponse = time.Duration(b[1]) * 100 * time.Millisecond
		case len(b) < 12:
			return nil, fmt.Errorf("IGMPv3 query: %w", errTruncated)
		default:
			q.Version = 3
			code := int(b[1]) // section 4.1.1
			if code >= 128 {
				code = (code&15 | 16) << (code>>4&7 + 3)
			}
			q.MaxResponse = time.Duration(code) * 100 * time.Millisecond
			var err error
			if q.Sources, err = addrs(b[12:], int(binary.BigEndian.Uint16(b[10:])), 4, addr4); err != nil {
				return nil, fmt.Errorf("IGMPv3 query: %w", err)
			}
		}
		return &Report{Type: IGMPQuery, Query: q}, nil
	case 0x12:
		return &Report{Type: IGMPv1Report, Records: []Record{{Type: ModeIsExclude, Group: addr4(b[4:8])}}}, nil
	case 0x16:
		return &Report{Type: IGMPv2Report, Records: []Record{{Type: ModeIsExclude, Group: addr4(b[4:8])}}}, nil
	case 0x17:
		return &Report{Type: IGMPv2Leave, Records: []Record{{Type: ChangeToIncludeMode, Group: addr4(b[4:8])}}}, nil
	case 0x22:
		records, err := records(b[8:], int(binary.BigEndian.Uint16(b[6:])), 4, addr4)
		if err != nil {
			return nil, fmt.Errorf("IGMPv3 report: %w", err)
		}
		return &Report{Type: IGMPv3Report, Records: records}, nil
	}
	return nil, nil
}

// parseMLDMessage returns nil for an ICMPv6 message of another type.
func parseMLDMessage(src, dst netip.Addr, b []byte) (*Report, error) {
	if len(b) < 8 {
		return nil, fmt.Errorf("ICMPv6: %w", errTruncated)
	}
	switch b[0] {
	case 130, 131, 132:
		if len(b) < 24 {
			return nil, fmt.Errorf("MLD: %w", errTruncated)
		}
	case 143:
	default:
		return nil, nil
	}
	// The pseudo-header: RFC 8200 section 8.1.
	s, d := src.As16(), dst.As16()
	tail := binary.BigEndian.AppendUint32(nil, uint32(len(b)))
	if checksum(s[:], d[:], tail, []byte{0, 0, 0, protoICMPv6}, b) != 0 {
		return nil, fmt.Errorf("MLD: %w", errChecksum)
	}
	// RFC 3810 sections 5 and 8.1
	switch b[0] {
	case 130:
		q := &Query{Group: addr6(b[8:24])}
		code := int(binary.BigEndian.Uint16(b[4:]))
		switch {
		case len(b) == 24:
			q.Version = 1
		case len(b) < 28:
			return nil, fmt.Errorf("MLDv2 query: %w", errTruncated)
		default:
			q.Version = 2
			if code >= 32768 { // section 5.1.3
				code = (code&0xfff | 0x1000) << (code>>12&7 + 3)
			}
			var err error
			if q.Sources, err = addrs(b[28:], int(binary.BigEndian.Uint16(b[26:])), 16, addr6); err != nil {
				return nil, fmt.Errorf("MLDv2 query: %w", err)
			}
		}
		q.MaxResponse = time.Duration(code) * time.Millisecond
		return &Report{Type: MLDQuery, Query: q}, nil
	case 131:
		return &Report{Type: MLDv1Report, Records: []Record{{Type: ModeIsExclude, Group: addr6(b[8:24])}}}, nil
	case 132:
		return &Report{Type: MLDv1Done, Records: []Record{{Type: ChangeToIncludeMode, Group: addr6(b[8:24])}}}, nil
	}
	records, err := records(b[8:], int(binary.BigEndian.Uint16(b[6:])), 16, addr6)
	if err != nil {
		return nil, fmt.Errorf("MLDv2 report: %w", err)
	}
	return &Report{Type: MLDv2Report, Records: records}, nil
}

// addrs reads n addresses of size bytes.
func addrs(b []byte, n, size int, addr func([]byte) netip.Addr) ([]netip.Addr, error) {
	if len(b) < n*size {
		return nil, fmt.Errorf("%d addresses: %w", n, errTruncated)
	}
	var list []netip.Addr
	for i := range n {
		list = append(list, addr(b[i*size:(i+1)*size]))
	}
	return list, nil
}

// records reads n group records with addresses of size bytes: RFC 3376
// section 4.2.4, RFC 3810 section 5.2.
func records(b []byte, n, size int, addr func([]byte) netip.Addr) ([]Record, error) {
	var list []Record
	for i := range n {
		if len(b) < 4+size {
			return nil, fmt.Errorf("record %d: %w", i, errTruncated)
		}
		r := Record{Type: RecordType(b[0]), Group: addr(b[4 : 4+size])}
		count, aux := int(binary.BigEndian.Uint16(b[2:])), int(b[1])*4
		b = b[4+size:]
		var err error
		if r.Sources, err = addrs(b, count, size, addr); err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
		b = b[count*size:]
		if len(b) < aux {
			return nil, fmt.Errorf("record %d: auxiliary data: %w", i, errTruncated)
		}
		b = b[aux:]
		list = append(list, r)
	}
	return list, nil
}
