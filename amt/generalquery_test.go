package amt

import (
	"testing"
	"time"

	"example.com/mcast/internal/amtrelay"
)

func TestGeneralQuery(t *testing.T) {
	captured := fromHex(t, "46000024456700000102f5690a010001e000000194040000 1110ecdb0000000002140000")
	if q, err := parseGeneralQuery(captured, false); err != nil || q.interval != 20*time.Second || q.robustness != 2 {
		t.Errorf("%+v, %v", q, err)
	}
	for _, ipv6 := range []bool{false, true} {
		for seconds, want := range map[int]int{0: 125, 1: 1, 20: 20, 127: 127, 128: 128, 200: 200, 1000: 992, 31743: 30720} {
			b := amtrelay.GeneralQuery(ipv6, seconds%8, time.Duration(seconds)*time.Second)
			q, err := parseGeneralQuery(append(b, 1, 2, 3), ipv6)
			robustness := seconds % 8
			if robustness == 0 {
				robustness = 2
			}
			if err != nil || q.interval != time.Duration(want)*time.Second || q.robustness != robustness {
				t.Errorf("%d s: %+v, %v", seconds, q, err)
			}
			if _, err := parseGeneralQuery(b, !ipv6); err == nil {
				t.Error("a query of the other family was taken")
			}
			for n := range b {
				if _, err := parseGeneralQuery(b[:n], ipv6); err == nil {
					t.Errorf("%d bytes were taken", n)
				}
				broken := append([]byte(nil), b...)
				broken[n] ^= 0x20
				// In IPv6 nothing covers traffic class, flow label, hop limit, and
				// what the hop-by-hop options say.
				if _, err := parseGeneralQuery(broken, ipv6); err == nil && (!ipv6 || n >= 48) {
					t.Errorf("byte %d changed: taken", n)
				}
			}
		}
	}
}

func FuzzGeneralQuery(f *testing.F) {
	for _, ipv6 := range []bool{false, true} {
		f.Add(amtrelay.GeneralQuery(ipv6, 2, 20*time.Second), ipv6)
	}
	f.Fuzz(func(t *testing.T, b []byte, ipv6 bool) {
		q, err := parseGeneralQuery(b, ipv6)
		if err == nil && (q.interval < time.Second || q.robustness < 1 || q.robustness > 7) {
			t.Fatalf("%+v", q)
		}
	})
}
