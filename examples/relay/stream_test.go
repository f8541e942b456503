package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/mcast/examples/internal/mpegts"
	"example.com/mcast/examples/internal/rtp"
)

// tsPacket is a packet of a transport stream, with a number to be found again.
func tsPacket(pid uint16, n int) []byte {
	b := make([]byte, mpegts.Size)
	copy(b, []byte{0x47, byte(pid >> 8), byte(pid), 0x10 | byte(n&15), byte(n >> 8), byte(n)})
	return b
}

func rtpPacket(ssrc uint32, seq int, payload []byte) []byte {
	return append(rtp.Header{Type: rtp.PayloadTS, Seq: uint16(seq), SSRC: ssrc}.Append(nil), payload...)
}

var (
	alice = netip.MustParseAddrPort("10.0.0.1:4000")
	bob   = netip.MustParseAddrPort("10.0.0.2:4000")
	start = time.Unix(1_000_000_000, 0)
)

// played collects what a stream hands out.
type played struct {
	*stream
	got []string
	now time.Time
}

func newPlayed() *played {
	p := &played{now: start}
	p.stream = newStream(func(b []byte) {
		if mpegts.Valid(b) {
			p.got = append(p.got, fmt.Sprint(int(b[4])<<8|int(b[5])))
		} else {
			p.got = append(p.got, string(b))
		}
	})
	return p
}

func (p *played) send(from netip.AddrPort, b []byte) {
	p.datagram(b, from, p.now)
	clear(b) // it is the reader's
	p.now = p.now.Add(time.Millisecond)
}

func (p *played) want(t *testing.T, want string, counts streamCounts) {
	t.Helper()
	if got := strings.Join(p.got, " "); got != want {
		t.Errorf("handed out %s, want %s", got, want)
	}
	if p.counts != counts {
		t.Errorf("counts %+v, want %+v", p.counts, counts)
	}
}

func TestStreamRaw(t *testing.T) {
	p := newPlayed()
	for _, n := range []int{1, 2, 5, 6} {
		p.send(alice, tsPacket(100, n))
	}
	p.want(t, "1 2 5 6", streamCounts{from: alice.Addr(), ts: true, lostTS: 2})
}

func TestStreamRTP(t *testing.T) {
	p := newPlayed()
	for _, n := range []int{65534, 0, 65535, 1, 1, 4, 3, 0} {
		p.send(alice, rtpPacket(7, n, tsPacket(100, n&0xff)))
	}
	want := streamCounts{from: alice.Addr(), rtp: true, ts: true, duplicate: 2}
	p.want(t, "254 255 0 1", want)
	p.now = p.now.Add(reorderTime)
	p.expire(p.now) // 2 does not come any more
	want.lost, want.lostTS = 1, 1
	p.want(t, "254 255 0 1 3 4", want)
	p.send(alice, rtpPacket(7, 2, tsPacket(100, 2)))
	want.late = 1
	p.want(t, "254 255 0 1 3 4", want)
}

// More than the bound is not waited for.
func TestStreamBound(t *testing.T) {
	p := newPlayed()
	p.send(alice, rtpPacket(7, 0, []byte("x")))
	var want []string
	for n := 2; n < 4+reorderPackets; n++ {
		p.datagram(rtpPacket(7, n, fmt.Append(nil, n)), alice, p.now)
		want = append(want, fmt.Sprint(n))
	}
	if len(p.got) < 2 {
		t.Errorf("%d packets wait for one", reorderPackets+2)
	}
	p.expire(p.now.Add(reorderTime))
	if !slices.Equal(p.got[1:], want) || p.counts.lost != 1 {
		t.Errorf("handed out %q, %d lost", p.got, p.counts.lost)
	}
}

// Two machines may send one RTP stream: what one loses the other has.
func TestStreamTwice(t *testing.T) {
	p := newPlayed()
	for n := range 6 {
		if n != 2 {
			p.send(alice, rtpPacket(7, n, tsPacket(100, n)))
		}
		if n != 4 {
			p.send(bob, rtpPacket(7, n, tsPacket(100, n)))
		}
	}
	p.want(t, "0 1 2 3 4 5", streamCounts{from: bob.Addr(), rtp: true, ts: true, duplicate: 4})
}

// Of two senders one is followed, until it is silent.
func TestStreamSenders(t *testing.T) {
	p := newPlayed()
	p.send(alice, tsPacket(100, 1))
	p.send(bob, tsPacket(100, 9))
	p.send(alice, tsPacket(100, 2))
	p.send(bob, rtpPacket(7, 1, tsPacket(100, 10)))
	p.want(t, "1 2", streamCounts{from: alice.Addr(), ts: true, others: 2})
	p.now = p.now.Add(takeOver)
	p.send(bob, rtpPacket(7, 1, tsPacket(100, 10)))
	p.send(bob, rtpPacket(7, 2, tsPacket(100, 11)))
	p.want(t, "1 2 10 11", streamCounts{from: bob.Addr(), rtp: true, ts: true, others: 2})
	p.send(bob, rtpPacket(8, 500, tsPacket(100, 12)))
	p.now = p.now.Add(takeOver)
	p.send(bob, rtpPacket(8, 500, tsPacket(100, 3))) // another stream of the same machine: nothing is lost
	p.want(t, "1 2 10 11 3", streamCounts{from: bob.Addr(), rtp: true, ts: true, others: 3})
}

// What a stream is: a datagram that only looks like RTP is left as it is.
func TestStreamOther(t *testing.T) {
	p := newPlayed()
	like := string(rtp.Header{Type: 96, Seq: 1}.Append(nil)) + "text"
	p.send(alice, []byte(like))
	p.send(alice, []byte("text"))
	p.want(t, like+" text", streamCounts{from: alice.Addr()})
	p = newPlayed()
	p.send(alice, append(rtp.Header{Type: 96, Seq: 1}.Append(nil), tsPacket(100, 1)...)) // a type of its own, but TS
	p.send(alice, rtpPacket(0, 2, nil))
	p.want(t, "1", streamCounts{from: alice.Addr(), rtp: true, ts: true})
}

func FuzzStream(f *testing.F) {
	f.Add(rtpPacket(7, 1, tsPacket(1, 1)), uint8(3))
	f.Add(tsPacket(1, 1), uint8(12))
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		in, out := 0, 0
		s := newStream(func(b []byte) { out += len(b) })
		now := start
		for len(b) > 0 {
			n := min(len(b), int(cut)+1)
			s.datagram(b[:n], alice, now)
			in += n
			b = b[n:]
			now = now.Add(reorderTime / 3)
		}
		s.expire(now.Add(time.Hour))
		if out > in {
			t.Fatalf("%d bytes in, %d out", in, out)
		}
	})
}
