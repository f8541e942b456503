package amt

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// typeAMTRELAY is the type of AMTRELAY records (RFC 8777 section 6.1), typeDNAME
// that of RFC 6672.
const (
	typeAMTRELAY = dnsmessage.Type(260)
	typeDNAME    = dnsmessage.Type(39)
)

// A relayRecord is the data of an AMTRELAY record, RFC 8777 section 4.2: an
// address, a name, or neither, which says that there is no relay.
type relayRecord struct {
	precedence        uint8 // the lower the better
	discoveryOptional bool  // D: Requests may be sent without a Discovery
	addr              netip.Addr
	name              string // with the dot at the end
}

var errRecord = errors.New("malformed AMTRELAY record")

// parseRelayRecord parses the data of an AMTRELAY record.
func parseRelayRecord(b []byte) (r relayRecord, err error) {
	if len(b) < 2 {
		return r, errRecord
	}
	r.precedence, r.discoveryOptional = b[0], b[1]&0x80 != 0
	kind, b := b[1]&0x7f, b[2:]
	switch {
	case kind == 0 && len(b) == 0:
	case kind == 1 && len(b) == 4, kind == 2 && len(b) == 16:
		r.addr, _ = netip.AddrFromSlice(b)
		if !usableRelay(r.addr) {
			return r, errRecord
		}
	case kind == 3:
		var rest []byte
		if r.name, rest, err = parseName(b); err == nil && len(rest) > 0 {
			err = errRecord
		}
	default:
		err = errRecord
	}
	return r, err
}

// usableRelay reports whether a relay can have the address.
func usableRelay(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.Is4In6() && a != broadcast
}

// parseName parses a name in wire format without compression (RFC 1035 section
// 3.1), and returns what follows it.
func parseName(b []byte) (name string, rest []byte, err error) {
	var s strings.Builder
	for {
		if len(b) == 0 || int(b[0]) > 63 || len(b) < 1+int(b[0]) {
			return "", nil, errRecord
		}
		label := b[1 : 1+int(b[0])]
		if b = b[1+len(label):]; len(label) == 0 {
			break
		}
		for _, c := range label {
			if c <= ' ' || c > '~' || c == '.' || c == '\\' {
				return "", nil, errRecord // no name of a host
			}
		}
		s.Write(label)
		s.WriteByte('.')
		if s.Len() > 254 {
			return "", nil, errRecord
		}
	}
	if s.Len() == 0 {
		return "", nil, errRecord // the root is no relay
	}
	return s.String(), b, nil
}

// reverseName returns the name that stands for an address: RFC 1035 section
// 3.5, RFC 3596 section 2.5.
func reverseName(a netip.Addr) string {
	b := a.AsSlice()
	var s strings.Builder
	for i := len(b) - 1; i >= 0; i-- {
		if a.Is4() {
			fmt.Fprintf(&s, "%d.", b[i])
		} else {
			fmt.Fprintf(&s, "%x.%x.", b[i]&15, b[i]>>4)
		}
	}
	if a.Is4() {
		return s.String() + "in-addr.arpa."
	}
	return s.String() + "ip6.arpa."
}
