package amt

import (
	"encoding/binary"
	"errors"
	"time"
)

// A generalQuery is what an IGMPv3 or MLDv2 general query sets.
type generalQuery struct {
	interval   time.Duration // the querier's query interval
	robustness int           // how often what may be lost is sent
}

// Defaults for a field that is 0: RFC 3376 sections 8.1 and 8.2, RFC 3810
// sections 9.1 and 9.2.
const (
	defaultInterval   = 125 * time.Second
	defaultRobustness = 2
)

var errNotQuery = errors.New("not a general query of that family")

// parseGeneralQuery parses an IP packet with an IGMPv3 or MLDv2 general query.
// Bytes behind the packet are ignored.
func parseGeneralQuery(b []byte, ipv6 bool) (generalQuery, error) {
	var h ipHeader
	if err := h.parse(b); err != nil {
		return generalQuery{}, err
	}
	if h.fragmented || h.source.Is6() != ipv6 {
		return generalQuery{}, errNotQuery
	}
	if ipv6 {
		return parseMLDQuery(&h)
	}
	return parseIGMPQuery(&h)
}

// parseIGMPQuery: RFC 3376 section 4.1. A query of an older version has 8 bytes
// and no interval.
func parseIGMPQuery(h *ipHeader) (generalQuery, error) {
	b := h.payload
	if h.protocol != protocolIGMP || h.destination != allHosts4 || len(b) < 12 || b[0] != 0x11 {
		return generalQuery{}, errNotQuery
	}
	if checksum(onesSum(0, b)) != 0 {
		return generalQuery{}, errChecksum
	}
	if [4]byte(b[4:]) != [4]byte{} || binary.BigEndian.Uint16(b[10:]) != 0 {
		return generalQuery{}, errNotQuery // about one group
	}
	return querierFields(b[8], b[9]), nil
}

// parseMLDQuery: RFC 3810 section 5.1.
func parseMLDQuery(h *ipHeader) (generalQuery, error) {
	b := h.payload
	if h.protocol != protocolICMPv6 || h.destination != allHosts6 || len(b) < 28 || b[0] != 130 {
		return generalQuery{}, errNotQuery
	}
	if checksum(onesSum(pseudoHeader(h.source, h.destination, protocolICMPv6, len(b)), b)) != 0 {
		return generalQuery{}, errChecksum
	}
	if [16]byte(b[8:]) != [16]byte{} || binary.BigEndian.Uint16(b[26:]) != 0 {
		return generalQuery{}, errNotQuery
	}
	return querierFields(b[24], b[25]), nil
}

// querierFields reads S and QRV, and the Querier's Query Interval Code, which
// from 128 up has an exponent and a mantissa: RFC 3376 sections 4.1.6 and
// 4.1.7, RFC 3810 sections 5.1.8 and 5.1.9.
func querierFields(robustness, code byte) generalQuery {
	q := generalQuery{defaultInterval, defaultRobustness}
	if n := int(robustness & 7); n > 0 {
		q.robustness = n
	}
	seconds := int(code)
	if code >= 128 {
		seconds = int(code&15|16) << (code>>4&7 + 3)
	}
	if seconds > 0 {
		q.interval = time.Duration(seconds) * time.Second
	}
	return q
}
