package mpegts

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
	"time"
)

// A field changes a packet that a test makes.
type field func(p []byte)

// packet makes a packet with a payload.
func packet(pid uint16, counter int, fields ...field) []byte {
	p := make([]byte, Size)
	p[0], p[1], p[2], p[3] = syncByte, byte(pid>>8), byte(pid), 0x10|byte(counter&15)
	for _, f := range fields {
		f(p)
	}
	return p
}

func noPayload(p []byte)    { p[3] &^= 0x10 }
func broken(p []byte)       { p[1] |= 0x80 }
func discontinued(p []byte) { adapt(p); p[5] |= 0x80 }
func adapt(p []byte)        { p[3] |= 0x20; p[4] = max(p[4], 7) }
func clock(ticks int64) field {
	return func(p []byte) {
		adapt(p)
		p[5] |= 0x10
		base, ext := ticks/300, ticks%300
		p[6], p[7], p[8], p[9] = byte(base>>25), byte(base>>17), byte(base>>9), byte(base>>1)
		p[10], p[11] = byte(base&1)<<7|0x7e|byte(ext>>8), byte(ext)
	}
}

func TestValid(t *testing.T) {
	p := packet(1, 0)
	for _, tt := range []struct {
		b    []byte
		want bool
	}{
		{nil, false},
		{p, true},
		{p[:187], false},
		{append(bytes.Clone(p), p...), true},
		{append(bytes.Clone(p), p[1:]...), false},
		{make([]byte, Size), false},
		{append(bytes.Clone(p), make([]byte, Size)...), false},
	} {
		if got := Valid(tt.b); got != tt.want {
			t.Errorf("Valid of %d bytes: %v", len(tt.b), got)
		}
	}
}

func TestPCR(t *testing.T) {
	for _, want := range []int64{0, 1, 299, 300, 27_000_000, clockCycle - 1} {
		if got, ok := PCR(packet(1, 0, clock(want))); !ok || got != want {
			t.Errorf("PCR %d %v, want %d", got, ok, want)
		}
	}
	short := packet(1, 0, clock(5))
	short[4] = 6
	for i, p := range [][]byte{packet(1, 0), packet(1, 0, adapt), short} {
		if _, ok := PCR(p); ok {
			t.Errorf("packet %d has a PCR", i)
		}
	}
}

func TestCounter(t *testing.T) {
	for _, tt := range []struct {
		name    string
		packets [][]byte
		want    Counter
	}{
		{"in order", [][]byte{packet(1, 14), packet(1, 15), packet(1, 0)}, Counter{Packets: 3}},
		{"missing", [][]byte{packet(1, 14), packet(1, 1)}, Counter{Packets: 2, Lost: 2, Discontinuities: 1}},
		{"two PIDs", [][]byte{packet(1, 3), packet(2, 9), packet(1, 4), packet(2, 11)}, Counter{Packets: 4, Lost: 1, Discontinuities: 1}},
		{"twice", [][]byte{packet(1, 3), packet(1, 3), packet(1, 4)}, Counter{Packets: 3}},
		{"thrice", [][]byte{packet(1, 3), packet(1, 3), packet(1, 3)}, Counter{Packets: 3, Lost: 15, Discontinuities: 1}},
		{"no payload", [][]byte{packet(1, 3), packet(1, 3, noPayload), packet(1, 3, noPayload), packet(1, 4)}, Counter{Packets: 4}},
		{"no payload first", [][]byte{packet(1, 3, noPayload), packet(1, 4)}, Counter{Packets: 2}},
		{"told", [][]byte{packet(1, 3), packet(1, 9, discontinued), packet(1, 10)}, Counter{Packets: 3}},
		{"broken", [][]byte{packet(1, 3), packet(1, 9, broken), packet(1, 4)}, Counter{Packets: 3, Errors: 1}},
		{"null", [][]byte{packet(nullPID, 0), packet(nullPID, 0), packet(nullPID, 7)}, Counter{Packets: 3}},
	} {
		var c Counter
		c.Count(bytes.Join(tt.packets, nil))
		c.last = nil
		if c != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, c, tt.want)
		}
	}
}

func FuzzCounter(f *testing.F) {
	f.Add(append(packet(1, 0, clock(99)), packet(1, 1, discontinued)...))
	f.Add(append(packet(1, 0, clock(99)), packet(1, 1, clock(99+27_000_000))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if !Valid(b) {
			return
		}
		var c Counter
		var k Clock
		c.Count(b)
		for p := b; len(p) > 0; p = p[Size:] {
			if since, has, goesOn := k.Next(p[:Size]); since < 0 || since > time.Second || goesOn && !has {
				t.Fatalf("clock: %v %v %v", since, has, goesOn)
			}
		}
		if c.Packets != uint64(len(b)/Size) || c.Discontinuities > c.Lost || c.Lost > 15*c.Discontinuities || c.Discontinuities+c.Errors > c.Packets {
			t.Fatalf("%+v", c)
		}
	})
}

// stream makes a stream of n packets, spacing apart, with a clock in each so
// many, the first in packet offset.
func stream(n, each, offset int, spacing, from time.Duration) (b []byte) {
	for i := range n {
		var fields []field
		if i%each == offset {
			fields = append(fields, clock((int64(from+time.Duration(i)*spacing)*27/1000)%clockCycle))
		}
		b = append(b, packet(1, i, fields...)...)
	}
	return b
}

// readAll returns the packets and when each is due.
func readAll(in io.Reader, n int) (packets []byte, due []time.Duration, err error) {
	r := NewReader(in)
	for {
		b, d, err := r.Next(n)
		if err != nil {
			return packets, due, err
		}
		packets = append(packets, b...)
		due = append(due, d)
	}
}

func TestReader(t *testing.T) {
	const spacing = 300 * time.Microsecond
	cycle := time.Duration(clockCycle) * 1000 / 27
	for _, tt := range []struct {
		name         string
		n            int
		each, offset int
		from         time.Duration
	}{
		{"clock first", 100, 10, 0, 0},
		{"clock later", 100, 10, 7, time.Hour},
		{"clock in each", 30, 1, 0, time.Hour},
		{"two clocks", 100, 60, 20, 0},
		{"over the end of the clock", 100, 10, 0, cycle - 10*time.Millisecond},
	} {
		in := stream(tt.n, tt.each, tt.offset, spacing, tt.from)
		for _, per := range []int{1, 7} {
			got, due, err := readAll(iotest.OneByteReader(bytes.NewReader(in)), per)
			if err != io.EOF || !bytes.Equal(got, in) {
				t.Errorf("%s, by %d: %d of %d bytes, %v", tt.name, per, len(got), len(in), err)
			}
			for i, d := range due {
				if want := time.Duration(i*per) * spacing; (d - want).Abs() > time.Microsecond {
					t.Errorf("%s, by %d: %d is due at %v, want %v", tt.name, per, i, d, want)
					break
				}
			}
		}
	}
}

// The rate may change, and the clock begin anew.
func TestReaderChange(t *testing.T) {
	const ms = time.Millisecond
	in := append(stream(20, 10, 0, ms, 0), stream(20, 10, 0, 2*ms, 20*ms)...)
	in = append(in, stream(21, 10, 0, ms, 5*time.Hour)...)
	_, due, err := readAll(bytes.NewReader(in), 1)
	if err != io.EOF || len(due) != 61 {
		t.Fatal(len(due), err)
	}
	for i, want := range map[int]time.Duration{0: 0, 15: 15 * ms, 20: 20 * ms, 25: 30 * ms, 30: 40 * ms, 40: 60 * ms, 45: 65 * ms, 60: 80 * ms} {
		if (due[i] - want).Abs() > time.Microsecond {
			t.Errorf("%d is due at %v, want %v", i, due[i], want)
		}
	}
}

func TestReaderErrors(t *testing.T) {
	good := stream(50, 10, 0, time.Millisecond, 0)
	fire := errors.New("the disk is on fire")
	garbage := bytes.Repeat([]byte{1, 2, syncByte}, maxSkip)
	for _, tt := range []struct {
		name    string
		in      io.Reader
		packets int
		err     error
	}{
		{"nothing", bytes.NewReader(nil), 0, ErrNotTS},
		{"text", bytes.NewReader([]byte("text")), 0, ErrNotTS},
		{"garbage", bytes.NewReader(garbage), 0, ErrNotTS},
		{"no clock", bytes.NewReader(stream(50, 51, 50, 1, 0)), 0, ErrNoPCR},
		{"one clock", bytes.NewReader(stream(50, 50, 0, 1, 0)), 0, ErrNoPCR},
		{"no clock ever", io.MultiReader(bytes.NewReader(bytes.Repeat(packet(1, 0), maxQueue/Size+1)), iotest.ErrReader(fire)), 0, ErrNoPCR},
		{"begins late", io.MultiReader(bytes.NewReader([]byte("GGG")), bytes.NewReader(good)), 50, io.EOF},
		{"broken within", io.MultiReader(bytes.NewReader(good[:Size*20]), bytes.NewReader([]byte("xxGx")), bytes.NewReader(good[Size*20:])), 50, io.EOF},
		{"a piece missing", io.MultiReader(bytes.NewReader(good[:Size*20-50]), bytes.NewReader(good[Size*20:])), 49, io.EOF},
		{"a piece at the end", bytes.NewReader(good[:Size*50-1]), 49, io.EOF},
		{"fire", io.MultiReader(bytes.NewReader(good), iotest.ErrReader(fire)), 50, fire},
	} {
		got, _, err := readAll(tt.in, 7)
		if err != tt.err || len(got) != tt.packets*Size {
			t.Errorf("%s: %d packets, %v; want %d, %v", tt.name, len(got)/Size, err, tt.packets, tt.err)
		}
	}
}

// A stream without further clock values goes on at its rate.
func TestReaderQueue(t *testing.T) {
	in := append(stream(21, 10, 0, time.Millisecond, 0), bytes.Repeat(packet(1, 0), maxQueue/Size+100)...)
	got, due, err := readAll(bytes.NewReader(in), 1)
	if last := time.Duration(len(due)-1) * time.Millisecond; err != io.EOF || len(got) != len(in) || (due[len(due)-1]-last).Abs() > time.Millisecond {
		t.Errorf("%d of %d bytes, %v", len(got), len(in), err)
	}
}

// Whatever is read, what comes out are packets, and time does not go back.
func FuzzReader(f *testing.F) {
	f.Add(stream(30, 10, 3, time.Millisecond, 0), uint8(7))
	r := rand.New(rand.NewPCG(1, 2))
	b := stream(60, 10, 0, time.Millisecond, 0)
	for range 20 {
		b[r.IntN(len(b))]++
	}
	f.Add(b, uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, n uint8) {
		r, last, total := NewReader(bytes.NewReader(b)), time.Duration(-1), 0
		for {
			p, due, err := r.Next(int(n) + 1)
			if err != nil {
				return
			}
			if !Valid(p) || due < last || len(p) > (int(n)+1)*Size {
				t.Fatalf("%d bytes due at %v after %v", len(p), due, last)
			}
			if total += len(p); total > len(b) {
				t.Fatalf("%d bytes of %d", total, len(b))
			}
			last = due
		}
	})
}
