package main

import (
	"net/netip"
	"time"

	"example.com/mcast/examples/internal/mpegts"
	"example.com/mcast/examples/internal/rtp"
)

const (
	// A packet that comes later than that behind its successors is lost.
	reorderPackets = 128
	reorderTime    = 100 * time.Millisecond

	// Another sender takes over when the one that is followed is silent for that
	// long: two at once would be mixed up, which nobody can play.
	takeOver = 500 * time.Millisecond
)

// A stream turns the datagrams of a channel into what its viewers get: without
// RTP headers, in order, each once, from one sender.
type stream struct {
	hand func(payload []byte)

	started bool
	sender  sender
	heard   time.Time // the last datagram of it
	order   rtp.Reorderer
	next    uint16 // what RTP number comes next
	counts  streamCounts
	packets mpegts.Counter
}

// A sender is who sends a stream: of RTP that is a number in its header, so that
// two machines may send the same one.
type sender struct {
	rtp  bool
	ssrc uint32
	from netip.AddrPort
}

// streamCounts are what was seen of a stream.
type streamCounts struct {
	from      netip.Addr // who sends it
	rtp, ts   bool       // what it is
	lost      uint64     // RTP packets
	lostTS    uint64     // TS packets, by their continuity counters
	late      uint64     // RTP packets that came too late
	duplicate uint64
	others    uint64 // datagrams of other senders
}

func newStream(hand func(payload []byte)) *stream {
	s := &stream{hand: hand}
	s.order = rtp.Reorderer{Packets: reorderPackets, Wait: reorderTime}
	return s
}

// datagram takes one. Its bytes are the caller's again afterwards.
func (s *stream) datagram(b []byte, from netip.AddrPort, now time.Time) {
	ts := mpegts.Valid(b)
	var h rtp.Header
	isRTP := false
	if !ts {
		var payload []byte
		if h, payload, isRTP = rtp.Parse(b); isRTP {
			ts = mpegts.Valid(payload)
			isRTP = ts || h.Type == rtp.PayloadTS
		}
	}
	who := sender{from: from}
	if isRTP {
		who = sender{rtp: true, ssrc: h.SSRC}
	}
	if s.started && who != s.sender {
		if now.Sub(s.heard) < takeOver {
			s.counts.others++
			return
		}
		s.order.Flush(s.release)
		s.started = false
	}
	if !s.started {
		s.started, s.sender = true, who
		s.next = h.Seq
		s.packets = mpegts.Counter{}
		s.counts.rtp, s.counts.ts = isRTP, ts
	}
	s.heard, s.counts.from = now, from.Addr()
	s.counts.ts = s.counts.ts || ts
	if !isRTP {
		s.pass(b)
		return
	}
	// The whole packet waits its turn, so that its number is there when it comes.
	s.order.Push(h, b, now, s.release)
	s.counts.late, s.counts.duplicate = s.order.Late, s.order.Duplicate
}

// expire hands over what has waited long enough for a packet that is missing.
func (s *stream) expire(now time.Time) { s.order.Expire(now, s.release) }

// release takes an RTP packet whose turn it is.
func (s *stream) release(packet []byte) {
	h, payload, _ := rtp.Parse(packet)
	const most = 3000 // what RFC 3550 appendix A.1 takes for a gap
	if gap := h.Seq - s.next; gap < most {
		s.counts.lost += uint64(gap)
	}
	s.next = h.Seq + 1
	s.pass(payload)
}

func (s *stream) pass(payload []byte) {
	if len(payload) == 0 {
		return
	}
	if mpegts.Valid(payload) {
		before := s.packets.Lost
		s.packets.Count(payload)
		s.counts.lostTS += s.packets.Lost - before
	}
	s.hand(payload)
}
