package netif

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// netlinkMessage lays out a message of rtnetlink(7).
func netlinkMessage(kind, flags uint16, seq, port uint32, data ...byte) []byte {
	b := ne.AppendUint32(nil, uint32(16+len(data)))
	b = ne.AppendUint16(b, kind)
	b = ne.AppendUint16(b, flags)
	b = ne.AppendUint32(b, seq)
	b = ne.AppendUint32(b, port)
	b = append(b, data...)
	return append(b, make([]byte, -len(b)&3)...)
}

// linkData lays out struct ifinfomsg and attributes.
func linkData(family byte, index int32, flags uint32, attrs ...[]byte) []byte {
	b := append([]byte{family, 0}, ne.AppendUint16(nil, 1)...)
	b = ne.AppendUint32(b, uint32(index))
	b = ne.AppendUint32(b, flags)
	b = ne.AppendUint32(b, 0)
	return slices.Concat(append([][]byte{b}, attrs...)...)
}

func uint32Attr(kind uint16, n uint32) []byte { return attribute(kind, ne.AppendUint32(nil, n)) }

// inet6Attrs is what IPv6 says of a link.
func inet6Attrs(flags uint32, disabled bool, stamp, reachable, retrans uint32) []byte {
	conf := make([]byte, 4*60)
	if disabled {
		ne.PutUint32(conf[4*devconfDisableIPv6:], 1)
	}
	cache := ne.AppendUint32(nil, 65535)
	for _, n := range []uint32{stamp, reachable, retrans} {
		cache = ne.AppendUint32(cache, n)
	}
	return slices.Concat(uint32Attr(unix.IFLA_INET6_FLAGS, flags), attribute(unix.IFLA_INET6_CONF, conf), attribute(unix.IFLA_INET6_CACHEINFO, cache))
}

func TestParseLink(t *testing.T) {
	name, count := attribute(unix.IFLA_IFNAME, []byte("eth0\x00")), uint32Attr(unix.IFLA_CARRIER_CHANGES, 3)
	six := inet6Attrs(ifReady|0x10, false, 100, 200, 300)
	inet := attribute(unix.AF_INET, []byte{1, 2, 3, 4})
	spec := func(families ...[]byte) []byte {
		return attribute(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, slices.Concat(families...))
	}
	up := uint32(unix.IFF_UP | unix.IFF_LOWER_UP | unix.IFF_MULTICAST)
	eth0 := Interface{Index: 5, Name: "eth0", Up: true, Carrier: true, Multicast: true, IPv6: true}
	with := func(f func(*Interface)) Interface { i := eth0; f(&i); return i }
	told := inet6{told: true, ready: true, stamp: 100, reachable: 200, retrans: 300}
	for i, test := range []struct {
		data []byte
		want link
		ok   bool
	}{
		{linkData(0, 5, up, name, count), link{Interface: eth0, carriers: 3}, true},
		{linkData(0, 5, unix.IFF_UP, name), link{Interface: Interface{Index: 5, Name: "eth0", Up: true, IPv6: true}}, true},
		{linkData(0, 1, up|unix.IFF_LOOPBACK, name), link{Interface: with(func(i *Interface) { i.Index, i.Loopback = 1, true })}, true},
		{linkData(0, 5, up, name, uint32Attr(unix.IFLA_MASTER, 7)), link{Interface: with(func(i *Interface) { i.Master = 7 })}, true},
		{linkData(0, 5, up, name, spec(inet, attribute(unix.AF_INET6, six))), link{Interface: eth0, inet6: told}, true},
		// IPv6 has left the interface.
		{linkData(0, 5, up, name, spec(inet)), link{Interface: with(func(i *Interface) { i.IPv6 = false })}, true},
		{linkData(0, 5, up, name, spec(attribute(unix.AF_INET6, six)), uint32Attr(unix.IFLA_MTU, 1280)), link{Interface: eth0, inet6: told}, true},
		{linkData(0, 5, up, name, spec(attribute(unix.AF_INET6, six)), uint32Attr(unix.IFLA_MTU, 1279)), link{Interface: with(func(i *Interface) { i.IPv6 = false }), inet6: told}, true},
		{
			linkData(0, 5, up, name, spec(attribute(unix.AF_INET6, inet6Attrs(0, true, 100, 200, 300)))),
			link{Interface: with(func(i *Interface) { i.IPv6, i.IPv6Disabled = false, true }), inet6: inet6{told: true, stamp: 100, reachable: 200, retrans: 300}},
			true,
		},
		// What IPv6 says itself.
		{linkData(unix.AF_INET6, 5, up, name, attribute(unix.IFLA_PROTINFO, six)), link{Interface: eth0, inet6: told}, true},
		// A bridge tells of its port.
		{linkData(unix.AF_BRIDGE, 5, up, name), link{}, false},
		{linkData(0, 5, up, count), link{Interface: with(func(i *Interface) { i.Name = "" }), carriers: 3}, false}, // without a name
		{linkData(0, -5, up, name), link{Interface: with(func(i *Interface) { i.Index = -5 })}, false},
		{make([]byte, 15), link{}, false},
		// Attributes that make no sense end what is read of them.
		{linkData(0, 5, up, name, []byte{3, 0, 0, 0}, count), link{Interface: eth0}, true},
		{linkData(0, 5, up, name, []byte{200, 0, 0, 0}, count), link{Interface: eth0}, true},
		{linkData(0, 5, up, name, attribute(unix.IFLA_CARRIER_CHANGES, []byte{1}), attribute(unix.IFLA_MTU, nil)), link{Interface: eth0}, true},
	} {
		got, _, ok := parseLink(message{kind: unix.RTM_NEWLINK, data: test.data})
		if ok != test.ok || got != test.want {
			t.Errorf("%d: %+v, %v, want %+v", i, got, ok, test.want)
		}
	}
	if _, _, ok := parseLink(message{kind: unix.RTM_DELLINK, data: linkData(0, 5, 0)}); !ok {
		t.Error("the end of a link needs no name")
	}
}

func TestRestarted(t *testing.T) {
	was := inet6{true, true, 100, 200, 300}
	for _, test := range []struct {
		is   inet6
		lost bool
		want bool
	}{
		{was, false, false},
		{was, true, false},
		{inet6{true, true, 101, 200, 300}, false, true},
		{inet6{true, false, 101, 200, 300}, false, false}, // not yet
		// A router advertises other times; the kernel varies one by itself.
		{inet6{true, true, 101, 200, 301}, false, false},
		{inet6{true, true, 101, 201, 300}, false, false},
		{inet6{true, true, 100, 201, 300}, true, false},
		{inet6{true, true, 101, 201, 300}, true, true},
	} {
		if got := test.is.restarted(was, test.lost); got != test.want {
			t.Errorf("%+v, %v: %v", test.is, test.lost, got)
		}
	}
	if (inet6{true, true, 101, 200, 300}).restarted(inet6{true, false, 100, 200, 300}, true) {
		t.Error("it had not begun")
	}
}

func TestParseAddress(t *testing.T) {
	data := func(index uint32, attrs ...[]byte) []byte {
		return slices.Concat(append([][]byte{ne.AppendUint32([]byte{unix.AF_INET, 24, 0, 0}, index)}, attrs...)...)
	}
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	local, address := attribute(unix.IFA_LOCAL, a.AsSlice()), attribute(unix.IFA_ADDRESS, b.AsSlice())
	for i, test := range []struct {
		data []byte
		want ownAddress
		ok   bool
	}{
		{data(5, address), ownAddress{addr: b, index: 5}, true},
		{data(5, address, local), ownAddress{addr: a, index: 5}, true},
		{data(5, local, address), ownAddress{addr: a, index: 5}, true},
		{data(5), ownAddress{index: 5}, false},
		{data(0, local), ownAddress{addr: a}, false},
		{data(5, attribute(unix.IFA_LOCAL, []byte{1, 2, 3})), ownAddress{index: 5}, false},
		{[]byte{1, 2, 3}, ownAddress{}, false},
	} {
		if got, ok := parseAddress(message{data: test.data}); ok != test.ok || got != test.want {
			t.Errorf("%d: %+v, %v", i, got, ok)
		}
	}
}

func TestParseRoute(t *testing.T) {
	data := func(length, kind byte, attrs ...[]byte) []byte {
		head := []byte{unix.AF_INET, length, 0, 0, unix.RT_TABLE_MAIN, 0, 0, kind, 0, 0, 0, 0}
		return slices.Concat(append([][]byte{head}, attrs...)...)
	}
	hop := func(index uint32, attrs ...byte) []byte {
		b := ne.AppendUint16(nil, uint16(8+len(attrs)))
		return append(ne.AppendUint32(append(b, 0, 0), index), attrs...)
	}
	for i, test := range []struct {
		data []byte
		want route
	}{
		{data(0, unix.RTN_UNICAST, uint32Attr(unix.RTA_OIF, 4), uint32Attr(unix.RTA_PRIORITY, 100)), route{unix.RTN_UNICAST, true, 100, []int{4}}},
		{data(24, unix.RTN_LOCAL, uint32Attr(unix.RTA_OIF, 1)), route{unix.RTN_LOCAL, false, 0, []int{1}}},
		{data(0, unix.RTN_UNICAST, attribute(unix.RTA_MULTIPATH, slices.Concat(hop(4, attribute(unix.RTA_GATEWAY, []byte{1, 2, 3, 4})...), hop(5)))), route{unix.RTN_UNICAST, true, 0, []int{4, 5}}},
		{data(0, unix.RTN_UNICAST, attribute(unix.RTA_MULTIPATH, append(hop(4), 7, 0, 0, 0, 9, 0, 0, 0))), route{unix.RTN_UNICAST, true, 0, []int{4}}},
		{data(0, unix.RTN_UNREACHABLE), route{unix.RTN_UNREACHABLE, true, 0, nil}},
	} {
		got, ok := parseRoute(message{data: test.data})
		if !ok || got.kind != test.want.kind || got.isDefault != test.want.isDefault || got.metric != test.want.metric || !slices.Equal(got.out, test.want.out) {
			t.Errorf("%d: %+v, want %+v", i, got, test.want)
		}
	}
	if _, ok := parseRoute(message{data: make([]byte, 11)}); ok {
		t.Error("too short for a route")
	}
}

// What is asked of the kernel, as linux/netlink.h and linux/rtnetlink.h have it.
func TestRequests(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the bytes below are those of a little-endian machine")
	}
	for _, test := range []struct {
		name string
		got  []byte
		want string
	}{
		{"all links", linksRequest(7), "28000000 1200 0103 07000000 00000000" + zeros(16) + "0800 1d00 08000000"},
		{"a link", linkRequest(7, 5), "28000000 1200 0100 07000000 00000000 00000000 05000000" + zeros(8) + "0800 1d00 08000000"},
		{"addresses", addressesRequest(unix.AF_INET6), "18000000 1600 0103 01000000 00000000 0a000000 00000000"},
		{"a route", routeRequest(netip.MustParseAddr("10.0.0.1")), "24000000 1a00 0100 01000000 00000000 02200000" + zeros(8) + "0800 0100 0a000001"},
		{"all routes", routesRequest(true), "1c000000 1a00 0103 01000000 00000000 0a000000" + zeros(8)},
	} {
		if want := unhex(t, test.want); !slices.Equal(test.got, want) {
			t.Errorf("%s: %x, want %x", test.name, test.got, want)
		}
	}
}

func FuzzNetlink(f *testing.F) {
	name := attribute(unix.IFLA_IFNAME, []byte("eth0\x00"))
	f.Add(netlinkMessage(unix.RTM_NEWLINK, 0, 7, 9, linkData(0, 5, unix.IFF_UP, name)...))
	f.Add(append(netlinkMessage(unix.RTM_DELLINK, 0, 0, 0, linkData(0, 5, 0, name)...), netlinkMessage(unix.NLMSG_DONE, 2, 7, 9)...))
	f.Add(netlinkMessage(unix.NLMSG_ERROR, 0, 7, 9, 1, 0, 0, 0))
	f.Add(netlinkMessage(unix.RTM_NEWLINK, 0, 0, 0, 1, 2, 3))
	f.Add(netlinkMessage(unix.RTM_NEWLINK, 0, 0, 0, linkData(0, 5, 0, name, attribute(unix.IFLA_AF_SPEC, attribute(unix.AF_INET6, inet6Attrs(1, true, 2, 3, 4))))...))
	f.Add(netlinkMessage(unix.RTM_NEWROUTE, 0, 0, 0, append(make([]byte, 12), attribute(unix.RTA_MULTIPATH, make([]byte, 9))...)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		var all batch
		all.add(b, 7, 9)
		for _, u := range all.updates {
			if u.Index <= 0 || !u.gone && !u.address && u.Name == "" {
				t.Errorf("%+v", u)
			}
		}
		for m := range messages(b) {
			parseRoute(m)
			m.failure()
		}
		for _, c := range make(links).apply(&all, true, true) {
			if !c.Moved && c.Index <= 0 {
				t.Errorf("%+v", c)
			}
		}
	})
}
