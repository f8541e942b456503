//go:build !plan9

package kerneltest

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"
)

func TestWindows(t *testing.T) {
	k := Windows()
	s := k.Socket(false)
	expect(t, setFull(s, 2, g4, true, sa4...), 10022)
	expect(t, ask(s, joinOp, 9, g4, netip.Addr{}), 10049)
	k.SetUp(2, false)
	expect(t, ask(s, joinOp, 2, g4, netip.Addr{}), 10049)
	k.AddInterface(3, Interface{Name: "eth1", Up: true, Addrs: []netip.Addr{addr("169.254.1.1")}})
	expect(t, ask(s, joinOp, 3, g4, netip.Addr{}), 10049)
	k.SetUp(2, true)
	expect(t, ask(s, joinOp, 2, g4, netip.Addr{}), 0)
	if h := k.Harmed(); h != nil {
		t.Errorf("harmed %q", h)
	}
	expect(t, setFull(s, 2, g4, true, sa4[:2]...), 0)
	in := bytesAt(16, 0, "ef010203", 4, "00000002", 12, "01000000")
	out := make([]byte, 24)
	n, err := s.Ioctl(sioGetMulticastFilter, in, out)
	if err != nil || hex.EncodeToString(out[:n]) != "ef0102030000000201000000020000000a000001" {
		t.Errorf("get: %x %v", out[:n], err)
	}
	delivers(t, s, 2, g4, sa4[0], false)
	delivers(t, s, 2, g4, sa4[2], true)
	delivers(t, k.Socket(false), 2, g4, sa4[2], false)
	expect(t, setFull(s, 2, g4, false), 0)
	expectState(t, s, "-")
	k.FilterNeedsJoin = false
	expect(t, setFull(s, 2, g4, false, sa4...), 0)
	expectState(t, s, "I123")
	k.NoIoctl = true
	expect(t, setFull(s, 2, g4, false, sa4...), 10045)
	expect(t, s.Setsockopt(0, 41, bytesAt(136, 8, "02000000ef010203")), 10049)
	expectHarm(t, k, "interface 0")
}

// TestWindowsIoctl: another number for an unknown interface, and another length.
func TestWindowsIoctl(t *testing.T) {
	k := Windows()
	k.UnknownInterface = 10022
	k.IoctlLength = func(n int) int { return n - 4 }
	s := k.Socket(false)
	expect(t, ask(s, joinOp, 9, g4, none), 10022)
	expect(t, ask(s, joinOp, 2, g4, none), 0)
	expect(t, setFull(s, 2, g4, true, sa4[:2]...), 0)
	in := bytesAt(16, 0, "ef010203", 4, "00000002", 12, "02000000")
	out := make([]byte, 24)
	if n, err := s.Ioctl(sioGetMulticastFilter, in, out); n != 20 || err != nil || !bytes.Equal(out[20:], []byte{10, 0, 0, 2}) {
		t.Errorf("%d %v %x", n, err, out)
	}
	_, err := s.Ioctl(sioGetMulticastFilter, bytesAt(16, 0, "ef010203", 4, "00000009"), out)
	expect(t, err, 10022)
}

// TestWindowsUpAgain: the membership stays, and the network is not told of it.
func TestWindowsUpAgain(t *testing.T) {
	k := Windows()
	s := k.Socket(false)
	held := func(want bool) {
		t.Helper()
		if m := s.Memberships()[0]; m.Held != want {
			t.Errorf("held: %v", m.Held)
		}
	}
	expect(t, ask(s, joinOp, 2, g4, netip.Addr{}), 0)
	held(true)
	k.SetUp(2, false)
	held(true)
	eth0 := k.Interfaces[2]
	eth0.Up = true
	k.AddInterface(2, eth0)
	held(false)
	delivers(t, s, 2, g4, sa4[0], true)
	expect(t, ask(s, leaveOp, 2, g4, netip.Addr{}), 0)
	expect(t, ask(s, joinOp, 2, g4, netip.Addr{}), 0)
	held(true)
	k.RemoveInterface(2)
	if ms := s.Memberships(); ms != nil {
		t.Errorf("memberships %v", ms)
	}
}
