package amt

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func fromHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// parseAndAppend parses a message of any type, and writes it again.
func parseAndAppend(b []byte) ([]byte, error) {
	kind, err := messageType(b)
	if err != nil {
		return nil, err
	}
	var m interface{ append([]byte) []byte }
	switch kind {
	case typeDiscovery:
		m, err = parseDiscovery(b)
	case typeAdvertisement:
		m, err = parseAdvertisement(b)
	case typeRequest:
		m, err = parseRequest(b)
	case typeQuery:
		m, err = parseQuery(b)
	case typeUpdate:
		m, err = parseUpdate(b)
	case typeTeardown:
		m, err = parseTeardown(b)
	case typeData:
		packet, err := parseData(b)
		return appendData(nil, packet), err
	default:
		return nil, errType
	}
	if err != nil {
		return nil, err
	}
	return m.append(nil), nil
}

// What was captured between a relay and gateways in C.
var captured = []struct{ name, hex string }{
	{"discovery", "01 000000 0792ca4a"},
	{"advertisement", "02 000000 0792ca4a c6336401"},
	{"advertisement IPv6", "02 000000 0792ca4a 20010db8000000000000000000000001"},
	{"request", "03 00 0000 4ec3f300"},
	{"request MLD", "03 01 0000 4ec3f300"},
	{"query", "04 00 c379c0f6eda0 4ec3f300 46000024456700000102f5690a010001e000000194040000 1110ecdb0000000002140000"},
	{"query with address", "04 03 c379c0f6eda0 4ec3f300 46000024456700000102f5690a010001e000000194040000 1110ecdb0000000002140000 c47e 000000000000000000000000c63364fe"},
	{"update", "05 00 c379c0f6eda0 4ec3f300 46c0002c00004000010203f600000000e000001694040000 2200e5f7000000010500000 1e80101010a010002"},
	{"data", "06 00 45000000"},
	{"teardown", "07 00 caac4d47694d 40541c69 c47e 000000000000000000000000c63364fe"},
}

func TestMessages(t *testing.T) {
	for _, c := range captured {
		b := fromHex(t, c.hex)
		got, err := parseAndAppend(b)
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s: %x, %v; want %x", c.name, got, err, b)
		}
		if _, err := parseAndAppend(append([]byte{b[0] | 0x10}, b[1:]...)); !errors.Is(err, errVersion) {
			t.Errorf("%s of version 1: %v", c.name, err)
		}
		least := map[byte]int{typeQuery: 12, typeUpdate: 12, typeData: 2}[b[0]]
		if least == 0 {
			least = len(b)
			if _, err := parseAndAppend(append(bytes.Clone(b), 0)); !errors.Is(err, errLength) {
				t.Errorf("%s and a byte: %v", c.name, err)
			}
		}
		for n := range least {
			if b[0] == typeAdvertisement && n == 12 {
				continue
			}
			if _, err := parseAndAppend(b[:n]); !errors.Is(err, errLength) {
				t.Errorf("%d bytes of %s: %v", n, c.name, err)
			}
		}
	}
}

func TestGatewayFields(t *testing.T) {
	q, err := parseQuery(fromHex(t, captured[6].hex))
	if err != nil {
		t.Fatal(err)
	}
	if want := netip.MustParseAddrPort("198.51.100.254:50302"); q.gateway != want || !q.limit || len(q.packet) != 36 {
		t.Errorf("%v, limit %v, %d bytes; want %v, true, 36", q.gateway, q.limit, len(q.packet), want)
	}
	g := netip.MustParseAddrPort("[2001:db8::1]:4000")
	if got := parseGateway(appendGateway(nil, g)); got != g {
		t.Errorf("%v; want %v", got, g)
	}
	// Too short for the fields that the flag promises.
	if _, err := parseQuery(append([]byte{typeQuery, queryGateway}, make([]byte, 27)...)); !errors.Is(err, errLength) {
		t.Errorf("no room for the fields: %v", err)
	}
}

func FuzzMessage(f *testing.F) {
	for _, c := range captured {
		f.Add(fromHex(f, c.hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		again, err := parseAndAppend(b)
		if err != nil {
			return
		}
		// Reserved bits are ignored and sent as 0.
		if len(again) != len(b) {
			t.Fatalf("%x became %x", b, again)
		}
		twice, err := parseAndAppend(again)
		if err != nil || !bytes.Equal(twice, again) {
			t.Fatalf("%x became %x, %v", again, twice, err)
		}
	})
}
