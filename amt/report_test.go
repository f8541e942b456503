package amt

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"example.com/mcast/internal/amtrelay"
)

func TestReportLayout(t *testing.T) {
	r := record{allowNew, netip.MustParseAddr("232.1.1.1"), []netip.Addr{netip.MustParseAddr("10.1.0.2")}}
	got := reports([]record{r}, false, reportSize)
	want := fromHex(t, "46c0002c00004000010203f600000000e000001694040000 2200e5f70000000105000001e80101010a010002")
	if len(got) != 1 || !bytes.Equal(got[0], want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}

// A strict relay takes reports of any number of groups and sources, and ends up
// with what the records say.
func TestReportSplit(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		for _, kind := range []recordType{isInclude, isExclude, toInclude, toExclude, allowNew} {
			for _, size := range []int{1, 3, 80, 300, 1000} {
				t.Run(fmt.Sprint(ipv6, kind, size), func(t *testing.T) {
					var records []record
					for i := range 5 {
						r := record{kind: kind, group: groupNumber(ipv6, i)}
						for j := range size {
							r.sources = append(r.sources, sourceNumber(ipv6, j))
						}
						records = append(records, r)
					}
					s := startRelay(t, ipv6)
					for _, p := range reports(records, ipv6, reportSize) {
						if len(p) > reportSize {
							t.Fatalf("%d bytes", len(p))
						}
						s.update(p)
					}
					wanted := s.relay.Wanted(s.now)
					if c := s.relay.Counts(); c.BadReports > 0 || len(s.check.Problems) > 0 || len(wanted) != len(records) {
						t.Fatalf("%+v %v, %d groups", c, s.check.Problems, len(wanted))
					}
					for i, m := range wanted {
						exclude := kind == isExclude || kind == toExclude
						if m.Exclude != exclude || m.Group != records[i].group {
							t.Fatalf("%+v", m)
						}
						if !exclude && !slices.Equal(m.Sources, records[i].sources) {
							t.Fatalf("%v: %d sources", m.Group, len(m.Sources))
						}
					}
				})
			}
		}
	}
}

func groupNumber(ipv6 bool, i int) netip.Addr {
	if ipv6 {
		return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x3e, 12: 0x80, 15: byte(i)})
	}
	return netip.AddrFrom4([4]byte{232, 1, 0, byte(i)})
}

func sourceNumber(ipv6 bool, i int) netip.Addr {
	if ipv6 {
		a := [16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8}
		binary.BigEndian.PutUint16(a[14:], uint16(i+1))
		return netip.AddrFrom16(a)
	}
	return netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}).Next()
}

// A relaySession is a gateway that has made a handshake by hand.
type relaySession struct {
	relay *amtrelay.Relay
	check amtrelay.Checker
	now   time.Time
	from  netip.AddrPort
	mac   mac
}

func startRelay(t *testing.T, ipv6 bool) *relaySession {
	s := &relaySession{now: time.Unix(1000, 0), from: netip.MustParseAddrPort("192.0.2.1:4000")}
	s.relay = amtrelay.New(amtrelay.Config{}, func(_ netip.AddrPort, b []byte) {
		if q, err := parseQuery(b); err != nil {
			t.Fatal(err)
		} else if got, err := parseGeneralQuery(q.packet, ipv6); err != nil || got.interval != 124*time.Second {
			t.Fatal(got, err) // 125 s cannot be said above 128: rounded down is what a code is for
		} else {
			s.mac = q.mac
		}
	})
	s.relay.Configure(func(c *amtrelay.Config) { c.QueryInterval = 124 * time.Second })
	m := request{nonce: 7}
	if ipv6 {
		m.flags = requestMLD
	}
	s.relay.Receive(s.now, s.from, m.append(nil))
	return s
}

func (s *relaySession) update(packet []byte) {
	b := update{s.mac, 7, packet}.append(nil)
	s.check.Sent(s.now, netip.MustParseAddrPort("192.0.2.2:2268"), b)
	s.relay.Receive(s.now, s.from, b)
}
