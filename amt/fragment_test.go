package amt

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"example.com/mcast/internal/amtrelay"
)

func addPart(r *reassembler, now time.Time, b []byte) (datagram, error) {
	var h ipHeader
	var d datagram
	err := h.parse(b)
	if err == nil {
		err = r.add(now, &h)
	}
	if err == nil {
		err = h.parseUDP(&d)
	}
	return d, err
}

// Several datagrams in parts, in any order, some twice, come out once each.
func TestReassembly(t *testing.T) {
	now := time.Unix(1000, 0)
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		var r reassembler
		var parts [][]byte
		missing, sent := make(map[string]bool), make(map[string]bool)
		for id := range uint32(5) {
			payload := make([]byte, 100+rnd.IntN(3000))
			for i := range payload {
				payload[i] = byte(rnd.Uint32())
			}
			missing[string(payload)], sent[string(payload)] = true, true
			from, to := port4, group4
			if id%2 == 0 {
				from, to = port6, group6
			}
			parts = append(parts, amtrelay.Fragments(amtrelay.UDP(from, to, 3, payload), id, 64+rnd.IntN(len(payload)/2))...)
		}
		for range 3 {
			parts = append(parts, parts[rnd.IntN(len(parts))])
		}
		rnd.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		for _, p := range parts {
			d, err := addPart(&r, now, p)
			if errors.Is(err, errIncomplete) {
				continue
			}
			if err != nil || !sent[string(d.payload)] || d.hopLimit != 3 {
				t.Fatalf("seed %d: %d bytes, %v", seed, len(d.payload), err)
			}
			delete(missing, string(d.payload)) // one may come twice, if all its parts do
		}
		if len(missing) > 0 {
			t.Fatalf("seed %d: %d are missing", seed, len(missing))
		}
		// A part that came again when its datagram was whole waits for nothing.
		r.expire(now.Add(time.Hour))
		if r.bytes != 0 || len(r.partial) != 0 || len(r.order) != 0 {
			t.Fatalf("seed %d: %d bytes, %d partial, %d in order", seed, r.bytes, len(r.partial), len(r.order))
		}
	}
}

func TestReassemblyBounds(t *testing.T) {
	now := time.Unix(1000, 0)
	var r reassembler
	big := amtrelay.UDP(port6, group6, 3, make([]byte, 60000))
	most := 0
	for id := range uint32(1000) {
		for _, p := range amtrelay.Fragments(big, id, 1400)[1:] { // the first is missing
			addPart(&r, now, p)
			most = max(most, r.bytes)
		}
	}
	if most > reassemblyBytes || len(r.partial) > reassemblyDatagrams || r.dropped < 900 {
		t.Errorf("%d bytes, %d partial, %d dropped", most, len(r.partial), r.dropped)
	}
	small := amtrelay.Fragments(amtrelay.UDP(port4, group4, 3, make([]byte, 100)), 7, 64)
	addPart(&r, now.Add(reassemblyTime+1), small[0])
	if len(r.partial) != 1 {
		t.Errorf("%d partial after their time", len(r.partial))
	}
	if _, err := addPart(&r, now.Add(3*reassemblyTime), small[1]); !errors.Is(err, errIncomplete) {
		t.Errorf("a part that came too late: %v", err)
	}
}

func TestReassemblyRefused(t *testing.T) {
	now := time.Unix(1000, 0)
	parts := amtrelay.Fragments(amtrelay.UDP(port6, group6, 3, make([]byte, 200)), 7, 64)
	overlap := bytes.Clone(parts[1])
	overlap[43] -= 8 // its offset
	for name, list := range map[string][][]byte{
		"overlap":         {parts[0], overlap},
		"overlap before":  {overlap, parts[0]},
		"behind the end":  {parts[3], amtrelay.Fragments(amtrelay.UDP(port6, group6, 3, make([]byte, 400)), 7, 64)[4]},
		"two ends":        {parts[3], amtrelay.Fragments(amtrelay.UDP(port6, group6, 3, make([]byte, 100)), 7, 64)[1]},
		"end before part": {parts[2], amtrelay.Fragments(amtrelay.UDP(port6, group6, 3, make([]byte, 60)), 7, 64)[1]},
	} {
		var r reassembler
		var err error
		for _, p := range list {
			_, err = addPart(&r, now, p)
		}
		if !errors.Is(err, errFragment) || len(r.partial) != 0 || r.dropped != 1 {
			t.Errorf("%s: %v, %d partial, %d dropped", name, err, len(r.partial), r.dropped)
		}
	}
}

func FuzzReassembly(f *testing.F) {
	var seed []byte
	for _, p := range amtrelay.Fragments(amtrelay.UDP(port4, group4, 3, make([]byte, 100)), 7, 64) {
		seed = append(append(seed, byte(len(p))), p...)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		var r reassembler
		now := time.Unix(0, 0)
		for len(b) > 1 {
			n := min(int(b[0]), len(b)-1)
			var h ipHeader
			err := h.parse(b[1 : 1+n])
			b = b[1+n:]
			if err != nil || !h.fragmented {
				continue
			}
			if err := r.add(now, &h); err == nil && (h.fragmented || len(h.payload) > 0xffff) {
				t.Fatalf("%+v", h)
			}
			now = now.Add(time.Second)
			bytes := 0
			for _, p := range r.partial {
				bytes += p.have
			}
			if bytes != r.bytes || len(r.partial) != len(r.order) {
				t.Fatalf("%d bytes, counted as %d; %d partial, %d in order", bytes, r.bytes, len(r.partial), len(r.order))
			}
		}
	})
}
