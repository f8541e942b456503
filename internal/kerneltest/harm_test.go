//go:build !plan9

package kerneltest

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// none is no source.
var none netip.Addr

// TestHarms does each kind of harm once, and beside it what looks the same and does
// none.
func TestHarms(t *testing.T) {
	quiet := func(k *Kernel) *Kernel {
		k.Reports = false
		return k
	}
	small := func(k *Kernel) *Kernel {
		k.MaxGroup = 2
		return quiet(k)
	}
	ok := func(t *testing.T, errs ...error) {
		t.Helper()
		for i, err := range errs {
			if err != nil {
				t.Errorf("request %d: %s", i, answer(err))
			}
		}
	}
	// crowd is a socket that has all the sources that a group may have.
	crowd := func(t *testing.T, k *Kernel, group netip.Addr, sources []netip.Addr) {
		t.Helper()
		s := k.Socket(group.Is6())
		ok(t, ask(s, joinSourceOp, 2, group, sources[0]), ask(s, joinSourceOp, 2, group, sources[1]))
	}
	anew := func(k *Kernel, index int) {
		i := k.Interfaces[index]
		k.RemoveInterface(index)
		k.AddInterface(index, i)
	}
	for _, tt := range []struct {
		name string
		k    *Kernel
		do   func(*testing.T, *Kernel)
		want []HarmKind
	}{
		{"the sources of a group on an interface are all taken, then another group", small(Darwin()), func(t *testing.T, k *Kernel) {
			crowd(t, k, g4, sa4)
			s := k.Socket(false)
			expect(t, ask(s, joinSourceOp, 2, g4, sa4[2]), bsdENOSPC)
			ask(s, joinOp, 3, addr("239.9.9.9"), none)
			expect(t, ask(k.Socket(false), joinOp, 3, g4, none), 5) // nobody is there to answer
		}, []HarmKind{Panic}},
		{"the same, IPv6", small(Darwin()), func(t *testing.T, k *Kernel) {
			crowd(t, k, g6, sa6)
			s := k.Socket(true)
			expect(t, ask(s, joinSourceOp, 2, g6, sa6[2]), bsdENOSPC)
			ask(s, joinOp, 3, g6, none)
		}, []HarmKind{Panic}},
		{"the same, and it closes", small(Darwin()), func(t *testing.T, k *Kernel) {
			crowd(t, k, g4, sa4)
			s := k.Socket(false)
			expect(t, ask(s, joinSourceOp, 2, g4, sa4[2]), bsdENOSPC)
			s.Close()
			ok(t, ask(k.Socket(false), joinOp, 3, g4, none))
		}, nil},
		{"the same on a member", small(Darwin()), func(t *testing.T, k *Kernel) {
			s := k.Socket(false)
			ok(t, ask(s, joinSourceOp, 2, g4, sa4[0]), ask(s, joinSourceOp, 2, g4, sa4[1]))
			expect(t, ask(s, joinSourceOp, 2, g4, sa4[2]), bsdENOSPC)
			ok(t, ask(s, joinOp, 3, g4, none))
		}, nil},
		{"all taken", small(FreeBSD()), func(t *testing.T, k *Kernel) {
			crowd(t, k, g4, sa4)
			expect(t, ask(k.Socket(false), joinSourceOp, 2, g4, sa4[2]), bsdENOSPC)
		}, []HarmKind{Undefined}},

		{"leave and join", Darwin(), func(t *testing.T, k *Kernel) {
			s := k.Socket(false)
			ok(t, ask(s, joinOp, 2, g4, none))
			k.RunTimers()
			ok(t, ask(s, leaveOp, 2, g4, none), ask(s, joinOp, 2, g4, none))
			k.Advance(5 * time.Second)
			if asks, answers := k.Asked(2, g4); asks != "EXCLUDE" || answers {
				t.Errorf("asks for %s, answers queries: %v", asks, answers)
			}
			if m := s.Memberships()[0]; m.Held {
				t.Errorf("%v is held", m)
			}
		}, []HarmKind{Spoiled}},
		{"leave and join of another socket, IPv6", Darwin(), func(t *testing.T, k *Kernel) {
			s := k.Socket(true)
			ok(t, ask(s, joinSourceOp, 2, g6, sa6[0]))
			k.RunTimers()
			ok(t, ask(s, leaveOp, 2, g6, none), ask(k.Socket(true), joinSourceOp, 2, g6, sa6[0]))
		}, []HarmKind{Spoiled}},
		{"close and join", Darwin(), func(t *testing.T, k *Kernel) {
			s := k.Socket(false)
			ok(t, ask(s, joinSourceOp, 2, g4, sa4[0]))
			k.RunTimers()
			s.Close()
			k.Advance(k.TimerDelay - 1)
			ok(t, ask(k.Socket(false), joinSourceOp, 2, g4, sa4[0]))
		}, []HarmKind{Spoiled}},
		{"leave, a pause, and join", Darwin(), func(t *testing.T, k *Kernel) {
			s := k.Socket(false)
			ok(t, ask(s, joinOp, 2, g4, none))
			k.RunTimers()
			ok(t, ask(s, leaveOp, 2, g4, none))
			k.Advance(k.TimerDelay)
			ok(t, ask(s, joinOp, 2, g4, none))
			k.Advance(5 * time.Second)
			if asks, answers := k.Asked(2, g4); asks != "EXCLUDE" || !answers || !s.Memberships()[0].Held {
				t.Errorf("asks for %s, answers queries: %v", asks, answers)
			}
		}, nil},
		{"leave and join while another socket stays, and elsewhere", Darwin(), func(t *testing.T, k *Kernel) {
			s, other := k.Socket(false), k.Socket(false)
			ok(t, ask(s, joinOp, 2, g4, none), ask(other, joinOp, 2, g4, none), ask(other, joinOp, 3, g4, none))
			k.RunTimers()
			ok(t, ask(s, leaveOp, 2, g4, none), ask(s, joinOp, 2, g4, none), ask(s, joinOp, 1, g4, none))
			ok(t, ask(s, leaveOp, 1, g4, none), ask(s, joinOp, 1, g4, none)) // loopback is never reported
		}, nil},

		{"the last source", quiet(Darwin()), func(t *testing.T, k *Kernel) {
			s := k.Socket(false)
			ok(t, ask(s, joinSourceOp, 2, g4, sa4[0]), ask(s, leaveSourceOp, 2, g4, sa4[0]))
		}, []HarmKind{LeftBehind}},
		{"INCLUDE() by a full filter, then close", quiet(FreeBSD()), func(t *testing.T, k *Kernel) {
			s := k.Socket(true)
			ok(t, ask(s, joinOp, 2, g6, none), setFull(s, 2, g6, false))
			s.Close()
		}, []HarmKind{LeftBehind, LeftBehind}},
		{"a filter without sources on one with sources", quiet(Darwin()), func(t *testing.T, k *Kernel) {
			s := k.Socket(false)
			ok(t, ask(s, joinOp, 2, g4, none), ask(s, blockOp, 2, g4, sa4[0]), setFull(s, 2, g4, true))
		}, []HarmKind{Hidden}},

		{"by an address that nobody has", quiet(Darwin()), func(t *testing.T, k *Kernel) {
			s := k.Socket(false)
			ok(t, ask(s, joinOp, 2, g4, none), s.Setsockopt(0, 13, bytesAt(8, 0, "ef010203", 4, "c0000263")))
		}, []HarmKind{Unaimed}},
		{"by an index that nobody has", quiet(Darwin()), func(t *testing.T, k *Kernel) {
			s := k.Socket(false)
			ok(t, ask(s, joinOp, 2, g4, none), s.Setsockopt(0, 72, bytesAt(12, 0, "ef010203", 4, "0a000001", 8, "00000063")))
		}, []HarmKind{Unaimed}},
		{"by no address, of an interface that has gone", quiet(Darwin()), func(t *testing.T, k *Kernel) {
			s := k.Socket(false)
			ok(t, ask(s, joinOp, 2, g4, none))
			k.RemoveInterface(2)
			ok(t, s.Setsockopt(0, 13, bytesAt(8, 0, "ef010203")))
		}, nil},
		{"index 0", Linux(), func(t *testing.T, k *Kernel) {
			ok(t, ask(k.Socket(true), joinOp, 0, g6, none))
		}, []HarmKind{Unaimed}},
		{"no interface", Windows(), func(t *testing.T, k *Kernel) {
			ok(t, ask(k.Socket(false), joinOp, 0, g4, none))
		}, []HarmKind{Unaimed}},

		{"close of an index that is used again", Linux(), func(t *testing.T, k *Kernel) {
			a, b := k.Socket(false), k.Socket(false)
			ok(t, ask(a, joinOp, 2, g4, none))
			anew(k, 2)
			ok(t, ask(b, joinOp, 2, g4, none))
			if !b.Memberships()[0].Held || a.Memberships()[0].Held {
				t.Error("who holds it?")
			}
			a.Close()
			delivers(t, b, 2, g4, sa4[0], false)
			if b.Memberships()[0].Held {
				t.Error("b holds what was taken from it")
			}
		}, []HarmKind{Stolen}},
		{"leave of an index that is used again, IPv6", Linux(), func(t *testing.T, k *Kernel) {
			a, b := k.Socket(true), k.Socket(true)
			ok(t, ask(a, joinSourceOp, 2, g6, sa6[0]))
			anew(k, 2)
			ok(t, ask(b, joinSourceOp, 2, g6, sa6[0]), ask(a, leaveOp, 2, g6, none))
			delivers(t, b, 2, g6, sa6[0], false)
		}, []HarmKind{Stolen}},
		{"a source more on an index that is used again", Linux(), func(t *testing.T, k *Kernel) {
			a, b := k.Socket(false), k.Socket(false)
			ok(t, ask(a, joinSourceOp, 2, g4, sa4[0]))
			anew(k, 2)
			ok(t, ask(b, joinSourceOp, 2, g4, sa4[1]), ask(a, joinSourceOp, 2, g4, sa4[2]))
		}, []HarmKind{Stolen}},
		{"leave after the MTU was too small for IPv6", Linux(), func(t *testing.T, k *Kernel) {
			a, b := k.Socket(true), k.Socket(true)
			ok(t, ask(a, joinOp, 2, g6, none))
			k.SetMTU(2, 1200)
			k.SetMTU(2, 1500)
			ok(t, ask(b, joinOp, 2, g6, none), ask(a, leaveOp, 2, g6, none))
			delivers(t, b, 2, g6, sa6[0], false)
		}, []HarmKind{Stolen}},
		{"leave of an index that is used again, before anybody joins there", Linux(), func(t *testing.T, k *Kernel) {
			a, b := k.Socket(false), k.Socket(false)
			ok(t, ask(a, joinOp, 2, g4, none))
			anew(k, 2)
			ok(t, ask(a, leaveOp, 2, g4, none), ask(b, joinOp, 2, g4, none), ask(a, joinOp, 2, g4, none))
			a.Close()
			delivers(t, b, 2, g4, sa4[0], true)
		}, nil},

		{"leave by an address", Linux(), func(t *testing.T, k *Kernel) {
			s := k.Socket(false)
			ok(t, ask(s, joinOp, 2, g4, none), s.Setsockopt(0, 36, bytesAt(8, 0, "ef010203", 4, "c0000201")))
		}, []HarmKind{Leaked}},
		{"a list longer than the memory", Linux(), func(t *testing.T, k *Kernel) {
			s := k.Socket(false)
			ok(t, ask(s, joinOp, 2, g4, none))
			_, err := s.Getsockopt(0, 48, bytesAt(144, 0, "02000000", 8, "02000000ef010203", 140, "01000000"))
			ok(t, err)
		}, []HarmKind{Overrun}},
		{"JoinSource on EXCLUDE()", Linux(), func(t *testing.T, k *Kernel) {
			s := k.Socket(false)
			ok(t, ask(s, joinOp, 2, g4, none), ask(s, joinSourceOp, 2, g4, sa4[0]))
		}, []HarmKind{WrongMode}},
		{"MCAST_JOIN_GROUP for IPv4", Windows(), func(t *testing.T, k *Kernel) {
			ok(t, k.Socket(false).Setsockopt(0, 41, bytesAt(136, 0, "02000000", 8, "02000000ef010203")))
		}, []HarmKind{Unreliable}},
		{"UDP_RECV_MAX_COALESCED_SIZE", Windows(), func(t *testing.T, k *Kernel) {
			ok(t, k.Socket(false).Setsockopt(17, 3, bytesAt(4, 0, "ffff0000")), k.Socket(false).Setsockopt(17, 3, bytesAt(4)))
		}, []HarmKind{Glued}},
	} {
		t.Run(tt.k.sys.name+" "+tt.name, func(t *testing.T) {
			tt.do(t, tt.k)
			var got []HarmKind
			for _, h := range tt.k.Harms() {
				got = append(got, h.Kind)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("harms %q, want %q", tt.k.Harmed(), tt.want)
			}
			if len(got) > 0 && !strings.HasPrefix(tt.k.Harmed()[0], string(got[0])+": ") {
				t.Errorf("Harmed: %q", tt.k.Harmed())
			}
		})
	}
}
