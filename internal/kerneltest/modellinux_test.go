//go:build !plan9

package kerneltest

import (
	"net/netip"
	"testing"
)

func TestLinuxDelivery(t *testing.T) {
	k := Linux()
	a, b, six := k.Socket(false), k.Socket(false), k.Socket(true)
	expect(t, ask(a, joinSourceOp, 2, g4, sa4[0]), 0)
	delivers(t, a, 2, g4, sa4[0], true)
	delivers(t, a, 2, g4, sa4[1], false)
	delivers(t, b, 2, g4, sa4[0], true) // what another socket joined
	delivers(t, b, 2, g4, sa4[1], false)
	delivers(t, b, 3, g4, sa4[0], false)
	delivers(t, six, 2, g4, sa4[0], false) // starts with IP_MULTICAST_ALL 0
	expect(t, b.Setsockopt(0, 49, bytesAt(4)), 0)
	delivers(t, b, 2, g4, sa4[0], false)

	c, d := k.Socket(true), k.Socket(true)
	expect(t, ask(c, joinOp, 2, g6, netip.Addr{}), 0)
	delivers(t, d, 2, g6, sa6[0], true)
	expect(t, d.Setsockopt(41, 29, bytesAt(4)), 0)
	delivers(t, d, 2, g6, sa6[0], false)
	expect(t, ask(d, joinOp, 3, g6, netip.Addr{}), 0)
	delivers(t, d, 2, g6, sa6[0], true) // inet6_mc_check has no interface
	k.NoIPv6MulticastAll = true
	expect(t, d.Setsockopt(41, 29, bytesAt(4)), 92)
	a.Close()
	delivers(t, six, 2, g4, sa4[0], false)
}

func TestLinuxDownAndUp(t *testing.T) {
	k := Linux()
	s := k.Socket(false)
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[0]), 0)
	k.SetUp(2, false)
	delivers(t, s, 2, g4, sa4[0], false)
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[1]), 0)
	k.SetUp(2, true)
	delivers(t, s, 2, g4, sa4[0], true)
	delivers(t, s, 2, g4, sa4[1], false) // lost, while getsockopt looks right
	expectState(t, s, "I12")
	expect(t, setFull(s, 2, g4, false, sa4[0], sa4[1]), 0)
	delivers(t, s, 2, g4, sa4[1], false)
	expect(t, ask(s, leaveOp, 2, g4, netip.Addr{}), 0)
	for _, a := range sa4[:2] {
		expect(t, ask(s, joinSourceOp, 2, g4, a), 0)
		delivers(t, s, 2, g4, a, true)
	}
}

func TestLinuxSameIndexAgain(t *testing.T) {
	k := Linux()
	s := k.Socket(false)
	eth0 := k.Interfaces[2]
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[0]), 0)
	k.RemoveInterface(2)
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[1]), 19)
	k.AddInterface(2, eth0)
	expectState(t, s, "I1")
	delivers(t, s, 2, g4, sa4[0], false) // the socket is a member, the device is not
	expect(t, setFull(s, 2, g4, false, sa4[1]), 3)
	expect(t, ask(s, leaveOp, 2, g4, netip.Addr{}), 0)
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[0]), 0)
	delivers(t, s, 2, g4, sa4[0], true)
}

func TestLinuxHarm(t *testing.T) {
	k := Linux()
	s := k.Socket(false)
	expect(t, ask(s, joinOp, 0, g4, netip.Addr{}), 0)
	expectHarm(t, k, "index 0")
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[0]), 0)
	expectHarm(t, k, "other mode")
	expectState(t, s, "I1")
	v := bytesAt(144, 0, "02000000", 8, "02000000ef010203", 140, "01000000")
	if n, err := s.Getsockopt(0, 48, v); n != 144 || err != nil {
		t.Errorf("get: %d %v", n, err)
	}
	expectHarm(t, k, "past the end")
	k.Route = 0
	expect(t, ask(s, joinOp, 0, addr("239.9.9.9"), netip.Addr{}), 19)

	// Leaving by an address that has gone: the membership outlives the socket.
	b := k.Socket(false)
	mreq := bytesAt(8, 0, "ef010204", 4, "c0000201")
	expect(t, s.Setsockopt(0, 35, mreq), 0)
	eth0 := k.Interfaces[2]
	eth0.Addrs = nil
	k.AddInterface(2, eth0)
	expect(t, s.Setsockopt(0, 36, mreq), 0)
	expectHarm(t, k, "leaks")
	s.Close()
	delivers(t, b, 2, addr("239.1.2.4"), sa4[0], true)
}

func TestLinuxMemory(t *testing.T) {
	// The membership is made, its list is not.
	k := Linux()
	k.ListFailures = 1
	s := k.Socket(false)
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[0]), 105)
	expectState(t, s, "I")
	expect(t, ask(s, leaveOp, 2, g4, netip.Addr{}), 0)

	k.MaxMemberships = 1 << 20
	for n := 0; ; n++ {
		if err := ask(s, joinSourceOp, 2, netip.AddrFrom4([4]byte{232, 1, byte(n >> 8), byte(n)}), sa4[0]); err != nil {
			expect(t, err, 105)
			if n != 1170 { // observed, with net.core.optmem_max at 131072
				t.Errorf("%d memberships", n)
			}
			break
		}
	}
}

// TestLinuxHeld follows Membership.Held through what a Linux device forgets.
func TestLinuxHeld(t *testing.T) {
	held := func(s *Socket, want bool) {
		t.Helper()
		if got := s.Memberships()[0].Held; got != want {
			t.Errorf("held: %v, want %v\n%s", got, want, s.Log())
		}
	}
	k := Linux()
	s := k.Socket(true)
	expect(t, ask(s, joinSourceOp, 2, g6, sa6[0]), 0)
	held(s, true)
	k.SetIPv6(2, false)
	delivers(t, s, 2, g6, sa6[0], false)
	held(s, true)
	expect(t, ask(s, joinSourceOp, 2, g6, sa6[1]), 0)
	held(s, false)
	k.SetIPv6(2, true)
	delivers(t, s, 2, g6, sa6[0], true)
	delivers(t, s, 2, g6, sa6[1], false)
	held(s, false)
	expect(t, ask(s, leaveOp, 2, g6, none), 0)
	expect(t, ask(s, joinSourceOp, 2, g6, sa6[1]), 0)
	held(s, true)
	k.SetMTU(2, 1279)
	held(s, false)
	expect(t, ask(s, joinSourceOp, 2, g6, sa6[0]), 19)
	expect(t, ask(k.Socket(true), joinOp, 2, g6, none), 22)
	k.SetMTU(2, 1280)
	held(s, false)
	delivers(t, s, 2, g6, sa6[1], false)
	k.SetMTU(9, 1500) // there is no such interface
	if h := k.Harmed(); h != nil {
		t.Errorf("harmed %q", h)
	}
}
