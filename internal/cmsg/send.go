package cmsg

import "net/netip"

// AppendSend appends the control message that picks interface and source
// address of one datagram. An index of 0 and the zero address say nothing, and
// if neither says anything, nothing is appended; the zone of the address is not
// looked at. It is not ok, and nothing is appended, if the system has no message
// for what was asked, or the address is of another family.
//
// It begins at a place that is aligned for a control message if b does, and
// leaves it so.
func (f *Format) AppendSend(b []byte, ipv6 bool, index int, from netip.Addr) (_ []byte, ok bool) {
	if index == 0 && !from.IsValid() {
		return b, true
	}
	from = from.Unmap()
	fam, level := f.family(ipv6)
	p := &fam.send
	switch {
	case p.size == 0, index < 0, int64(index) > 1<<31-1:
		return b, false
	case index != 0 && p.index < 0, from.IsValid() && from.Is6() != ipv6:
		return b, false
	}
	b, d := f.appendMessage(b, level, p.message, p.size)
	copy(d[p.addr:], from.AsSlice())
	if p.index >= 0 {
		f.order().PutUint32(d[p.index:], uint32(index))
	}
	return b, true
}

// AppendSegment appends the control message that makes the system send a buffer
// as several datagrams of size bytes, the last perhaps shorter. It is not ok, and
// nothing is appended, if the system has no such message, or the size does not
// fit into it.
func (f *Format) AppendSegment(b []byte, size int) (_ []byte, ok bool) {
	if f.segment == 0 || size <= 0 || size > 1<<16-1 {
		return b, false
	}
	b, d := f.appendMessage(b, levelUDP, f.segment, 2) // __u16 (udp_cmsg_send in net/ipv4/udp.c)
	f.order().PutUint16(d, uint16(size))
	return b, true
}

// appendMessage appends a control message with n bytes of data, all zero, and
// the fill behind them.
func (f *Format) appendMessage(b []byte, level, kind, n int) (_, data []byte) {
	at, end := len(b), f.dataAt()+n
	b = append(b, make([]byte, end+-end&(f.align-1))...)
	m := b[at:]
	if f.word == 8 {
		f.order().PutUint64(m, uint64(end))
	} else {
		f.order().PutUint32(m, uint32(end))
	}
	f.order().PutUint32(m[f.word:], uint32(level))
	f.order().PutUint32(m[f.word+4:], uint32(kind))
	return b, m[f.dataAt():end]
}
