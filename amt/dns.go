package amt

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// A resolver asks DNS servers for what package net has no call for.
type resolver struct {
	servers []netip.AddrPort // none: the system's
	domains []string         // of the host, for names without one; nil: the system's
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
}

func newResolver(servers []netip.AddrPort, domain string) *resolver {
	r := &resolver{servers: servers, dial: new(net.Dialer).DialContext}
	if domain != "" {
		r.domains = []string{domain}
	}
	return r
}

const (
	dnsTimeout  = 2 * time.Second // for an answer; then the next server is asked
	dnsAttempts = 2               // rounds over the servers
	dnsUDPSize  = 1232            // that fits every path
	dnsChain    = 8               // aliases followed
)

var (
	errNoServers = errors.New("no DNS server is known")
	errAnswer    = errors.New("a DNS answer that does not fit the question")
)

// A resource is a record of an answer: its name in lower case, its type, and
// its data as it stands there, or parsed if it can have compressed names.
type resource struct {
	name string
	kind dnsmessage.Type
	data []byte
	body dnsmessage.ResourceBody
}

// lookup returns the records of one type that a name has, aliases followed.
// A name that does not exist has none.
func (r *resolver) lookup(ctx context.Context, name string, kind dnsmessage.Type) ([]resource, error) {
	name = strings.ToLower(name)
	for range dnsChain {
		answer, err := r.ask(ctx, name, kind)
		if err != nil {
			return nil, err
		}
		last := followAliases(name, answer)
		found := slices.DeleteFunc(answer, func(a resource) bool { return a.kind != kind || a.name != last })
		if len(found) > 0 || last == name {
			return found, nil
		}
		name = last // the answer ended within the chain
	}
	return nil, fmt.Errorf("%w: more than %d aliases", errAnswer, dnsChain)
}

// followAliases returns the name that the CNAME and DNAME records of an answer
// lead to.
func followAliases(name string, answer []resource) string {
	for range dnsChain {
		next := ""
		for _, a := range answer {
			switch {
			case a.kind == dnsmessage.TypeCNAME && a.name == name:
				if c, ok := a.body.(*dnsmessage.CNAMEResource); ok {
					next = strings.ToLower(c.CNAME.String())
				}
			case a.kind == typeDNAME && next == "" && strings.HasSuffix(name, "."+a.name):
				// The owner, as the end of a name, is replaced (RFC 6672 section 2.2).
				if target, _, err := parseName(a.data); err == nil {
					next = strings.TrimSuffix(name, a.name) + strings.ToLower(target)
				}
			}
		}
		if next == "" {
			return name
		}
		name = next
	}
	return name
}

// ask asks the servers, one after the other, and returns the answer's records.
func (r *resolver) ask(ctx context.Context, name string, kind dnsmessage.Type) ([]resource, error) {
	servers := r.servers
	if len(servers) == 0 {
		servers, _ = systemDNS(ctx)
	}
	err := errNoServers
	for range dnsAttempts {
		for _, server := range servers {
			var answer []resource
			if answer, err = r.askServer(ctx, server, name, kind); err == nil || ctx.Err() != nil {
				return answer, err
			}
		}
	}
	return nil, err
}

// askServer asks by UDP, and by TCP for what is too long for that.
func (r *resolver) askServer(ctx context.Context, server netip.AddrPort, name string, kind dnsmessage.Type) ([]resource, error) {
	ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	for _, network := range []string{"udp", "tcp"} {
		answer, truncated, err := r.exchange(ctx, network, server, name, kind)
		if err != nil || !truncated {
			return answer, err
		}
	}
	return nil, errAnswer
}

func (r *resolver) exchange(ctx context.Context, network string, server netip.AddrPort, name string, kind dnsmessage.Type) (answer []resource, truncated bool, err error) {
	id, err := randomID()
	if err != nil {
		return nil, false, err
	}
	question, err := dnsQuestion(id, name, kind)
	if err != nil {
		return nil, false, err
	}
	c, err := r.dial(ctx, network, server.String())
	if err != nil {
		return nil, false, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	if network == "tcp" { // RFC 1035 section 4.2.2
		question = append(binary.BigEndian.AppendUint16(nil, uint16(len(question))), question...)
	}
	if _, err := c.Write(question); err != nil {
		return nil, false, err
	}
	buf := make([]byte, 1<<16)
	for {
		n := 0
		if network == "tcp" {
			if _, err = io.ReadFull(c, buf[:2]); err == nil {
				n, err = io.ReadFull(c, buf[:binary.BigEndian.Uint16(buf)])
			}
		} else {
			n, err = c.Read(buf)
		}
		if err != nil {
			return nil, false, err
		}
		answer, truncated, err = parseAnswer(buf[:n], id, name, kind)
		if network == "udp" && errors.Is(err, errAnswer) {
			continue // anybody can send that: wait for the right one
		}
		return answer, truncated, err
	}
}

func randomID() (uint16, error) {
	var b [2]byte
	_, err := rand.Read(b[:])
	return binary.BigEndian.Uint16(b[:]), err
}

func dnsQuestion(id uint16, name string, kind dnsmessage.Type) ([]byte, error) {
	n, err := dnsmessage.NewName(name)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", name, err)
	}
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, RecursionDesired: true})
	b.EnableCompression()
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if err := b.Question(dnsmessage.Question{Name: n, Type: kind, Class: dnsmessage.ClassINET}); err != nil {
		return nil, err
	}
	if err := b.StartAdditionals(); err != nil {
		return nil, err
	}
	var h dnsmessage.ResourceHeader
	if err := h.SetEDNS0(dnsUDPSize, dnsmessage.RCodeSuccess, false); err != nil {
		return nil, err
	}
	if err := b.OPTResource(h, dnsmessage.OPTResource{}); err != nil {
		return nil, err
	}
	return b.Finish()
}

// parseAnswer parses a response to that question. What is no response to it is
// errAnswer.
func parseAnswer(b []byte, id uint16, name string, kind dnsmessage.Type) (answer []resource, truncated bool, err error) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || !h.Response || h.ID != id {
		return nil, false, errAnswer
	}
	q, err := p.Question()
	if err != nil || q.Type != kind || q.Class != dnsmessage.ClassINET || !strings.EqualFold(q.Name.String(), name) {
		return nil, false, errAnswer
	}
	if err := p.SkipAllQuestions(); err != nil {
		return nil, false, errAnswer
	}
	if h.Truncated {
		return nil, true, nil
	}
	if h.RCode != dnsmessage.RCodeSuccess && h.RCode != dnsmessage.RCodeNameError {
		return nil, false, fmt.Errorf("%s: the DNS server says %v", name, h.RCode)
	}
	for {
		rh, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return answer, false, nil
		}
		if err != nil {
			return nil, false, fmt.Errorf("%w: %v", errAnswer, err)
		}
		a := resource{name: strings.ToLower(rh.Name.String()), kind: rh.Type}
		switch rh.Type {
		case typeAMTRELAY, typeDNAME:
			var u dnsmessage.UnknownResource
			u, err = p.UnknownResource()
			a.data = u.Data
		case dnsmessage.TypeCNAME:
			var c dnsmessage.CNAMEResource
			c, err = p.CNAMEResource()
			a.body = &c
		case dnsmessage.TypePTR:
			var ptr dnsmessage.PTRResource
			ptr, err = p.PTRResource()
			a.body = &ptr
		case dnsmessage.TypeSRV:
			var srv dnsmessage.SRVResource
			srv, err = p.SRVResource()
			a.body = &srv
		default:
			err = p.SkipAnswer()
		}
		if err != nil {
			return nil, false, fmt.Errorf("%w: %v", errAnswer, err)
		}
		if rh.Class == dnsmessage.ClassINET {
			answer = append(answer, a)
		}
	}
}

// addresses returns the addresses of a host.
func (r *resolver) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	std := net.DefaultResolver
	if len(r.servers) > 0 {
		var turn atomic.Uint32
		std = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			server := r.servers[int(turn.Add(1)-1)%len(r.servers)]
			return r.dial(ctx, network, server.String())
		}}
	}
	addrs, err := std.LookupNetIP(ctx, "ip", host)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, err
}
