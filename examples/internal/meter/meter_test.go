package meter

import (
	"bytes"
	"testing"
	"time"

	"example.com/mcast/examples/internal/mpegts"
	"example.com/mcast/examples/internal/numbered"
	"example.com/mcast/examples/internal/rtp"
)

var start = time.Unix(1e9, 0)

// ts makes packets of a transport stream; each has a clock.
func ts(first, n int, at time.Duration) []byte {
	b := make([]byte, n*mpegts.Size)
	for i := range n {
		p := b[i*mpegts.Size:]
		base := uint64(at) * 9 / 100_000
		copy(p, []byte{0x47, 1, 0, 0x30 | byte(first+i)&15, 7, 0x10, byte(base >> 25), byte(base >> 17), byte(base >> 9), byte(base >> 1), byte(base&1)<<7 | 0x7e})
	}
	return b
}

func rtpOf(seq int, kind uint8, stamp uint32, payload []byte) []byte {
	return append(rtp.Header{Type: kind, Seq: uint16(seq), Timestamp: stamp, SSRC: 7}.Append(nil), payload...)
}

func number(seq uint64, end bool) []byte {
	return append(numbered.Header{Stream: 1, Seq: seq, End: end}.Append(nil), 'x')
}

func TestMeter(t *testing.T) {
	word := []byte("what is this")
	for _, tt := range []struct {
		name   string
		in     [][]byte
		format string
		n      uint64
		known  bool
		want   Missing
		tsLost uint64
		timed  bool
	}{
		{"plain", [][]byte{word, word, nil}, "", 3, false, Missing{}, 0, false},
		{"numbered", [][]byte{number(0, false), number(3, false), number(2, false), number(2, false)}, "numbered", 4, true, Missing{1, 1, 1}, 0, false},
		{"tail missing", [][]byte{number(0, false), number(5, true), number(5, true)}, "numbered", 1, true, Missing{4, 0, 0}, 0, false},
		{"the end alone", [][]byte{number(5, true)}, "", 0, false, Missing{}, 0, false},
		{"RTP", [][]byte{rtpOf(65535, 96, 0, word), rtpOf(1, 96, 0, word), rtpOf(0, 96, 0, word)}, "rtp", 3, true, Missing{0, 1, 0}, 0, false},
		{"RTP with a clock", [][]byte{rtpOf(1, 0, 0, word), rtpOf(2, 0, 160, word), rtpOf(5, 0, 320, word)}, "rtp", 3, true, Missing{2, 0, 0}, 0, true},
		{"not RTP", [][]byte{rtpOf(1, 96, 0, word), rtpOf(1, 96, 0, word), rtpOf(999, 96, 0, word)}, "", 3, false, Missing{}, 0, false},
		{"TS", [][]byte{ts(0, 7, 0), ts(7, 7, time.Millisecond), ts(0, 7, time.Millisecond)}, "ts", 3, false, Missing{}, 2, true},
		{"TS in RTP", [][]byte{rtpOf(9, 33, 0, ts(0, 7, 0)), rtpOf(11, 33, 90, ts(14, 7, 0))}, "rtp/ts", 2, true, Missing{1, 0, 0}, 7, true},
	} {
		var m Meter
		for i, b := range tt.in {
			m.Count(b, start.Add(time.Duration(i)*time.Millisecond))
		}
		missing, known := m.Missing()
		if _, timed := m.Jitter(); m.Format() != tt.format || m.Datagrams != tt.n || known != tt.known || missing != tt.want || m.TS.Lost != tt.tsLost || timed != tt.timed {
			t.Errorf("%s: %q, %d datagrams, %v %+v, %d of TS, timed %v", tt.name, m.Format(), m.Datagrams, known, missing, m.TS.Lost, timed)
		}
	}
}

func TestEnded(t *testing.T) {
	var m Meter
	if _, ended := m.Ended(); ended {
		t.Error("it has ended before it began")
	}
	if d := m.Count(number(9, true), start); !d.End {
		t.Errorf("%+v", d)
	}
	if n, ended := m.Ended(); n != 9 || !ended {
		t.Error(n, ended)
	}
}

// What is in a datagram, without the headers.
func TestDatagram(t *testing.T) {
	var m Meter
	if d := m.Count(number(0, false), start); string(d.Payload) != "x" || d.IsRTP {
		t.Errorf("%+v", d)
	}
	content := ts(0, 1, 0)
	b := rtpOf(1, rtp.PayloadTS, 0, content)
	if d := m.Count(b, start); !d.IsRTP || d.Header.Seq != 1 || !bytes.Equal(d.Content, content) || !bytes.Equal(d.Payload, b) {
		t.Errorf("%+v", d)
	}
	if d := m.Count(content, start); d.IsRTP || !bytes.Equal(d.Payload, content) {
		t.Errorf("%+v", d)
	}
}

// 16 ms of jitter, of which a sixteenth counts at first, by RTP's clock and by
// that of a transport stream.
func TestJitter(t *testing.T) {
	for name, in := range map[string][2][]byte{
		"RTP": {rtpOf(1, rtp.PayloadTS, 0, ts(0, 1, 0)), rtpOf(2, rtp.PayloadTS, 900, ts(1, 1, 0))},
		"TS":  {ts(0, 1, 0), ts(1, 1, 10*time.Millisecond)},
	} {
		var m Meter
		m.Count(in[0], start)
		m.Count(in[1], start.Add(26*time.Millisecond))
		if j, known := m.Jitter(); !known || j != time.Millisecond {
			t.Errorf("%s: %v %v", name, j, known)
		}
	}
}

func FuzzMeter(f *testing.F) {
	f.Add(rtpOf(1, rtp.PayloadTS, 0, ts(0, 1, 0)), rtpOf(3, rtp.PayloadTS, 0, ts(0, 1, 0)))
	f.Add(number(1, false), number(5, true))
	f.Add(ts(0, 7, 0), []byte("x"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var m Meter
		n := uint64(0)
		for i, x := range [][]byte{a, b, b, a} {
			if d := m.Count(x, start.Add(time.Duration(i)*time.Second)); !d.End {
				n++
			}
			missing, known := m.Missing()
			if m.Datagrams != n || !known && missing != (Missing{}) || missing.Late+missing.Duplicate > n {
				t.Fatalf("%d datagrams, want %d: %v %+v", m.Datagrams, n, known, missing)
			}
		}
	})
}

func TestNoAllocs(t *testing.T) {
	var m Meter
	b := rtpOf(1, rtp.PayloadTS, 0, ts(0, 7, 0))
	m.Count(b, start)
	if n := testing.AllocsPerRun(100, func() { m.Count(b, start) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
