package amt

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// systemDNS returns the DNS servers that the system is set to ask, and the
// domains that it completes names with. Package net knows them on every system
// but does not tell: so it is made to ask for a name, and what it would send,
// and where, is noted and not sent.
func systemDNS(ctx context.Context) (servers []netip.AddrPort, domains []string) {
	var mu sync.Mutex
	r := net.Resolver{PreferGo: true, Dial: func(_ context.Context, _, address string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if a, err := netip.ParseAddrPort(address); err == nil && !slices.Contains(servers, a) {
			servers = append(servers, a)
		}
		return &unsentQuestion{note: func(domain string) {
			mu.Lock()
			defer mu.Unlock()
			if !slices.Contains(domains, domain) {
				domains = append(domains, domain)
			}
		}}, nil
	}}
	r.LookupTXT(ctx, serviceName)
	mu.Lock()
	defer mu.Unlock()
	return slices.Clone(servers), slices.Clone(domains)
}

// serviceName is the DNS-SD service of relays, RFC 8777 section 3.1.
const serviceName = "_amt._udp"

// An unsentQuestion is a connection to a DNS server that is none.
type unsentQuestion struct{ note func(domain string) }

var errUnsent = errors.New("not sent")

func (c *unsentQuestion) Write(b []byte) (int, error) {
	var p dnsmessage.Parser
	if len(b) > 2 { // a stream, RFC 1035 section 4.2.2
		if _, err := p.Start(b[2:]); err == nil {
			if q, err := p.Question(); err == nil {
				name := strings.ToLower(q.Name.String())
				if domain, ok := strings.CutPrefix(name, serviceName+"."); ok && domain != "" {
					c.note(domain)
				}
			}
		}
	}
	return 0, errUnsent
}

func (c *unsentQuestion) Read([]byte) (int, error)         { return 0, io.EOF }
func (c *unsentQuestion) Close() error                     { return nil }
func (c *unsentQuestion) LocalAddr() net.Addr              { return &net.UDPAddr{} }
func (c *unsentQuestion) RemoteAddr() net.Addr             { return &net.UDPAddr{} }
func (c *unsentQuestion) SetDeadline(time.Time) error      { return nil }
func (c *unsentQuestion) SetReadDeadline(time.Time) error  { return nil }
func (c *unsentQuestion) SetWriteDeadline(time.Time) error { return nil }
