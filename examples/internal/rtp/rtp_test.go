package rtp

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestHeader(t *testing.T) {
	h := Header{Marker: true, Type: PayloadTS, Seq: 0x0102, Timestamp: 0x03040506, SSRC: 0x0708090a}
	b := append(h.Append(nil), "payload"...)
	if want := "\x80\xa1\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0apayload"; string(b) != want {
		t.Errorf("Append: %q, want %q", b, want)
	}
	got, payload, ok := Parse(b)
	if !ok || got != h || string(payload) != "payload" {
		t.Errorf("Parse: %+v %q %v", got, payload, ok)
	}
}

func TestParse(t *testing.T) {
	head := "\x80\x21\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a"
	for _, tt := range []struct {
		name, b, payload string
		ok               bool
	}{
		{"plain", head + "x", "x", true},
		{"empty", head, "", true},
		{"two sources", "\x82" + head[1:] + "aaaabbbbx", "x", true},
		{"short of sources", "\x82" + head[1:] + "aaaabbb", "", false},
		{"extension", "\x90" + head[1:] + "\xbe\xde\x00\x01aaaax", "x", true},
		{"empty extension", "\x90" + head[1:] + "\xbe\xde\x00\x00x", "x", true},
		{"short of extension", "\x90" + head[1:] + "\xbe\xde\x00\x02aaaax", "", false},
		{"no extension", "\x90" + head[1:] + "\xbe", "", false},
		{"padding", "\xa0" + head[1:] + "x\x00\x00\x03", "x", true},
		{"all padding", "\xa0" + head[1:] + "\x00\x02", "", true},
		{"no padding", "\xa0" + head[1:], "", false},
		{"padding of none", "\xa0" + head[1:] + "x\x00", "", false},
		{"too much padding", "\xa0" + head[1:] + "x\x03", "", false},
		{"all three", "\xb1" + head[1:] + "aaaa\xbe\xde\x00\x01aaaaxy\x01", "xy", true},
		{"RTCP", head[:1] + "\xc8" + head[2:], "", false},
		{"version 1", "\x40" + head[1:], "", false},
		{"short", head[:11], "", false},
		{"nothing", "", "", false},
	} {
		_, payload, ok := Parse([]byte(tt.b))
		if ok != tt.ok || ok && string(payload) != tt.payload {
			t.Errorf("%s: %q %v", tt.name, payload, ok)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(append(Header{Type: PayloadTS, Seq: 1}.Append(nil), "abc"...))
	f.Add([]byte("\xb1\x21\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0aaaaa\xbe\xde\x00\x01aaaaxy\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, payload, ok := Parse(b)
		if !ok {
			return
		}
		if !bytes.Contains(b, payload) || len(payload) > len(b)-HeaderSize {
			t.Fatalf("the payload %q is not of %q", payload, b)
		}
		again, p, ok := Parse(append(h.Append(nil), payload...))
		if !ok || again != h || !bytes.Equal(p, payload) {
			t.Fatalf("%+v %q, written and read: %+v %q %v", h, payload, again, p, ok)
		}
	})
}

func seqs(ns ...int) (hs []Header) {
	for _, n := range ns {
		hs = append(hs, Header{Seq: uint16(n), SSRC: 1})
	}
	return hs
}

func TestCounter(t *testing.T) {
	other := Header{Seq: 40000, SSRC: 2}
	for _, tt := range []struct {
		name string
		in   []Header
		want [4]uint64 // received, lost, late, duplicate
	}{
		{"in order", seqs(1, 2, 3), [4]uint64{3, 0, 0, 0}},
		{"one missing", seqs(1, 3), [4]uint64{2, 1, 0, 0}},
		{"over the end", seqs(65534, 65535, 0, 1), [4]uint64{4, 0, 0, 0}},
		{"missing over the end", seqs(65534, 1), [4]uint64{2, 2, 0, 0}},
		{"late over the end", seqs(65534, 0, 65535), [4]uint64{3, 0, 1, 0}},
		{"before the first", seqs(0, 65535), [4]uint64{2, 0, 1, 0}},
		{"twice", seqs(5, 6, 5, 6), [4]uint64{4, 0, 0, 2}},
		{"a sender anew", seqs(1, 2, 30000, 30001, 30002), [4]uint64{5, 0, 0, 0}},
		{"a sender anew, back", seqs(30000, 30001, 5, 6, 8), [4]uint64{5, 1, 0, 0}},
		{"one stray", seqs(1, 2, 30000, 3, 30001, 4), [4]uint64{6, 0, 0, 0}},
		{"another sender", append(seqs(1, 2), other, Header{Seq: 40002, SSRC: 2}), [4]uint64{4, 1, 0, 0}},
	} {
		var c Counter
		for _, h := range tt.in {
			c.Count(h)
		}
		if got := [4]uint64{c.Received, c.Lost, c.Late, c.Duplicate}; got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// The mean is a sixteenth of each deviation nearer to it: RFC 3550 appendix A.8.
func TestJitter(t *testing.T) {
	var j Jitter
	for range 10 {
		j.Add(20*time.Millisecond, 20*time.Millisecond)
	}
	if j.Value() != 0 {
		t.Errorf("steady: %v", j.Value())
	}
	j.Add(36*time.Millisecond, 20*time.Millisecond)
	j.Add(4*time.Millisecond, 20*time.Millisecond) // 1 ms, and 15/16 of that and 1 ms
	if want := 1937500 * time.Nanosecond; j.Value() != want {
		t.Errorf("%v, want %v", j.Value(), want)
	}
}

var start = time.Unix(1e9, 0)

// pushAll gives packets to a Reorderer, 1 ms apart, and returns the numbers of
// those that came out.
func pushAll(r *Reorderer, in []Header) (out []int) {
	hand := func(b []byte) { out = append(out, int(b[0])<<8|int(b[1])) }
	for i, h := range in {
		b := []byte{byte(h.Seq >> 8), byte(h.Seq)}
		r.Push(h, b, start.Add(time.Duration(i)*time.Millisecond), hand)
		clear(b) // it is not the Reorderer's
	}
	r.Flush(hand)
	return out
}

func TestReorderer(t *testing.T) {
	for _, tt := range []struct {
		name            string
		packets         int
		wait            time.Duration
		in              []Header
		want            []int
		late, duplicate uint64
	}{
		{"in order", 4, 0, seqs(1, 2, 3), []int{1, 2, 3}, 0, 0},
		{"out of order", 4, 0, seqs(1, 3, 4, 2, 5), []int{1, 2, 3, 4, 5}, 0, 0},
		{"over the end", 4, 0, seqs(65534, 0, 65535, 2, 1), []int{65534, 65535, 0, 1, 2}, 0, 0},
		{"twice", 4, 0, seqs(1, 1, 3, 3, 2, 2, 4), []int{1, 2, 3, 4}, 0, 3},
		{"missing", 2, 0, seqs(1, 3, 4, 5, 6), []int{1, 3, 4, 5, 6}, 0, 0},
		{"too late", 2, 0, seqs(1, 3, 4, 5, 2, 6), []int{1, 3, 4, 5, 6}, 1, 0},
		{"many missing", 2, 0, seqs(1, 100, 101), []int{1, 100, 101}, 0, 0},
		{"at the bound", 2, 0, seqs(1, 3, 4, 2), []int{1, 2, 3, 4}, 0, 0},
		{"none held", 0, 0, seqs(1, 3, 2, 4), []int{1, 3, 4}, 1, 0},
		{"waited long enough", 100, 3 * time.Millisecond, seqs(1, 3, 4, 5, 6, 2, 7), []int{1, 3, 4, 5, 6, 7}, 1, 0},
		{"waited not too long", 100, 3 * time.Millisecond, seqs(1, 3, 4, 2, 5), []int{1, 2, 3, 4, 5}, 0, 0},
		{"before the first", 4, 0, seqs(10, 9, 11), []int{10, 11}, 1, 0},
		{"another sender", 4, 0, append(seqs(1, 3), Header{Seq: 7, SSRC: 2}, Header{Seq: 8, SSRC: 2}), []int{1, 3, 7, 8}, 0, 0},
		{"a sender anew", 4, 0, seqs(1, 3, 30000, 30001, 30002), []int{1, 3, 30001, 30002}, 1, 0},
		{"one stray", 4, 0, seqs(1, 30000, 2), []int{1, 2}, 1, 0},
	} {
		r := &Reorderer{Packets: tt.packets, Wait: tt.wait}
		if got := pushAll(r, tt.in); !slices.Equal(got, tt.want) || r.Late != tt.late || r.Duplicate != tt.duplicate {
			t.Errorf("%s: %v, %d late, %d duplicate; want %v, %d, %d", tt.name, got, r.Late, r.Duplicate, tt.want, tt.late, tt.duplicate)
		}
	}
}

// Without news, what is held back comes out when its time is over.
func TestExpire(t *testing.T) {
	r := &Reorderer{Packets: 10, Wait: 5 * time.Millisecond}
	var out []int
	hand := func(b []byte) { out = append(out, int(b[0])) }
	push := func(n int, at time.Duration) { r.Push(Header{Seq: uint16(n)}, []byte{byte(n)}, start.Add(at), hand) }
	push(1, 0)
	if !r.Deadline().IsZero() {
		t.Errorf("nothing is held, and the deadline is %v", r.Deadline())
	}
	push(3, 1*time.Millisecond)
	push(5, 2*time.Millisecond)
	if want := start.Add(6 * time.Millisecond); !r.Deadline().Equal(want) {
		t.Errorf("deadline %v, want %v", r.Deadline(), want)
	}
	r.Expire(start.Add(5*time.Millisecond), hand)
	if !slices.Equal(out, []int{1}) {
		t.Errorf("too soon: %v", out)
	}
	r.Expire(start.Add(6*time.Millisecond), hand)
	if !slices.Equal(out, []int{1, 3}) || !r.Deadline().Equal(start.Add(7*time.Millisecond)) {
		t.Errorf("%v, deadline %v", out, r.Deadline())
	}
	r.Expire(start.Add(7*time.Millisecond), hand)
	if !slices.Equal(out, []int{1, 3, 5}) || !r.Deadline().IsZero() {
		t.Errorf("%v, deadline %v", out, r.Deadline())
	}
}

// What is given up for the bound's sake holds nothing back any more.
func TestReordererBound(t *testing.T) {
	r := &Reorderer{Packets: 3}
	var out []byte
	for _, h := range seqs(1, 3, 4, 6) {
		r.Push(h, []byte{byte(h.Seq)}, start, func(b []byte) { out = append(out, b...) })
	}
	if !slices.Equal(out, []byte{1, 3, 4}) {
		t.Errorf("%v, want 1, 3 and 4, and 6 when 5 is given up", out)
	}
}

// Streams with losses, duplicates and displacements within the bound come out
// as they should; over the end of the numbers, too.
func TestReordererRandom(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		packets := 24 + rnd.IntN(60) // so many are never missing in a row
		first := rnd.IntN(1 << 16)
		in := []int{first}
		for n := 1; n < 500; n++ {
			for range []int{1, 1, 1, 1, 1, 1, 0, 2}[rnd.IntN(8)] {
				in = append(in, (first+n)&0xffff)
			}
		}
		for i := 1; i+3 < len(in); i += 3 { // no packet is displaced by more than 2, of which one may be missing each
			rnd.Shuffle(3, func(a, b int) { in[i+a], in[i+b] = in[i+b], in[i+a] })
		}
		r := &Reorderer{Packets: packets}
		out := pushAll(r, seqs(in...))
		var want []int
		here := map[int]bool{}
		for _, n := range in {
			here[n] = true
		}
		for n := range 500 {
			if s := (first + n) & 0xffff; here[s] {
				want = append(want, s)
			}
		}
		if !slices.Equal(out, want) || r.Late != 0 || int(r.Duplicate) != len(in)-len(want) {
			t.Fatalf("seed %d, %d held: %d: %v, want %v; %d late, %d duplicate", seed, packets, in, out, want, r.Late, r.Duplicate)
		}
	}
}

// Whatever comes in, each comes out at most once, nothing that did not come in,
// and as many are accounted for as came.
func FuzzReorderer(f *testing.F) {
	f.Add([]byte{0, 1, 0, 3, 0, 2, 0, 2, 255, 255}, uint8(4), uint8(3))
	f.Fuzz(func(t *testing.T, b []byte, packets, wait uint8) {
		r := &Reorderer{Packets: int(packets), Wait: time.Duration(wait) * time.Millisecond}
		var in []Header
		for ; len(b) >= 2; b = b[2:] {
			in = append(in, Header{Seq: uint16(b[0])<<8 | uint16(b[1]), SSRC: 1})
		}
		out := pushAll(r, in)
		if len(out)+int(r.Late+r.Duplicate) != len(in) {
			t.Fatalf("%d in, %d out, %d late, %d duplicate", len(in), len(out), r.Late, r.Duplicate)
		}
		came := map[int]int{}
		for _, h := range in {
			came[int(h.Seq)]++
		}
		for _, n := range out {
			if came[n]--; came[n] < 0 {
				t.Fatalf("%d came out more often than in", n)
			}
		}
	})
}

func TestNoAllocs(t *testing.T) {
	r := &Reorderer{Packets: 16}
	b := make([]byte, 1316)
	n := uint16(0)
	hand := func([]byte) {}
	push := func() {
		for _, d := range []uint16{0, 2, 1, 3} {
			r.Push(Header{Seq: n + d}, b, start, hand)
		}
		n += 4
	}
	for range 100 {
		push()
	}
	if a := testing.AllocsPerRun(100, push); a != 0 {
		t.Errorf("%v allocations", a)
	}
}
