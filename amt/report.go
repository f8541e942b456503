package amt

import (
	"encoding/binary"
	"net/netip"
)

// A recordType is the type of a group record: RFC 3376 section 4.2.12,
// RFC 3810 section 5.2.12.
type recordType uint8

const (
	isInclude recordType = 1
	isExclude recordType = 2
	toInclude recordType = 3
	toExclude recordType = 4
	allowNew  recordType = 5
	blockOld  recordType = 6
)

// A record says something about one group.
type record struct {
	kind    recordType
	group   netip.Addr
	sources []netip.Addr
}

const (
	ipv4ReportHeader = 24     // with the router alert option
	ipv6ReportHeader = 40 + 8 // with the hop-by-hop options
	reportHeader     = 8

	protocolHopByHop    = 0
	protocolIGMP        = 2
	protocolUDP         = 17
	protocolRouting     = 43
	protocolFragment    = 44
	protocolICMPv6      = 58
	protocolDestination = 60
)

var (
	// Reports go to all routers that are capable of IGMPv3 (RFC 3376 section
	// 4.2.14) or MLDv2 (RFC 3810 section 5.2.14), queries to all hosts.
	igmpRouters = netip.AddrFrom4([4]byte{224, 0, 0, 22})
	mldRouters  = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 0x16})
	allHosts4   = netip.AddrFrom4([4]byte{224, 0, 0, 1})
	allHosts6   = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 0x01})

	// reporter4 is the source of a host without an address (RFC 3376 section
	// 4.2.13). A router takes MLD from link-local addresses only (RFC 3810
	// section 5.2.13); relays use fe80::1 themselves.
	reporter4 = netip.IPv4Unspecified()
	reporter6 = netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 15: 0x02})
)

// reports lays records, which are all of the group's family, out as IGMPv3 or
// MLDv2 reports, each an IP packet of at most size bytes.
func reports(records []record, ipv6 bool, size int) [][]byte {
	w := reportWriter{ipv6: ipv6, room: size - ipv4ReportHeader - reportHeader}
	if ipv6 {
		w.room = size - ipv6ReportHeader - reportHeader
	}
	for _, r := range records {
		w.add(r)
	}
	w.finish()
	return w.packets
}

// A reportWriter gathers group records until a report is full.
type reportWriter struct {
	ipv6    bool
	room    int // for records in a report
	packets [][]byte

	count   int    // of records in body
	records []byte // of the report that is being written
}

func (w *reportWriter) addrLen() int {
	if w.ipv6 {
		return 16
	}
	return 4
}

// add writes a record, in several if it does not fit. RFC 3376 section 4.2.16
// would spread the sources of a TO_IN over several ones and leave out the rest
// of an EXCLUDE, and trusts that a router asks when in doubt. A relay cannot
// ask, so the rest follows as what it adds to the first record.
func (w *reportWriter) add(r record) {
	head, addr := 4+w.addrLen(), w.addrLen()
	for {
		fits := (w.room - len(w.records) - head) / addr
		if len(w.records)+head > w.room || fits == 0 && len(r.sources) > 0 {
			w.finish()
			continue
		}
		n := min(len(r.sources), fits)
		w.write(r.kind, r.group, r.sources[:n])
		if r.sources = r.sources[n:]; len(r.sources) == 0 {
			return
		}
		switch r.kind {
		case toInclude:
			r.kind = allowNew
		case isExclude, toExclude:
			r.kind = blockOld
		}
	}
}

// write appends one record: RFC 3376 section 4.2.4, RFC 3810 section 5.2.4.
func (w *reportWriter) write(kind recordType, group netip.Addr, sources []netip.Addr) {
	w.records = append(w.records, byte(kind), 0)
	w.records = binary.BigEndian.AppendUint16(w.records, uint16(len(sources)))
	w.records = append(w.records, group.AsSlice()...)
	for _, s := range sources {
		w.records = append(w.records, s.AsSlice()...)
	}
	w.count++
}

// finish makes a packet of the records there are.
func (w *reportWriter) finish() {
	if w.count == 0 {
		return
	}
	if w.ipv6 {
		w.packets = append(w.packets, mldReport(w.count, w.records))
	} else {
		w.packets = append(w.packets, igmpReport(w.count, w.records))
	}
	w.count, w.records = 0, nil
}

// igmpReport makes an IPv4 packet with an IGMPv3 report (RFC 3376 section 4.2).
func igmpReport(count int, records []byte) []byte {
	length := ipv4ReportHeader + reportHeader + len(records)
	b := make([]byte, ipv4ReportHeader, length)
	b[0], b[1] = 0x46, 0xc0 // precedence Internetwork Control, section 4
	binary.BigEndian.PutUint16(b[2:], uint16(length))
	b[6] = 0x40 // don't fragment
	b[8], b[9] = 1, protocolIGMP
	copy(b[12:], reporter4.AsSlice())
	copy(b[16:], igmpRouters.AsSlice())
	copy(b[20:], routerAlert4[:])
	binary.BigEndian.PutUint16(b[10:], checksum(onesSum(0, b)))

	b = append(b, 0x22, 0, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(count))
	b = append(b, records...)
	binary.BigEndian.PutUint16(b[ipv4ReportHeader+2:], checksum(onesSum(0, b[ipv4ReportHeader:])))
	return b
}

// mldReport makes an IPv6 packet with an MLDv2 report (RFC 3810 section 5.2).
func mldReport(count int, records []byte) []byte {
	length := reportHeader + len(records)
	b := make([]byte, 40, ipv6ReportHeader+length)
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(ipv6ReportHeader-40+length))
	b[6], b[7] = protocolHopByHop, 1
	copy(b[8:], reporter6.AsSlice())
	copy(b[24:], mldRouters.AsSlice())
	b = append(b, protocolICMPv6, 0)
	b = append(b, routerAlert6[:]...)

	b = append(b, 143, 0, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(count))
	b = append(b, records...)
	sum := pseudoHeader(reporter6, mldRouters, protocolICMPv6, length)
	binary.BigEndian.PutUint16(b[ipv6ReportHeader+2:], checksum(onesSum(sum, b[ipv6ReportHeader:])))
	return b
}

// The router alert options: RFC 2113; RFC 2711, padded to eight bytes with the
// two that stand before it.
var (
	routerAlert4 = [4]byte{0x94, 4, 0, 0}
	routerAlert6 = [6]byte{5, 2, 0, 0, 1, 0}
)
