package numbered

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

func TestHeader(t *testing.T) {
	h := Header{Stream: 0x01020304, Seq: 0x05060708090a0b0c}
	b := append(h.Append(nil), "payload"...)
	if want := "mcn1\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0cpayload"; string(b) != want {
		t.Errorf("Append: %q, want %q", b, want)
	}
	got, payload, ok := Parse(b)
	if !ok || got != h || string(payload) != "payload" {
		t.Errorf("Parse: %v %q %v", got, payload, ok)
	}
	h.End = true
	if got, _, ok := Parse(h.Append(nil)); !ok || got != h {
		t.Errorf("Parse of an end: %v %v", got, ok)
	}
	for _, b := range [][]byte{nil, b[:Size-1], []byte("mcn2456789abcdef"), bytes.Repeat([]byte{0x47}, 188)} {
		if _, payload, ok := Parse(b); ok || !bytes.Equal(payload, b) {
			t.Errorf("Parse(%q): a header, payload %q", b, payload)
		}
	}
}

func TestCounter(t *testing.T) {
	for _, tt := range []struct {
		seqs []uint64
		want Counter
	}{
		{nil, Counter{}},
		{[]uint64{0, 1, 2}, Counter{Received: 3}},
		{[]uint64{7, 8}, Counter{Received: 2}},
		{[]uint64{0, 3}, Counter{Received: 2, Lost: 2}},
		{[]uint64{0, 2, 1, 3}, Counter{Received: 4, Late: 1}},
		{[]uint64{0, 2, 2, 1, 1}, Counter{Received: 5, Late: 1, Duplicate: 2}},
		{[]uint64{5, 4}, Counter{Received: 2, Late: 1}},
		{[]uint64{0, 100, 1}, Counter{Received: 3, Lost: 99, Late: 1}},
		{[]uint64{0, 63, 1, 1}, Counter{Received: 4, Lost: 61, Late: 1, Duplicate: 1}},
		{[]uint64{0, 64, 0}, Counter{Received: 3, Lost: 63, Late: 1}},
		{[]uint64{0, 1<<64 - 1}, Counter{Received: 2, Lost: 1<<64 - 2}},
	} {
		var c Counter
		for _, n := range tt.seqs {
			c.Count(n)
		}
		c.started, c.first, c.next, c.seen = false, 0, 0, 0
		if c != tt.want {
			t.Errorf("%d: %+v, want %+v", tt.seqs, c, tt.want)
		}
	}
}

func TestEnd(t *testing.T) {
	for _, tt := range []struct {
		seqs  []uint64
		total uint64
		later []uint64
		want  Counter
	}{
		{nil, 7, nil, Counter{}},
		{[]uint64{0, 1, 2}, 3, nil, Counter{Received: 3}},
		{[]uint64{0, 1}, 5, nil, Counter{Received: 2, Lost: 3}},
		{[]uint64{3, 4}, 5, nil, Counter{Received: 2}},
		{[]uint64{0, 1}, 5, []uint64{3, 3}, Counter{Received: 4, Lost: 2, Late: 1, Duplicate: 1}}, // overtaken by the end
		{[]uint64{0, 5}, 3, nil, Counter{Received: 2, Lost: 4}},                                   // cannot be
		{[]uint64{0}, 1000, []uint64{1}, Counter{Received: 2, Lost: 999, Late: 1}},
	} {
		var c Counter
		for _, n := range tt.seqs {
			c.Count(n)
		}
		c.End(tt.total)
		c.End(tt.total) // it is sent more than once
		for _, n := range tt.later {
			c.Count(n)
		}
		c.started, c.first, c.next, c.seen = false, 0, 0, 0
		if c != tt.want {
			t.Errorf("%d of %d: %+v, want %+v", tt.seqs, tt.total, c, tt.want)
		}
	}
}

func TestRestart(t *testing.T) {
	var c Counter
	for _, n := range []uint64{0, 1, 3} {
		c.Count(n)
	}
	c.Restart()
	for _, n := range []uint64{0, 2, 1} {
		c.Count(n)
	}
	if c.Received != 6 || c.Lost != 1 || c.Late != 1 || c.Duplicate != 0 {
		t.Errorf("%+v", c)
	}
}

// Streams with losses, duplicates and small displacements, beside a count of
// the numbers that arrived.
func TestCounterRandom(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		seqs := []uint64{0}
		for n := uint64(1); n < 500; n++ {
			for range []int{1, 1, 1, 1, 1, 1, 0, 2}[r.IntN(8)] {
				seqs = append(seqs, n)
			}
		}
		for i := 1; i+8 < len(seqs); i += 8 {
			r.Shuffle(8, func(a, b int) { seqs[i+a], seqs[i+b] = seqs[i+b], seqs[i+a] })
		}
		var c Counter
		here, highest := map[uint64]bool{}, uint64(0)
		for _, n := range seqs {
			c.Count(n)
			here[n] = true
			highest = max(highest, n)
		}
		lost, dup := highest+1-uint64(len(here)), uint64(len(seqs)-len(here))
		if c.Received != uint64(len(seqs)) || c.Lost != lost || c.Duplicate != dup {
			t.Fatalf("seed %d: %d: %+v, want %d lost, %d duplicates", seed, seqs, c, lost, dup)
		}
	}
}
