package amt

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// A dnsServer answers on loopback, by UDP and by TCP.
type dnsServer struct {
	addr netip.AddrPort

	mu       sync.Mutex
	records  map[string][]dnsmessage.Resource // by name and type
	truncate bool                             // by UDP
	silent   int                              // questions not answered
	forge    bool                             // a wrong answer goes before each right one
	asked    []string
}

func startDNS(t *testing.T) *dnsServer {
	t.Helper()
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	s := &dnsServer{addr: udp.LocalAddr().(*net.UDPAddr).AddrPort(), records: make(map[string][]dnsmessage.Resource)}
	tcp, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(s.addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close(); tcp.Close() })
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := udp.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			for _, a := range s.answer(b[:n], true) {
				udp.WriteToUDPAddrPort(a, from)
			}
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			var size [2]byte
			io.ReadFull(c, size[:])
			b := make([]byte, binary.BigEndian.Uint16(size[:]))
			io.ReadFull(c, b)
			for _, a := range s.answer(b, false) {
				c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...))
			}
			c.Close()
		}
	}()
	return s
}

func key(name string, kind dnsmessage.Type) string {
	return strings.ToLower(name) + " " + kind.String()
}

func (s *dnsServer) add(name string, kind dnsmessage.Type, body dnsmessage.ResourceBody) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET, TTL: 60}
	s.records[key(name, kind)] = append(s.records[key(name, kind)], dnsmessage.Resource{Header: h, Body: body})
}

func (s *dnsServer) relay(name string, data ...byte) {
	s.add(name, typeAMTRELAY, &dnsmessage.UnknownResource{Type: typeAMTRELAY, Data: data})
}

func (s *dnsServer) answer(b []byte, udp bool) [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var m dnsmessage.Message
	if m.Unpack(b) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	s.asked = append(s.asked, key(q.Name.String(), q.Type))
	if s.silent > 0 {
		s.silent--
		return nil
	}
	m.Response, m.Additionals = true, nil
	m.Answers = s.records[key(q.Name.String(), q.Type)]
	if m.Answers == nil {
		m.RCode = dnsmessage.RCodeNameError
	}
	if udp && s.truncate {
		m.Truncated, m.Answers = true, nil
	}
	right, err := m.Pack()
	if err != nil {
		panic(err)
	}
	if !s.forge {
		return [][]byte{right}
	}
	m.ID++
	wrongID, _ := m.Pack()
	m.ID--
	m.Questions[0].Type++
	wrongType, _ := m.Pack()
	return [][]byte{{1, 2, 3}, wrongID, wrongType, right}
}

func (s *dnsServer) resolver() *resolver {
	return newResolver([]netip.AddrPort{s.addr}, "example.net")
}

func relays(t *testing.T, r *resolver, source string, methods ...Method) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var a netip.Addr
	if source != "" {
		a = netip.MustParseAddr(source)
	}
	found, err := r.discover(ctx, methods, a)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, c := range found {
		s := c.addr.String()
		if c.direct {
			s += " direct"
		}
		list = append(list, s)
	}
	return list
}

func same(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestSourceRecord(t *testing.T) {
	s := startDNS(t)
	four, six := "7.113.0.203.in-addr.arpa.", reverseName(netip.MustParseAddr("2001:db8::1:2"))
	if want := "2.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa."; six != want {
		t.Fatal(six)
	}
	s.relay(four, 20, 0x01, 198, 51, 100, 2)
	s.relay(four, 10, 0x81, 198, 51, 100, 1)
	s.relay(four, 30, 0x02, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
	s.relay(four, append([]byte{40, 0x83}, "\x05relay\x07example\x03net\x00"...)...)
	s.relay(four, 50, 0x00)                  // no relay
	s.relay(four, 1, 0x01, 198, 51, 100)     // too short
	s.relay(four, 1, 0x01, 224, 0, 0, 1)     // a group
	s.relay(four, 1, 0x04, 1)                // unknown type
	s.relay(four, 60, 0x01, 198, 51, 100, 1) // again
	s.relay(four, 1, 0x03, 0xc0, 0x0c)       // a compressed name
	s.relay(four, 1, 0x03, 3, 'a', 'b')      // a name cut short
	s.relay(four, 1, 0x03, 1, 'a', 0, 'x')   // more than a name
	s.relay(four, 1, 0x02, 0, 0, 0, 0, 0, 0) // too short
	s.relay(four, 1, 0x00, 0)                // more than nothing
	s.relay(four, 1)                         // no type
	s.add("relay.example.net.", dnsmessage.TypeA, &dnsmessage.AResource{A: [4]byte{198, 51, 100, 9}})
	s.add("relay.example.net.", dnsmessage.TypeAAAA, &dnsmessage.AAAAResource{AAAA: [16]byte{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 15: 9}})
	s.relay(six, 1, 0x01, 198, 51, 100, 3)

	got := relays(t, s.resolver(), "203.0.113.7", SourceRecord)
	if len(got) == 5 {
		slices.Sort(got[3:]) // the order of a host's addresses is the system's business
	}
	same(t, got, "198.51.100.1:2268 direct", "198.51.100.2:2268", "[2001:db8::1]:2268", "198.51.100.9:2268 direct", "[2001:db8::9]:2268 direct")
	same(t, relays(t, s.resolver(), "2001:db8::1:2", SourceRecord), "198.51.100.3:2268")
	same(t, relays(t, s.resolver(), "192.0.2.1", SourceRecord))
	same(t, relays(t, s.resolver(), "", SourceRecord))
}

// The chain may come whole, in part, or as a DNAME without the CNAME that
// should go with it.
func TestSourceRecordAliases(t *testing.T) {
	s := startDNS(t)
	name := func(s string) dnsmessage.Name { return dnsmessage.MustNewName(s) }
	cname := func(owner, target string) dnsmessage.Resource {
		return dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: name(owner), Type: dnsmessage.TypeCNAME, Class: dnsmessage.ClassINET},
			Body:   &dnsmessage.CNAMEResource{CNAME: name(target)},
		}
	}
	whole := "1.2.0.192.in-addr.arpa."
	s.records[key(whole, typeAMTRELAY)] = []dnsmessage.Resource{cname(whole, "X.example."), cname("x.example.", "y.example.")}
	s.relay("y.example.", 1, 1, 198, 51, 100, 7)
	dname := "9.8.0.192.in-addr.arpa."
	s.add(dname, typeAMTRELAY, &dnsmessage.UnknownResource{Type: typeDNAME, Data: []byte("\x01d\x07example\x00")})
	s.records[key(dname, typeAMTRELAY)][0].Header.Name = name("8.0.192.in-addr.arpa.")
	s.records[key(dname, typeAMTRELAY)][0].Header.Type = typeDNAME
	s.relay("9.d.example.", 1, 1, 198, 51, 100, 8)
	same(t, relays(t, s.resolver(), "192.0.2.1", SourceRecord), "198.51.100.7:2268")
	same(t, relays(t, s.resolver(), "192.0.8.9", SourceRecord), "198.51.100.8:2268")

	s.mu.Lock()
	loop := "3.2.0.192.in-addr.arpa."
	s.records[key(loop, typeAMTRELAY)] = []dnsmessage.Resource{cname(loop, "a.example."), cname("a.example.", "b.example.")}
	s.records[key("b.example.", typeAMTRELAY)] = []dnsmessage.Resource{cname("b.example.", loop)}
	s.mu.Unlock()
	if found, err := s.resolver().discover(t.Context(), []Method{SourceRecord}, netip.MustParseAddr("192.0.2.3")); err == nil {
		t.Errorf("a loop of names: %v", found)
	}
}

func TestServiceDiscovery(t *testing.T) {
	s := startDNS(t)
	name := func(s string) dnsmessage.Name { return dnsmessage.MustNewName(s) }
	for _, i := range []string{"one", "two"} {
		s.add("_amt._udp.example.net.", dnsmessage.TypePTR, &dnsmessage.PTRResource{PTR: name(i + "._amt._udp.example.net.")})
	}
	s.add("one._amt._udp.example.net.", dnsmessage.TypeSRV, &dnsmessage.SRVResource{Priority: 2, Port: 2268, Target: name("far.example.net.")})
	s.add("two._amt._udp.example.net.", dnsmessage.TypeSRV, &dnsmessage.SRVResource{Priority: 1, Port: 2000, Target: name("near.example.net.")})
	s.add("far.example.net.", dnsmessage.TypeA, &dnsmessage.AResource{A: [4]byte{198, 51, 100, 2}})
	s.add("near.example.net.", dnsmessage.TypeA, &dnsmessage.AResource{A: [4]byte{198, 51, 100, 1}})
	s.relay("7.113.0.203.in-addr.arpa.", 1, 1, 198, 51, 100, 9)
	same(t, relays(t, s.resolver(), "203.0.113.7", defaultMethods...),
		"198.51.100.1:2000", "198.51.100.2:2268", "192.52.193.1:2268", "[2001:3::1]:2268", "198.51.100.9:2268")
	same(t, relays(t, s.resolver(), "203.0.113.7", SourceRecord, ServiceDiscovery), "198.51.100.9:2268", "198.51.100.1:2000", "198.51.100.2:2268")
}

func TestDNSTrouble(t *testing.T) {
	s := startDNS(t)
	s.relay("7.113.0.203.in-addr.arpa.", 1, 1, 198, 51, 100, 9)
	for name, set := range map[string]func(){
		"truncated": func() { s.truncate = true },
		"forged":    func() { s.forge = true },
		"lost once": func() { s.silent = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			s.mu.Lock()
			s.truncate, s.forge = false, false
			set()
			s.mu.Unlock()
			same(t, relays(t, s.resolver(), "203.0.113.7", SourceRecord), "198.51.100.9:2268")
		})
	}
	// A server that is not there goes before.
	r := s.resolver()
	gone, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	r.servers = []netip.AddrPort{gone.LocalAddr().(*net.UDPAddr).AddrPort(), s.addr}
	gone.Close()
	same(t, relays(t, r, "203.0.113.7", SourceRecord), "198.51.100.9:2268")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.resolver().lookup(ctx, "x.example.", typeAMTRELAY); err == nil {
		t.Error("no error although the context has ended")
	}
}

func FuzzRelayRecord(f *testing.F) {
	f.Add([]byte{10, 1, 198, 51, 100, 1})
	f.Add(append([]byte{40, 0x83}, "\x05relay\x07example\x03net\x00"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRelayRecord(b)
		if err == nil && r.name != "" && (r.addr.IsValid() || len(r.name) > 254 || !strings.HasSuffix(r.name, ".")) {
			t.Fatalf("%+v", r)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7, Response: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("a.example."), Type: typeAMTRELAY, Class: dnsmessage.ClassINET}},
	}
	for _, body := range []dnsmessage.ResourceBody{
		&dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName("b.example.")},
		&dnsmessage.UnknownResource{Type: typeAMTRELAY, Data: []byte{10, 1, 198, 51, 100, 1}},
		&dnsmessage.UnknownResource{Type: typeDNAME, Data: []byte("\x01d\x07example\x00")},
	} {
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("a.example."), Class: dnsmessage.ClassINET}, Body: body})
	}
	b, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if answer, _, err := parseAnswer(b, 7, "a.example.", typeAMTRELAY); err == nil {
			followAliases("a.example.", answer)
		}
	})
}
