package main

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"
)

func TestHub(t *testing.T) {
	h := newHub(10)
	at := h.live()
	b, skipped, more := h.read(at)
	if b != nil || skipped != 0 || more == nil {
		t.Fatalf("an empty hub: %q %d", b, skipped)
	}
	h.publish([]byte("abc"), []byte("defg"))
	<-more
	for _, want := range []string{"abc", "defg"} {
		if b, skipped, _ = h.read(at); string(b) != want || skipped != 0 {
			t.Fatalf("%q, %d skipped, want %q", b, skipped, want)
		}
		at += uint64(len(b))
	}
	late := uint64(0)
	h.publish([]byte("hijkl")) // 12 bytes: abc goes
	h.publish()
	if b, skipped, _ = h.read(3); string(b) != "defg" || skipped != 0 {
		t.Errorf("what is kept: %q, %d skipped", b, skipped)
	}
	// Whoever is too slow goes on with the newest.
	if b, skipped, _ = h.read(late); string(b) != "hijkl" || skipped != 7 {
		t.Errorf("%q, %d skipped, want hijkl, 7", b, skipped)
	}
	if late += skipped + uint64(len(b)); late != h.live() {
		t.Errorf("at %d, live is %d", late, h.live())
	}
	_, _, more = h.read(late)
	h.close()
	h.close()
	<-more
	if b, _, more = h.read(at); string(b) != "hijkl" || more == nil {
		t.Errorf("%q: what is there can be read after the end", b)
	}
	if b, _, more = h.read(late); b != nil || more != nil {
		t.Errorf("%q after the end", b)
	}
	h.publish([]byte("too late"))
}

// A piece that is larger than the hub is kept: it is live.
func TestHubLargePiece(t *testing.T) {
	h := newHub(4)
	h.publish([]byte("abcdefgh"))
	if b, skipped, _ := h.read(0); string(b) != "abcdefgh" || skipped != 0 {
		t.Errorf("%q, %d skipped", b, skipped)
	}
}

// Viewers of any pace get whole pieces, in order; those that keep up get all.
func TestHubViewers(t *testing.T) {
	h := newHub(1 << 10)
	const pieces = 5000
	var viewers sync.WaitGroup
	read := make(chan struct{}) // by the one that keeps up
	for i := range 20 {
		at := h.live()
		viewers.Go(func() {
			next, got := uint32(0), 0
			for {
				b, skipped, more := h.read(at)
				if b == nil {
					if more == nil {
						break
					}
					<-more
					continue
				}
				if len(b)%4 != 0 || skipped%4 != 0 {
					t.Errorf("half a datagram: %d bytes, %d skipped", len(b), skipped)
				}
				next += uint32(skipped / 4)
				for ; len(b) > 0; b = b[4:] {
					if n := binary.BigEndian.Uint32(b); n != next {
						t.Errorf("viewer %d got %d, not %d", i, n, next)
						return
					}
					next++
					got++
					at += 4
				}
				at += skipped
				if i == 0 {
					read <- struct{}{}
				} else if i%2 == 0 && rand.IntN(50) == 0 {
					h.live() // it loses some time
				}
			}
			if i == 0 && got != int(next) {
				t.Errorf("who keeps up got %d of %d", got, next)
			}
		})
	}
	n := uint32(0)
	for range pieces {
		var b bytes.Buffer
		for range 1 + rand.IntN(20) {
			binary.Write(&b, binary.BigEndian, n)
			n++
		}
		h.publish(b.Bytes())
		<-read
	}
	h.close()
	viewers.Wait()
}
