//go:build !plan9

package kerneltest

import (
	"encoding/hex"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

func TestDarwinByteCounts(t *testing.T) {
	k := Darwin()
	k.Reports, k.ByteCounts = false, 2
	s := k.Socket(false)
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[0]), 0)
	for range 2 {
		expect(t, ask(s, joinSourceOp, 2, g4, sa4[1]), 12)
		expectState(t, s, "I1")
	}
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[1]), 0)
	expect(t, ask(s, leaveSourceOp, 2, g4, sa4[0]), 12)
	expectState(t, s, "I12")
	k.ByteCountStep = 8
	expect(t, ask(s, leaveSourceOp, 2, g4, sa4[0]), 16)
	expect(t, ask(s, leaveSourceOp, 2, g4, sa4[0]), 0)
	expectState(t, s, "I2")
	expect(t, setFull(s, 2, g4, false, sa4[0], sa4[2]), 8+8*3) // two new, one gone
	expectState(t, s, "I2")

	// Not on loopback, not for IPv6.
	expect(t, ask(s, joinSourceOp, 1, g4, sa4[0]), 0)
	expect(t, ask(s, joinSourceOp, 1, g4, sa4[1]), 0)
	s = k.Socket(true)
	expect(t, ask(s, joinSourceOp, 2, g6, sa6[0]), 0)
	expect(t, ask(s, joinSourceOp, 2, g6, sa6[1]), 0)
	if h := k.Harmed(); h != nil {
		t.Errorf("harmed %q", h)
	}
}

func TestBSDFullFilter(t *testing.T) {
	for _, k := range []*Kernel{Darwin(), FreeBSD()} {
		k.Reports = false
		s := k.Socket(false)
		expect(t, setFull(s, 2, g4, true, sa4...), bsdEADDRNOTAVAIL)
		expect(t, setFull(s, 0, g4, true, sa4...), bsdEADDRNOTAVAIL)
		expect(t, ask(s, joinSourceOp, 2, g4, sa4[0]), 0)
		expect(t, setFull(s, 2, g4, true, sa4[1], sa4[1]), 0)
		expectState(t, s, "E2")

		// Without sources only the mode is set, and the old entries lie in wait.
		expect(t, setFull(s, 2, g4, true), 0)
		expectHarm(t, k, "does not reset")
		expectState(t, s, "E2")
		expect(t, setFull(s, 2, g4, false), 0)
		expectState(t, s, "I")
		expect(t, ask(s, joinSourceOp, 2, g4, sa4[1]), bsdEADDRNOTAVAIL)

		many := make([]netip.Addr, 129)
		for i := range many {
			many[i] = netip.AddrFrom4([4]byte{10, 1, 0, byte(i)})
		}
		expect(t, setFull(s, 2, g4, false, many...), bsdENOBUFS)
		expect(t, setFull(s, 2, g4, false, many[:128]...), bsdENOSPC) // the old one counts
		expect(t, setFull(s, 2, g4, false, many[:127]...), 0)
		expect(t, setFull(s, 2, g4, false, many[1:129]...), bsdENOSPC)
		for i := range 512 {
			want := syscall.Errno(0)
			if i >= 512-127 {
				want = bsdENOSPC
			}
			expect(t, ask(s, joinSourceOp, 2, g4, netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})), want)
		}

		// On macOS the number copied comes back, on FreeBSD the total.
		total := map[*system]string{darwin: "02000000", freebsd: "00020000"}[k.sys]
		v := bytesAt(152+2*128, 0, "02000000", 8, "02000000", 16, "10020000ef010203")
		n, err := s.Getsockopt(0, 74, v)
		if err != nil || n != len(v) || hex.EncodeToString(v[:12]) != "0200000001000000"+total ||
			hex.EncodeToString(v[152:160]) != "100200000a010000" {
			t.Errorf("get: %d %v %x", n, err, v)
		}
	}
}

func TestBSDLimits(t *testing.T) {
	for _, k := range []*Kernel{Darwin(), FreeBSD()} {
		s := k.Socket(true)
		for i := range 4096 {
			want := syscall.Errno(0)
			if i == 4095 {
				want = map[*system]syscall.Errno{darwin: bsdETOOMANYREFS, freebsd: bsdENOMEM}[k.sys]
			}
			b := g6.As16()
			b[13], b[14] = byte(i>>8), byte(i)
			expect(t, ask(s, joinOp, 2, netip.AddrFrom16(b), netip.Addr{}), want)
		}
		expect(t, ask(s, joinSourceOp, 3, g6, g6), bsdEINVAL) // a multicast source
	}
}

// TestDarwinMapped: an IPv6 request for an IPv4 group is an IPv4 one.
func TestDarwinMapped(t *testing.T) {
	k := Darwin()
	s := k.Socket(true)
	mapped := func(index string) []byte {
		return bytesAt(20, 10, "ffff ef010203", 16, index)
	}
	expect(t, s.Setsockopt(41, 12, mapped("03000000")), 0)
	if ms := s.Memberships(); len(ms) != 1 || ms[0].Interface != 3 || ms[0].Group != g4 {
		t.Errorf("memberships %v", ms)
	}
	expect(t, s.Setsockopt(41, 12, mapped("09000000")), bsdEADDRNOTAVAIL)
	expect(t, s.Setsockopt(41, 12, mapped("00000000")), 0) // the route's interface
	expectHarm(t, k, "interface 0")
	expect(t, s.Setsockopt(41, 13, mapped("03000000")), 0)
	if ms := s.Memberships(); len(ms) != 1 || ms[0].Interface != 2 {
		t.Errorf("memberships %v", ms)
	}
	expect(t, FreeBSD().Socket(true).Setsockopt(41, 12, mapped("03000000")), bsdEINVAL)
}

func TestDarwinInterfaceGone(t *testing.T) {
	k := Darwin()
	s := k.Socket(false)
	expect(t, ask(s, joinOp, 2, g4, netip.Addr{}), 0)
	k.RemoveInterface(2)
	expect(t, ask(s, leaveOp, 2, g4, netip.Addr{}), bsdEADDRNOTAVAIL)
	expect(t, ask(s, joinOp, 2, g4, netip.Addr{}), bsdEADDRNOTAVAIL)
	expectState(t, s, "E")
	expect(t, s.Setsockopt(0, 13, bytesAt(8, 0, "ef010203")), 0)
	expectState(t, s, "-")
	if h := k.Harmed(); h != nil {
		t.Errorf("harmed %q", h)
	}
	expect(t, ask(s, joinOp, 3, g4, netip.Addr{}), 0)
	expect(t, s.Setsockopt(0, 13, bytesAt(8, 0, "ef010203")), 0)
	expectHarm(t, k, "names no interface")
}

func TestDarwinLastSource(t *testing.T) {
	k := Darwin()
	s := k.Socket(false)
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[0]), 0)
	expect(t, ask(s, leaveSourceOp, 2, g4, sa4[0]), 0)
	expectHarm(t, k, "leaves INCLUDE() behind")
	expectState(t, s, "I")
	expect(t, ask(s, leaveOp, 2, g4, netip.Addr{}), 0)
	expectHarm(t, k, "other processes")
}

func TestDarwinDelivery(t *testing.T) {
	k := Darwin()
	a, b, c := k.Socket(false), k.Socket(true), k.Socket(true)
	expect(t, ask(a, joinOp, 2, g4, netip.Addr{}), 0)
	expect(t, ask(a, blockOp, 2, g4, sa4[0]), 0)
	expect(t, ask(b, joinSourceOp, 2, g6, sa6[0]), 0)
	delivers(t, a, 2, g4, sa4[0], true) // blocked, and delivered
	delivers(t, a, 3, g4, sa4[0], false)
	delivers(t, b, 2, g6, sa6[0], true)
	delivers(t, b, 2, g6, sa6[1], false)
	delivers(t, c, 2, g6, sa6[1], true) // before its first multicast option
	expect(t, ask(c, joinOp, 3, g6, netip.Addr{}), 0)
	expect(t, ask(c, leaveOp, 3, g6, netip.Addr{}), 0)
	delivers(t, c, 2, g6, sa6[1], false)
	k.DeliversBlocked = false
	delivers(t, a, 2, g4, sa4[0], false)
}

// TestDarwinByteCountsLeave shows what a byte count leaves on the wire: the network is
// asked for a source that no socket has.
func TestDarwinByteCountsLeave(t *testing.T) {
	k := Darwin()
	s := k.Socket(false)
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[0]), 0)
	k.RunTimers()
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[1]), syscall.Errno(12))
	expectState(t, s, "I1")
	if asks, answers := k.Asked(2, g4); asks != "INCLUDE 10.0.0.1 10.0.0.2" || !answers {
		t.Errorf("asks for %s, answers queries: %v", asks, answers)
	}
	k.RunTimers()
	if sent := k.Sent(); len(sent) != 2 || sent[1].String() != "2 ALLOW 239.1.2.3 10.0.0.2" {
		t.Errorf("sent %v", sent)
	}
	s.Close()
	k.Advance(10 * time.Second)
	if asks, answers := k.Asked(2, g4); asks != "nothing" || answers {
		t.Errorf("after close it asks for %s, answers queries: %v", asks, answers)
	}
	if asks, _ := k.Asked(9, g4); asks != "nothing" {
		t.Errorf("an interface that is not there asks for %s", asks)
	}
}
