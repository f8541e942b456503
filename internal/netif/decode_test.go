package netif

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func zeros(n int) string { return strings.Repeat("00", n) }

// Messages of routing sockets, as the systems' headers lay them out: macOS'
// struct if_msghdr has 112 bytes, FreeBSD's 168; that of an address, 20 and
// addresses.
var routingMessages = []struct {
	name   string
	system string
	hex    string
	want   []hint
}{
	{"macOS up", "darwin", "7000 05 0e 00000000 43880000 0400 0000 06000602" + zeros(92), []hint{{index: 4, flags: true, up: true}}},
	{"macOS down", "darwin", "7000 05 0e 00000000 02880000 0c00 0000" + zeros(96), []hint{{index: 12, flags: true}}},
	{"macOS tells no carrier there", "darwin", "7000 05 0e 00000000 43880000 0400 0000 06000602 01" + zeros(91), []hint{{index: 4, flags: true, up: true}}},
	{"macOS, 258 bytes", "darwin", "0201 05 0e 00000000 43880000 0400 0000" + zeros(242), []hint{{index: 4, flags: true, up: true}}},
	{"macOS address", "darwin", "1400 05 0c 00000000 00000000 0400 0000 00000000", []hint{{}}},
	{"macOS address gone", "ios", "1400 05 0d 00000000 00000000 0400 0000 00000000", []hint{{}}},
	{"macOS RTM_IFINFO2", "darwin", "1000 05 12 00000000 00000000 0400 0000", nil},
	{"macOS has no announcements", "darwin", "1800 05 11 0400 656d3000000000000000000000000000 0100", nil},
	{
		"FreeBSD down, up, without a carrier, with one", "freebsd",
		"a800 05 0e 00000000 02880000 0200 0000 06000612 00" + zeros(147) +
			"a800 05 0e 00000000 43880000 0200 0000 06000612 00" + zeros(147) +
			"a800 05 0e 00000000 43880000 0200 0000 06000612 01" + zeros(147) +
			"a800 05 0e 00000000 43880000 0200 0000 06000612 02" + zeros(147),
		[]hint{
			{index: 2, flags: true},
			{index: 2, flags: true, up: true},
			{index: 2, flags: true, up: true, carrier: carrierOff},
			{index: 2, flags: true, up: true, carrier: carrierOn},
		},
	},
	{"DragonFly", "dragonfly", "a800 05 0e 00000000 43880000 0200 0000 06000612 01" + zeros(147), []hint{{index: 2, flags: true, up: true}}},
	{"FreeBSD arrival", "freebsd", "1800 05 11 0400 656d3000000000000000000000000000 0000", []hint{{}}},
	{"FreeBSD departure", "freebsd", "1800 05 11 0400 656d3000000000000000000000000000 0100", []hint{{index: 4, gone: true}}},
	{"a route", "freebsd", "1000 05 01 00000000 00000000 0400 0000", nil},
	{"a route's end", "darwin", "1000 05 02 00000000 00000000 0400 0000", nil},
	{"OpenBSD route", "openbsd", "1000 05 07 00000000 00000000 0400 0000", nil},
	{"NetBSD interface", "netbsd", "1000 05 14 00000000 00000000 0400 0000", []hint{{}}},
	{"OpenBSD what is RTM_IFINFO elsewhere", "openbsd", "a800 05 0e 00000000 43880000 0200 0000" + zeros(152), []hint{{}}},
	{"nothing", "freebsd", "", nil},
	{"short", "freebsd", "0e00 05", nil},
	{"a length of 0", "freebsd", "0000 05 0e 00000000 43880000 0400 0000", nil},
	{"a length of 3", "freebsd", "0300 05 0e 00000000 43880000 0400 0000", nil},
	{"longer than there is", "freebsd", "7000 05 0e 00000000 43880000 0400 0000", nil},
	{"without the link's state", "freebsd", "1400 05 0e 00000000 43880000 0400 0000 06000612", []hint{{index: 4, flags: true, up: true}}},
	{"too short for its type", "freebsd", "0c00 05 0e 00000000 43880000 1600 05 11 0400 656d30000000000000000000000000 0000", nil},
}

func TestParseRouting(t *testing.T) {
	for _, test := range routingMessages {
		b, format := unhex(t, test.hex), routingFormats[test.system]
		if got := parseRouting(b, binary.LittleEndian, format); !slices.Equal(got, test.want) {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
		// Whatever is cut off, what is whole stays.
		for n := range len(b) {
			got := parseRouting(b[:n:n], binary.LittleEndian, format)
			if len(got) > len(test.want) || !slices.Equal(got, test.want[:len(got)]) {
				t.Errorf("%s: the first %d bytes: %+v", test.name, n, got)
			}
		}
	}
	// The same in the other byte order.
	b := unhex(t, "0070 05 0e 00000000 00008843 0004 0000"+zeros(96))
	if got, want := parseRouting(b, binary.BigEndian, routingFormats["freebsd"]), []hint{{index: 4, flags: true, up: true}}; !slices.Equal(got, want) {
		t.Errorf("big-endian: %+v", got)
	}
}

func FuzzRouting(f *testing.F) {
	for _, test := range routingMessages {
		f.Add(unhex(f, test.hex), false, test.system)
	}
	f.Fuzz(func(t *testing.T, b []byte, big bool, system string) {
		var order binary.ByteOrder = binary.LittleEndian
		if big {
			order = binary.BigEndian
		}
		format := routingFormats[system]
		hints := parseRouting(b, order, format)
		if len(hints) > len(b)/4 {
			t.Errorf("%d hints in %d bytes", len(hints), len(b))
		}
		for _, h := range hints {
			if h.name != "" || h.gone && (h.flags || !format.announces) || h.carrier > carrierOn || h.carrier != 0 && system != "freebsd" {
				t.Errorf("%+v", h)
			}
		}
	})
}

// kernelEvent lays out struct kern_event_msg, with data behind it.
func kernelEvent(vendor, class, subclass, code uint32, data ...byte) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, uint32(24+len(data)))
	for _, n := range []uint32{vendor, class, subclass, 77, code} {
		b = le.AppendUint32(b, n)
	}
	return append(b, data...)
}

// eventData lays out struct net_event_data.
func eventData(name string, unit uint32) []byte {
	b := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, 2), unit)
	return append(b, append([]byte(name), make([]byte, 16-len(name))...)...)
}

func TestParseKernelEvents(t *testing.T) {
	en0, more := eventData("en", 0), append(eventData("bridge", 100), 1, 2, 3, 4)
	longest := eventData("abcdefghijklmnop", 4294967295)
	for i, test := range []struct {
		b    []byte
		want []hint
	}{
		{kernelEvent(1, 1, 2, 12, en0...), []hint{{name: "en0", carrier: carrierWent}}},
		{kernelEvent(1, 1, 2, 13, more...), []hint{{name: "bridge100", carrier: carrierCame}}},
		{kernelEvent(1, 1, 2, 11, en0...), []hint{{name: "en0", gone: true}}},
		{slices.Concat(kernelEvent(1, 1, 2, 12, en0...), kernelEvent(1, 1, 2, 13, en0...)), []hint{{name: "en0", carrier: carrierWent}, {name: "en0", carrier: carrierCame}}},
		{kernelEvent(1, 1, 2, 13, longest...), []hint{{name: "abcdefghijklmnop4294967295", carrier: carrierCame}}},
		{kernelEvent(1, 1, 2, 10, en0...), nil},
		{kernelEvent(1, 1, 1, 13, en0...), nil},
		{kernelEvent(1, 2, 2, 13, en0...), nil},
		{kernelEvent(2, 1, 2, 13, en0...), nil},
		{kernelEvent(1, 1, 2, 13, en0[:23]...), nil},
		{kernelEvent(1, 1, 2, 13), nil},
		{[]byte{23: 0, 0: 23}, nil},
		{make([]byte, 48), nil},
		{nil, nil},
	} {
		got := parseKernelEvents(test.b, binary.LittleEndian)
		if !slices.Equal(got, test.want) {
			t.Errorf("%d: %+v, want %+v", i, got, test.want)
		}
		for n := range len(test.b) {
			got := parseKernelEvents(test.b[:n:n], binary.LittleEndian)
			if len(got) > len(test.want) || !slices.Equal(got, test.want[:len(got)]) {
				t.Errorf("%d: the first %d bytes: %+v", i, n, got)
			}
		}
	}
	if siocSKEVFILT != 1<<31|12<<16|'e'<<8|2 {
		t.Errorf("SIOCSKEVFILT is %#x", uint32(siocSKEVFILT))
	}
}

func FuzzKernelEvents(f *testing.F) {
	f.Add(kernelEvent(1, 1, 2, 12, eventData("en", 0)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, h := range parseKernelEvents(b, binary.LittleEndian) {
			if h.name == "" || h.index != 0 || h.flags || h.gone == (h.carrier != 0) {
				t.Errorf("%+v", h)
			}
		}
	})
}

// The first bytes of MIB_IPINTERFACE_ROW: Family, padding to 8, InterfaceLuid,
// InterfaceIndex.
func TestRowInterface(t *testing.T) {
	b := unhex(t, "1700 ffff ffff ffff 0000000001600600 0c000000")
	if got := rowInterface((*[ipInterfaceRowIndex + 4]byte)(b), binary.LittleEndian); got != 12 {
		t.Error(fmt.Sprint(got))
	}
}
