package mcast

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"example.com/mcast/internal/netlab"
	"golang.org/x/sys/unix"
)

// netlinkMessage lays out a message of rtnetlink(7).
func netlinkMessage(kind uint16, seq uint32, data ...byte) []byte {
	ne := binary.NativeEndian
	b := ne.AppendUint32(nil, uint32(16+len(data)))
	b = ne.AppendUint16(b, kind)
	b = ne.AppendUint16(b, 0)
	b = ne.AppendUint32(b, seq)
	b = ne.AppendUint32(b, 0)
	b = append(b, data...)
	return append(b, make([]byte, -len(b)&3)...)
}

func linkMessage(kind uint16, family byte, index int32, flags uint32, attrs ...[]byte) []byte {
	ne := binary.NativeEndian
	b := append([]byte{family, 0}, ne.AppendUint16(nil, 1)...)
	b = ne.AppendUint32(b, uint32(index))
	b = ne.AppendUint32(b, flags)
	b = ne.AppendUint32(b, 0)
	return netlinkMessage(kind, 0, slices.Concat(append([][]byte{b}, attrs...)...)...)
}

func linkAttr(kind uint16, value ...byte) []byte {
	ne := binary.NativeEndian
	b := ne.AppendUint16(nil, uint16(4+len(value)))
	b = append(ne.AppendUint16(b, kind), value...)
	return append(b, make([]byte, -len(b)&3)...)
}

func TestParseLinks(t *testing.T) {
	name := linkAttr(unix.IFLA_IFNAME, []byte("eth0\x00")...)
	count := linkAttr(unix.IFLA_CARRIER_CHANGES, binary.NativeEndian.AppendUint32(nil, 3)...)
	up := uint32(unix.IFF_UP | unix.IFF_LOWER_UP)
	eth0 := linkChange{link: link{index: 5, name: "eth0", up: true, running: true, changes: 3}}
	for i, test := range []struct {
		b    []byte
		want linkNews
	}{
		{linkMessage(unix.RTM_NEWLINK, 0, 5, up, name, count), linkNews{changes: []linkChange{eth0}}},
		{linkMessage(unix.RTM_NEWLINK, 0, 5, unix.IFF_UP, name), linkNews{changes: []linkChange{{link: link{index: 5, name: "eth0", up: true}}}}},
		{linkMessage(unix.RTM_DELLINK, 0, 5, 0, name), linkNews{changes: []linkChange{{link: link{index: 5, name: "eth0"}, gone: true}}}},
		{linkMessage(unix.RTM_DELLINK, 0, 5, 0), linkNews{changes: []linkChange{{link: link{index: 5}, gone: true}}}},
		// A bridge tells of its port.
		{linkMessage(unix.RTM_DELLINK, unix.AF_BRIDGE, 5, up, name), linkNews{}},
		{linkMessage(unix.RTM_NEWLINK, 0, 5, up, count), linkNews{}}, // without a name
		{linkMessage(unix.RTM_NEWLINK, 0, -5, up, name), linkNews{}},
		{netlinkMessage(unix.RTM_NEWLINK, 0, 0, 0, 0), linkNews{}},
		{netlinkMessage(unix.RTM_NEWADDR, 0, 0, 0, 0, 0), linkNews{}},
		{netlinkMessage(unix.NLMSG_DONE, 7), linkNews{done: true, own: true}},
		{netlinkMessage(unix.NLMSG_DONE, 6), linkNews{}}, // of another dump
		{netlinkMessage(unix.NLMSG_ERROR, 6, binary.NativeEndian.AppendUint32(nil, uint32(0xfffffff0))...), linkNews{}},
		{nil, linkNews{}},
		{[]byte{1, 2, 3}, linkNews{}},
	} {
		if got := parseLinks(test.b, 7); fmt.Sprint(got) != fmt.Sprint(test.want) {
			t.Errorf("%d: %+v, want %+v", i, got, test.want)
		}
	}
	news := parseLinks(netlinkMessage(unix.NLMSG_ERROR, 7, binary.NativeEndian.AppendUint32(nil, uint32(0xfffffff0))...), 7)
	if news.err == nil {
		t.Error("a dump that is refused goes unnoticed")
	}
}

func FuzzNetlink(f *testing.F) {
	name := linkAttr(unix.IFLA_IFNAME, []byte("eth0\x00")...)
	f.Add(linkMessage(unix.RTM_NEWLINK, 0, 5, unix.IFF_UP, name))
	f.Add(append(linkMessage(unix.RTM_DELLINK, 0, 5, 0, name), netlinkMessage(unix.NLMSG_DONE, 7)...))
	f.Add(netlinkMessage(unix.NLMSG_ERROR, 7, 1, 0, 0, 0))
	f.Add(netlinkMessage(unix.RTM_NEWLINK, 0, 1, 2, 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		news := parseLinks(b, 7)
		for _, c := range news.changes {
			if c.index <= 0 || !c.gone && c.name == "" {
				t.Errorf("%+v", c)
			}
		}
		var l links
		l.apply(news.changes, time.Time{})
	})
}

// When the kernel has more news than room for them, all links are looked at
// again, and nothing that is there is taken for gone.
func TestLabLinksLost(t *testing.T) {
	netlab.Run(t, func(l *netlab.Lab) {
		local := l.Local()
		local.IP("link", "add", "stays", "index", "1000", "type", "veth", "peer", "name", "p0")
		local.IP("link", "add", "goes", "index", "1001", "type", "veth", "peer", "name", "p1")
		s, err := openLinks()
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		raw, err := s.(*netlinkLinks).f.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var known links
		news, err := s.read()
		if err != nil {
			t.Fatal(err)
		}
		known.apply(news, time.Time{})
		raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1) })
		for round := range 3 {
			local.IP("link", "add", "comes", "type", "veth", "peer", "name", "p2")
			for range 20 {
				local.IP("link", "set", "dev", "comes", "up")
				local.IP("link", "set", "dev", "comes", "down")
			}
			if round == 1 {
				local.IP("link", "del", "dev", "goes")
			}
			local.IP("link", "del", "dev", "comes")
			local.IP("link", "set", "dev", "stays", "alias", fmt.Sprint("round ", round))
			local.IP("link", "add", fmt.Sprint("last", round), "type", "veth", "peer", "name", fmt.Sprint("end", round))
			for known.index(fmt.Sprint("last", round)) == 0 {
				news, err := s.read()
				if err != nil {
					t.Fatal(err)
				}
				for _, i := range known.apply(news, time.Time{}) {
					if i == 1000 {
						t.Fatal("taken for gone")
					}
				}
			}
			if known.index("stays") != 1000 || (known.index("goes") == 0) != (round > 0) || known.index("comes") != 0 || known.index("p2") != 0 {
				t.Errorf("round %d: %v", round, known.known)
			}
		}
	})
}
