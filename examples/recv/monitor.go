package main

import (
	"bufio"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/meter"
	"example.com/mcast/examples/internal/numbered"
	"example.com/mcast/examples/internal/rtp"
)

// Counts are what is counted of all streams.
type counts struct {
	datagrams, bytes      uint64
	lost, late, duplicate int64 // in a second, < 0 if missing ones came
	tsLost                uint64
	dropped, filtered     uint64
	numbers, ts           bool // there were datagrams with numbers, packets of transport streams
}

func (c counts) plus(b counts) counts {
	c.datagrams += b.datagrams
	c.bytes += b.bytes
	c.lost += b.lost
	c.late += b.late
	c.duplicate += b.duplicate
	c.tsLost += b.tsLost
	c.numbers, c.ts = c.numbers || b.numbers, c.ts || b.ts
	return c
}

func (c counts) minus(b counts) counts {
	c.datagrams -= b.datagrams
	c.bytes -= b.bytes
	c.lost -= b.lost
	c.late -= b.late
	c.duplicate -= b.duplicate
	c.tsLost -= b.tsLost
	c.dropped -= b.dropped
	c.filtered -= b.filtered
	return c
}

// A streamKey is a sender's stream to one group.
type streamKey struct {
	group    mcast.Group
	port     int
	source   netip.AddrPort
	numbered bool
	id       uint32 // if numbered
}

// A stream is what came of it.
type stream struct {
	meter.Meter
	ttlMin, ttlMax int
	order          rtp.Reorderer // with -rtp
	before         counts        // when the second began
}

func (s *stream) counts() counts {
	missing, known := s.Missing()
	return counts{
		datagrams: s.Datagrams, bytes: s.Bytes, numbers: known, ts: s.TS.Packets > 0, tsLost: s.TS.Lost,
		lost: int64(missing.Lost), late: int64(missing.Late), duplicate: int64(missing.Duplicate),
	}
}

// maxStreams keeps a network full of senders from filling the memory. Streams
// beyond it are in the totals only.
const maxStreams = 10000

// A monitor counts what all sockets receive, and writes the payloads.
type monitor struct {
	conns  []conn
	show   *display
	enough chan struct{} // closed when limit datagrams are there
	limit  uint64        // 0: none
	rtp    bool          // take off RTP headers of what is written

	mu      sync.Mutex
	output  *bufio.Writer // or nil
	start   time.Time
	total   counts
	streams map[streamKey]*stream

	lap     time.Time // the second began
	before  counts    // the totals then
	numbers bool      // since then there were datagrams with numbers
	ts      bool      // and packets of transport streams
	sources map[netip.Addr]bool
}

func newMonitor(conns []conn, o options, output io.Writer, show *display) *monitor {
	now := time.Now()
	m := &monitor{
		conns: conns, show: show, enough: make(chan struct{}), limit: o.count, rtp: o.rtp,
		streams: map[streamKey]*stream{}, start: now, lap: now, sources: map[netip.Addr]bool{},
	}
	if output != nil {
		m.output = bufio.NewWriterSize(output, 1<<18)
	}
	return m
}

// note counts datagrams and writes their payloads.
func (m *monitor) note(ms []mcast.Message) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range ms {
		if m.limit > 0 && m.total.datagrams == m.limit {
			break
		}
		m.count(&ms[i])
		if m.limit > 0 && m.total.datagrams == m.limit {
			close(m.enough)
		}
	}
	if m.output != nil {
		return m.output.Flush()
	}
	return nil
}

func (m *monitor) count(d *mcast.Message) {
	b := d.Buf[:d.N]
	h, _, ok := numbered.Parse(b)
	k := streamKey{d.Group, d.Port, d.Source, ok, h.Stream}
	s := m.streams[k]
	if s == nil {
		if h.End {
			return // of a stream that was over before
		}
		s = &stream{ttlMin: 255, order: rtp.Reorderer{Packets: 64, Wait: 100 * time.Millisecond}}
		if len(m.streams) < maxStreams {
			m.streams[k] = s
		}
	}
	arrived := d.Time
	if arrived.IsZero() {
		arrived = time.Now()
	}
	was := s.counts()
	_, ended := s.Ended()
	x := s.Count(b, arrived)
	is := s.counts()
	m.total = m.total.plus(is.minus(was)) // so that streams beyond maxStreams are in it
	m.numbers, m.ts = m.numbers || is.numbers, m.ts || is.ts
	if x.End {
		if !ended {
			m.show.ended(newStreamReport(k, s, is))
		}
		return
	}
	s.ttlMin, s.ttlMax = min(s.ttlMin, d.HopLimit), max(s.ttlMax, d.HopLimit)
	m.sources[d.Source.Addr()] = true
	if m.output != nil {
		m.write(s, x, arrived)
	}
}

// write writes what a datagram holds. Flush tells of errors.
func (m *monitor) write(s *stream, x meter.Datagram, arrived time.Time) {
	if m.rtp {
		// By the flag this is RTP; the meter waits for a second packet.
		if h, content, ok := rtp.Parse(x.Payload); ok {
			s.order.Push(h, content, arrived, m.put)
			return
		}
	}
	m.put(x.Payload)
}

func (m *monitor) put(b []byte) { m.output.Write(b) }

// flush writes what was held back for what is missing.
func (m *monitor) flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.output == nil {
		return nil
	}
	for _, s := range m.streams {
		s.order.Flush(m.put)
	}
	return m.output.Flush()
}

// totals brings in what the sockets count. The lock is held.
func (m *monitor) totals() counts {
	m.total.dropped, m.total.filtered = 0, 0
	for _, c := range m.conns {
		dropped, filtered := c.kept()
		m.total.dropped += dropped
		m.total.filtered += filtered
	}
	return m.total
}

// canDrop: elsewhere the system does not tell what it dropped.
const canDrop = runtime.GOOS == "linux"

// second returns what came since it was called last.
func (m *monitor) second() report {
	m.mu.Lock()
	defer m.mu.Unlock()
	now, t := time.Now(), m.totals()
	c := t.minus(m.before)
	c.numbers, c.ts = m.numbers, m.ts
	r := newReport("second", now, now.Sub(m.lap), c)
	for s := range m.sources {
		r.Sources = append(r.Sources, s)
	}
	slices.SortFunc(r.Sources, netip.Addr.Compare)
	for k, s := range m.streams {
		if m.output != nil {
			s.order.Expire(now, m.put)
		}
		if m.show.verbose {
			is := s.counts()
			if diff := is.minus(s.before); diff.datagrams > 0 {
				diff.numbers, diff.ts = is.numbers, is.ts
				r.Streams = append(r.Streams, newStreamReport(k, s, diff))
			}
			s.before = is
		}
	}
	if m.output != nil {
		m.output.Flush() // the next one tells of errors
	}
	sortStreams(r.Streams)
	m.lap, m.before, m.numbers, m.ts = now, t, false, false
	clear(m.sources)
	return r
}

// summary returns what came in all.
func (m *monitor) summary() report {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	r := newReport("summary", now, now.Sub(m.start), m.totals())
	for k, s := range m.streams {
		r.Streams = append(r.Streams, newStreamReport(k, s, s.counts()))
		if a := k.source.Addr(); !slices.Contains(r.Sources, a) {
			r.Sources = append(r.Sources, a)
		}
	}
	slices.SortFunc(r.Sources, netip.Addr.Compare)
	sortStreams(r.Streams)
	return r
}
