package amtrelay

import (
	"math/rand/v2"
	"time"
)

// A Path is what happens to messages between a gateway and a relay. The zero
// Path delivers all at once.
type Path struct {
	Loss, Double, Damage float64       // shares of the messages
	Delay, Jitter        time.Duration // each message takes Delay and up to Jitter more: enough of it reorders
}

// A Delivery is a message that arrives.
type Delivery struct {
	After time.Duration
	B     []byte
}

// Carry returns what arrives of a message.
func (p Path) Carry(r *rand.Rand, b []byte) (list []Delivery) {
	times := 1
	if r.Float64() < p.Double {
		times = 2
	}
	for range times {
		if r.Float64() < p.Loss {
			continue
		}
		d := Delivery{p.Delay, append([]byte(nil), b...)}
		if p.Jitter > 0 {
			d.After += time.Duration(r.Int64N(int64(p.Jitter)))
		}
		if r.Float64() < p.Damage {
			d.B = damage(r, d.B)
		}
		list = append(list, d)
	}
	return list
}

// damage changes what a receiver must notice: the version, the type, the
// length, a nonce, a MAC, or any single bit.
func damage(r *rand.Rand, b []byte) []byte {
	flip := func(from, to int) {
		if to = min(to, len(b)); from < to {
			b[from+r.IntN(to-from)] ^= 1 << r.IntN(8)
		}
	}
	switch r.IntN(7) {
	case 0:
		flip(0, 1)
	case 1:
		return b[:r.IntN(len(b)+1)]
	case 2:
		return append(b, make([]byte, 1+r.IntN(40))...)
	case 3:
		flip(2, 12) // nonce or MAC
	case 4:
		flip(12, 60) // headers inside
	case 5:
		clear(b[min(len(b), 4):min(len(b), 12)])
	default:
		flip(0, len(b))
	}
	return b
}
