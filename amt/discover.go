package amt

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"

	"golang.org/x/net/dns/dnsmessage"
)

// A Method is a way to find relays (RFC 8777 section 2.3).
type Method uint8

const (
	// ServiceDiscovery asks for the DNS-SD service _amt._udp in the domain of
	// the host.
	ServiceDiscovery Method = iota + 1
	// Anycast asks whichever relay is near at 192.52.193.1 and 2001:3::1 (RFC
	// 7450 section 7.1).
	Anycast
	// SourceRecord asks for the AMTRELAY record at the reverse name of the
	// source.
	SourceRecord
)

// defaultMethods is the order of RFC 8777 section 2.3.2: what is near the
// receiver is better than what is near the source.
var defaultMethods = []Method{ServiceDiscovery, Anycast, SourceRecord}

var anycast = []netip.Addr{
	netip.AddrFrom4([4]byte{192, 52, 193, 1}),
	netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 3: 0x03, 15: 0x01}),
}

// A candidate is an address at which there may be a relay.
type candidate struct {
	addr   netip.AddrPort
	direct bool // no Discovery is needed
}

// discover returns where relays may be, in the order to try them. Without a
// source, that of no source. An error is about what could not be asked, and
// there may be candidates all the same.
func (r *resolver) discover(ctx context.Context, methods []Method, source netip.Addr) (found []candidate, err error) {
	for _, m := range methods {
		var more []candidate
		var e error
		switch {
		case m == ServiceDiscovery:
			more, e = r.serviceRelays(ctx)
		case m == Anycast:
			for _, a := range anycast {
				more = append(more, candidate{addr: netip.AddrPortFrom(a, Port)})
			}
		case m == SourceRecord && source.IsValid():
			more, e = r.sourceRelays(ctx, source)
		}
		err = errors.Join(err, e)
		for _, c := range more {
			if !slices.ContainsFunc(found, func(f candidate) bool { return f.addr == c.addr }) {
				found = append(found, c)
			}
		}
	}
	return found, err
}

// sourceRelays follows the AMTRELAY records of a source, the lowest precedence
// first. Which of equal ones comes first is left to chance, to spread the load
// (RFC 8777 section 2.3.2).
func (r *resolver) sourceRelays(ctx context.Context, source netip.Addr) (found []candidate, err error) {
	answer, err := r.lookup(ctx, reverseName(source), typeAMTRELAY)
	if err != nil {
		return nil, err
	}
	var records []relayRecord
	for _, a := range answer {
		// What is malformed is not there: another record may be good.
		if record, err := parseRelayRecord(a.data); err == nil {
			records = append(records, record)
		}
	}
	rand.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	slices.SortStableFunc(records, func(a, b relayRecord) int { return cmp.Compare(a.precedence, b.precedence) })
	for _, record := range records {
		addrs := []netip.Addr{record.addr}
		if record.name != "" {
			var e error
			addrs, e = r.addresses(ctx, record.name)
			err = errors.Join(err, e)
		}
		for _, a := range addrs {
			if usableRelay(a) {
				found = append(found, candidate{netip.AddrPortFrom(a, Port), record.discoveryOptional})
			}
		}
	}
	return found, err
}

// serviceRelays finds the relays that the host's domain offers: the instances
// of the service, their hosts and ports, and the addresses of these (RFC 6763
// sections 4 and 5).
func (r *resolver) serviceRelays(ctx context.Context) (found []candidate, err error) {
	domains := r.domains
	if domains == nil {
		_, domains = systemDNS(ctx)
	}
	for _, domain := range domains {
		instances, e := r.lookup(ctx, serviceName+"."+absolute(domain), dnsmessage.TypePTR)
		err = errors.Join(err, e)
		var hosts []*dnsmessage.SRVResource
		for _, i := range instances {
			services, e := r.lookup(ctx, i.body.(*dnsmessage.PTRResource).PTR.String(), dnsmessage.TypeSRV)
			err = errors.Join(err, e)
			for _, s := range services {
				hosts = append(hosts, s.body.(*dnsmessage.SRVResource))
			}
		}
		slices.SortStableFunc(hosts, func(a, b *dnsmessage.SRVResource) int { return cmp.Compare(a.Priority, b.Priority) })
		for _, h := range hosts {
			addrs, e := r.addresses(ctx, h.Target.String())
			err = errors.Join(err, e)
			for _, a := range addrs {
				if usableRelay(a) && h.Port != 0 {
					found = append(found, candidate{addr: netip.AddrPortFrom(a, h.Port)})
				}
			}
		}
	}
	return found, err
}

// absolute ends a domain with the dot of the root.
func absolute(domain string) string {
	if domain != "" && domain[len(domain)-1] != '.' {
		domain += "."
	}
	return domain
}
