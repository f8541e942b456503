package netlab

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func ips(s ...string) (addrs []netip.Addr) {
	for _, a := range s {
		addrs = append(addrs, ip(a))
	}
	return addrs
}

// What Linux 6.18 sent, as a host and as a switch, and who sent it to whom.
var goldenFrames = []struct {
	name, frame string
	want        Report
}{
	{
		"IGMPv3 report", "01005e000016fe9d3e15ecb9080046c0003c000040000102f8960a4d0102e0000016940400002200c87e0000000204000001ef0102030a09090905000002e80102030a4d01010a090909",
		Report{Type: IGMPv3Report, From: ip("10.77.1.2"), To: ip("224.0.0.22"), Records: []Record{
			{ChangeToExcludeMode, ip("239.1.2.3"), ips("10.9.9.9")},
			{AllowNewSources, ip("232.1.2.3"), ips("10.77.1.1", "10.9.9.9")},
		}},
	},
	{
		"IGMPv3 block", "01005e000016fe9d3e15ecb9080046c0002c000040000102f8a60a4d0102e0000016940400002200dae60000000106000001e80102030a090909",
		Report{Type: IGMPv3Report, From: ip("10.77.1.2"), To: ip("224.0.0.22"), Records: []Record{
			{BlockOldSources, ip("232.1.2.3"), ips("10.9.9.9")},
		}},
	},
	{
		"IGMPv3 query", "01005e01020312ce891e0341080046c00028000040000102fa0b00000000e8010203940400001102ef68e8010203027d00010a090909",
		Report{Type: IGMPQuery, From: ip("0.0.0.0"), To: ip("232.1.2.3"), Query: &Query{3, ip("232.1.2.3"), ips("10.9.9.9"), 200 * time.Millisecond}},
	},
	{
		"IGMPv2 report", "01005e0102033ea738bb550e080046c00020000040000102e6c50a4d0201ef010203940400001600f8faef010203",
		Report{Type: IGMPv2Report, From: ip("10.77.2.1"), To: ip("239.1.2.3"), Records: []Record{{ModeIsExclude, ip("239.1.2.3"), nil}}},
	},
	{
		"IGMPv2 leave", "01005e0000023ea738bb550e080046c00020000040000102f7c70a4d0201e0000002940400001700f7faef010203",
		Report{Type: IGMPv2Leave, From: ip("10.77.2.1"), To: ip("224.0.0.2"), Records: []Record{{ChangeToIncludeMode, ip("239.1.2.3"), nil}}},
	},
	{
		"IGMPv2 query", "01005e00000192e1838e7c10080046c00020000040000102041700000000e000000194040000110aeef500000000",
		Report{Type: IGMPQuery, From: ip("0.0.0.0"), To: ip("224.0.0.1"), Query: &Query{2, ip("0.0.0.0"), nil, time.Second}},
	},
	{
		"MLDv2 report", "333300000016fe9d3e15ecb986dd6000000000680001fe80000000000000fc9d3efffe15ecb9ff0200000000000000000000000000163a000502000001008f006bf80000000204000001ff1e000000000000000000000000000320010db800000000000000000000000905000002ff3e0000000000000000000080000001fd77000100000000000000000000000120010db8000000000000000000000009",
		Report{Type: MLDv2Report, From: ip("fe80::fc9d:3eff:fe15:ecb9"), To: ip("ff02::16"), Records: []Record{
			{ChangeToExcludeMode, ip("ff1e::3"), ips("2001:db8::9")},
			{AllowNewSources, ip("ff3e::8000:1"), ips("fd77:1::1", "2001:db8::9")},
		}},
	},
	{
		"MLDv2 query", "33338000000112ce891e034186dd6000000000340001fe8000000000000004d9bcfffeb9afa9ff3e00000000000000000000800000013a000502000000008200df2200f80000ff3e0000000000000000000080000001027d000120010db8000000000000000000000009",
		Report{Type: MLDQuery, From: ip("fe80::4d9:bcff:feb9:afa9"), To: ip("ff3e::8000:1"), Query: &Query{2, ip("ff3e::8000:1"), ips("2001:db8::9"), 248 * time.Millisecond}},
	},
	{
		"MLDv1 report", "3333000000033ea738bb550e86dd6000000000200001fe800000000000003ca738fffebb550eff1e00000000000000000000000000033a000502000001008300b67700000000ff1e0000000000000000000000000003",
		Report{Type: MLDv1Report, From: ip("fe80::3ca7:38ff:febb:550e"), To: ip("ff1e::3"), Records: []Record{{ModeIsExclude, ip("ff1e::3"), nil}}},
	},
	{
		"MLDv1 done", "3333000000023ea738bb550e86dd6000000000200001fe800000000000003ca738fffebb550eff0200000000000000000000000000023a000502000001008400b59400000000ff1e0000000000000000000000000003",
		Report{Type: MLDv1Done, From: ip("fe80::3ca7:38ff:febb:550e"), To: ip("ff02::2"), Records: []Record{{ChangeToIncludeMode, ip("ff1e::3"), nil}}},
	},
	{
		"MLDv1 query", "33330000000192e1838e7c1086dd6000000000200001fe8000000000000060c986fffe922e58ff0200000000000000000000000000013a000502000000008200678c03e8000000000000000000000000000000000000",
		Report{Type: MLDQuery, From: ip("fe80::60c9:86ff:fe92:2e58"), To: ip("ff02::1"), Query: &Query{1, ip("::"), nil, time.Second}},
	},
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseFrame(t *testing.T) {
	for _, test := range goldenFrames {
		t.Run(test.name, func(t *testing.T) {
			b := unhex(t, test.frame)
			f, err := ParseFrame(b)
			if err != nil || f.Report == nil || f.Flow != nil || !reflect.DeepEqual(*f.Report, test.want) {
				t.Fatalf("%v, %v\nwant %v", f.Report, err, test.want)
			}
			if s := f.Report.String(); !strings.Contains(s, test.want.Type.String()) {
				t.Error(s)
			}
			// Short frames are filled up on a real wire.
			f, err = ParseFrame(append(b, 0xff, 0xff, 0xff))
			if err != nil || f.Report == nil || !reflect.DeepEqual(*f.Report, test.want) {
				t.Errorf("with padding: %v, %v", f.Report, err)
			}
			for i := range b {
				if f, err := ParseFrame(b[:i:i]); !errors.Is(err, errTruncated) {
					t.Errorf("%d of %d bytes: %v, %v", i, len(b), f, err)
				}
			}
			b[len(b)-1] ^= 1
			if f, err := ParseFrame(b); !errors.Is(err, errChecksum) {
				t.Errorf("with a wrong checksum: %v, %v", f.Report, err)
			}
		})
	}
}

// withChecksum puts the checksum of an IGMP message into it.
func withChecksum(b ...byte) []byte {
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

func TestParseIGMPMessage(t *testing.T) {
	query := func(version int, max time.Duration) *Report {
		return &Report{Type: IGMPQuery, Query: &Query{Version: version, Group: ip("0.0.0.0"), MaxResponse: max}}
	}
	tests := []struct {
		name string
		b    []byte
		want *Report
	}{
		{"v1 query", withChecksum(0x11, 0, 0, 0, 0, 0, 0, 0), query(1, 0)},
		{"v2 query", withChecksum(0x11, 255, 0, 0, 0, 0, 0, 0), query(2, 25500*time.Millisecond)},
		// RFC 3376 section 4.1.1: (mant | 0x10) << (exp + 3)
		{"v3 query, 127", withChecksum(0x11, 127, 0, 0, 0, 0, 0, 0, 2, 125, 0, 0), query(3, 12700*time.Millisecond)},
		{"v3 query, 128", withChecksum(0x11, 128, 0, 0, 0, 0, 0, 0, 2, 125, 0, 0), query(3, 12800*time.Millisecond)},
		{"v3 query, 255", withChecksum(0x11, 255, 0, 0, 0, 0, 0, 0, 2, 125, 0, 0), query(3, 3174400*time.Millisecond)},
		{"v1 report", withChecksum(0x12, 0, 0, 0, 239, 1, 1, 1), &Report{Type: IGMPv1Report, Records: []Record{{ModeIsExclude, ip("239.1.1.1"), nil}}}},
		{
			"v3 report with auxiliary data", withChecksum(0x22, 0, 0, 0, 0, 0, 0, 2, 3, 1, 0, 0, 239, 1, 1, 1, 9, 9, 9, 9, 1, 0, 0, 1, 232, 1, 1, 1, 10, 0, 0, 1),
			&Report{Type: IGMPv3Report, Records: []Record{{ChangeToIncludeMode, ip("239.1.1.1"), nil}, {ModeIsInclude, ip("232.1.1.1"), ips("10.0.0.1")}}},
		},
		{"DVMRP", withChecksum(0x13, 1, 0, 0, 0, 0, 0, 0), nil},
	}
	for _, test := range tests {
		if r, err := parseIGMPMessage(test.b); err != nil || !reflect.DeepEqual(r, test.want) {
			t.Errorf("%s: %v, %v, want %v", test.name, r, err, test.want)
		}
	}
	for name, b := range map[string][]byte{
		"v3 query of 8 to 12 bytes": withChecksum(0x11, 1, 0, 0, 0, 0, 0, 0, 2, 125),
		"source that is not there":  withChecksum(0x11, 1, 0, 0, 0, 0, 0, 0, 2, 125, 0, 1),
		"record that is not there":  withChecksum(0x22, 0, 0, 0, 0, 0, 0, 1),
		"auxiliary data":            withChecksum(0x22, 0, 0, 0, 0, 0, 0, 1, 3, 1, 0, 0, 239, 1, 1, 1),
		"sources":                   withChecksum(0x22, 0, 0, 0, 0, 0, 0, 1, 3, 0, 255, 255, 239, 1, 1, 1),
	} {
		if r, err := parseIGMPMessage(b); !errors.Is(err, errTruncated) {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
}

func TestParseUDP(t *testing.T) {
	const (
		ethernet = "01005e0102030a0000000001"
		ipv4     = "0800" + "45000020000000000411000" + "00a000001"
	)
	flow := func(s, g string) *Flow { return &Flow{ip(s), netip.MustParseAddrPort(g)} }
	tests := []struct {
		name, frame string
		want        *Flow
	}{
		{"IPv4", ethernet + ipv4 + "e8010203" + "c0001388000c0000" + "61626364", flow("10.0.0.1", "232.1.2.3:5000")},
		{"IPv4 first fragment", ethernet + "0800" + "45000020000020000411" + "0000" + "0a000001" + "e8010203" + "c0001388000c0000" + "61626364", flow("10.0.0.1", "232.1.2.3:5000")},
		{"IPv4 second fragment", ethernet + "0800" + "45000020000000010411" + "0000" + "0a000001" + "e8010203" + "c0001388000c0000" + "61626364", nil},
		{"IPv4 unicast", ethernet + ipv4 + "0a000002" + "c0001388000c0000" + "61626364", nil},
		{"IPv6", ethernet + "86dd" + "60000000000c1104" + "20010db8000000000000000000000001" + "ff3e0000000000000000000080000001" + "c0001388000c0000" + "61626364", flow("2001:db8::1", "[ff3e::8000:1]:5000")},
		{"IPv6 first fragment", ethernet + "86dd" + "6000000000142c04" + "20010db8000000000000000000000001" + "ff3e0000000000000000000080000001" + "1100000100000007" + "c0001388000c0000" + "61626364", flow("2001:db8::1", "[ff3e::8000:1]:5000")},
		{"IPv6 second fragment", ethernet + "86dd" + "6000000000142c04" + "20010db8000000000000000000000001" + "ff3e0000000000000000000080000001" + "1100000900000007" + "c0001388000c0000" + "61626364", nil},
		{"IPv6 neighbour discovery", ethernet + "86dd" + "6000000000083aff" + "20010db8000000000000000000000001" + "ff020000000000000000000000000001" + "8700000000000000", nil},
		{"ARP", ethernet + "0806" + "0001", nil},
	}
	for _, test := range tests {
		f, err := ParseFrame(unhex(t, test.frame))
		if err != nil || f.Report != nil || !reflect.DeepEqual(f.Flow, test.want) {
			t.Errorf("%s: %v, %v, want %v", test.name, f.Flow, err, test.want)
		}
	}
}

func TestRecordIs(t *testing.T) {
	r := Record{AllowNewSources, ip("232.1.1.1"), ips("10.0.0.2", "10.0.0.1")}
	if !r.Is(AllowNewSources, ip("232.1.1.1"), ips("10.0.0.1", "10.0.0.2")...) {
		t.Error("the order of sources matters")
	}
	if r.Is(AllowNewSources, ip("232.1.1.1"), ip("10.0.0.1")) || r.Is(BlockOldSources, r.Group, r.Sources...) || r.Is(r.Type, ip("232.1.1.2"), r.Sources...) {
		t.Error("it is anything")
	}
	if got, want := r.String(), "ALLOW_NEW_SOURCES 232.1.1.1 [10.0.0.2 10.0.0.1]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := RecordType(7).String()+ReportType(0).String(), "RecordType(7)ReportType(0)"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func FuzzParseFrame(f *testing.F) {
	for _, test := range goldenFrames {
		f.Add(unhex(f, test.frame))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := ParseFrame(b)
		if err != nil && (frame.Report != nil || frame.Flow != nil) {
			t.Errorf("%v and %v", frame, err)
		}
		if r := frame.Report; r != nil {
			if (r.Query == nil) == (r.Type == IGMPQuery || r.Type == MLDQuery) {
				t.Errorf("%v without a query, or with one", r.Type)
			}
			for _, rec := range r.Records {
				if rec.Group.Is4() != r.From.Is4() {
					t.Errorf("%v from %v", rec, r.From)
				}
			}
			_ = r.String()
		}
		// The checksum keeps a fuzzer out of what it guards.
		if len(b) >= 8 && len(b) < 1<<16 {
			parseIGMPMessage(withChecksum(append([]byte{b[0], b[1], 0, 0}, b[4:]...)...))
			records(b[8:], int(b[6])<<8|int(b[7]), 16, addr6)
			addrs(b[8:], int(b[6])<<8|int(b[7]), 16, addr6)
		}
	})
}
