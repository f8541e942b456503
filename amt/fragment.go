package amt

import (
	"errors"
	"net/netip"
	"time"
)

// A fragment is what a packet says of itself that is a part of another one.
type fragment struct {
	id     uint32
	offset int
	more   bool
}

// Bounds of reassembly: how many bytes are kept at most, in how many
// datagrams, and for how long.
const (
	reassemblyBytes     = 1 << 20
	reassemblyDatagrams = 64
	reassemblyParts     = 64 // of one datagram
	reassemblyTime      = 15 * time.Second
)

var (
	errIncomplete = errors.New("parts are missing yet")
	errFragment   = errors.New("a fragment that fits nowhere")
)

// A reassembler puts datagrams together that came in fragments (RFC 791 section
// 3.2, RFC 8200 section 4.5). What it does not get in time, or has no room for,
// it drops and counts.
type reassembler struct {
	dropped uint64 // datagrams given up, and fragments that fit nowhere

	partial map[fragmentKey]*partial
	order   []fragmentKey // the oldest first
	bytes   int
}

type fragmentKey struct {
	source, destination netip.Addr
	protocol            byte // IPv4 only: RFC 8200 goes by the addresses and the number
	id                  uint32
}

// A partial is a datagram of which parts have come.
type partial struct {
	deadline time.Time
	protocol byte // as the first fragment says
	hopLimit uint8
	total    int // -1: the last part has not come
	have     int
	parts    []part // by offset, without overlaps
}

type part struct {
	offset int
	data   []byte
}

// add takes a fragment, and makes it the whole packet when it was the last that
// was missing; before that, it returns errIncomplete.
func (r *reassembler) add(now time.Time, h *ipHeader) error {
	r.expire(now)
	f := h.fragment
	end := f.offset + len(h.payload)
	if len(h.payload) == 0 || f.more && len(h.payload)%8 != 0 || end > 0xffff {
		r.dropped++
		return errFragment
	}
	key := fragmentKey{source: h.source, destination: h.destination, id: f.id}
	if h.source.Is4() {
		key.protocol = h.protocol
	}
	p := r.partial[key]
	if p == nil {
		p = r.begin(now, key)
	}
	if err := p.insert(f, h.payload); err != nil {
		if err == errFragment { // RFC 8200 section 4.5: all of it is dropped
			r.giveUp(key)
		}
		return err
	}
	r.bytes += len(h.payload)
	if f.offset == 0 {
		p.protocol, p.hopLimit = h.protocol, h.hopLimit
	}
	if p.total != p.have {
		for r.bytes > reassemblyBytes {
			r.giveUp(r.order[0])
		}
		return errIncomplete
	}
	h.fragmented, h.protocol, h.hopLimit = false, p.protocol, p.hopLimit
	h.payload = make([]byte, 0, p.total)
	for _, part := range p.parts {
		h.payload = append(h.payload, part.data...)
	}
	r.remove(key)
	if h.source.Is6() {
		// Extension headers may follow the fragment's.
		if err := h.parseExtensions(); err != nil || h.fragmented {
			return errPacket
		}
	}
	return nil
}

func (r *reassembler) begin(now time.Time, key fragmentKey) *partial {
	if len(r.order) == reassemblyDatagrams {
		r.giveUp(r.order[0])
	}
	if r.partial == nil {
		r.partial = make(map[fragmentKey]*partial)
	}
	p := &partial{deadline: now.Add(reassemblyTime), total: -1}
	r.partial[key] = p
	r.order = append(r.order, key)
	return p
}

// expire gives up what has waited too long.
func (r *reassembler) expire(now time.Time) {
	for len(r.order) > 0 && now.After(r.partial[r.order[0]].deadline) {
		r.giveUp(r.order[0])
	}
}

func (r *reassembler) giveUp(key fragmentKey) {
	r.dropped++
	r.remove(key)
}

func (r *reassembler) remove(key fragmentKey) {
	r.bytes -= r.partial[key].have
	delete(r.partial, key)
	for i, k := range r.order {
		if k == key {
			r.order = append(r.order[:i], r.order[i+1:]...)
			return
		}
	}
}

// insert puts a part in its place. A part that is there already is
// errIncomplete; one that overlaps another, or lies behind the end, is
// errFragment.
func (p *partial) insert(f fragment, data []byte) error {
	end := f.offset + len(data)
	i := 0
	for i < len(p.parts) && p.parts[i].offset < f.offset {
		i++
	}
	if i < len(p.parts) && p.parts[i].offset == f.offset && len(p.parts[i].data) == len(data) {
		return errIncomplete
	}
	last := 0 // where the parts end that are there
	if n := len(p.parts); n > 0 {
		last = p.parts[n-1].offset + len(p.parts[n-1].data)
	}
	switch {
	case i > 0 && p.parts[i-1].offset+len(p.parts[i-1].data) > f.offset,
		i < len(p.parts) && end > p.parts[i].offset,
		p.total >= 0 && end > p.total,
		!f.more && (p.total >= 0 || last > end),
		len(p.parts) == reassemblyParts:
		return errFragment
	}
	if !f.more {
		p.total = end
	}
	p.parts = append(p.parts, part{})
	copy(p.parts[i+1:], p.parts[i:])
	p.parts[i] = part{f.offset, append([]byte(nil), data...)}
	p.have += len(data)
	return nil
}
