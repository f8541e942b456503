package mcast

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
)

// A key is what a table is keyed by.
type key interface {
	comparable
	hash() uint64
}

// A table is a hash table that any number of goroutines read without a lock
// while one at a time changes it. The zero table is empty.
//
// It is open addressing with linear probing. An entry stays in its slot after
// its value is gone, until the slots are made anew; a reader that still has
// the old slots sees the same entries.
type table[K key, V any] struct {
	slots atomic.Pointer[slots[K, V]]
	taken int // slots that are not nil
	live  int // entries that have a value
	first slots[K, V]
}

// slots are a power of two, some of them always nil.
type slots[K key, V any] struct {
	s   []atomic.Pointer[cell[K, V]]
	few [fewSlots]atomic.Pointer[cell[K, V]] // what s starts as, in a table's first
}

type cell[K key, V any] struct {
	key   K
	value atomic.Pointer[V] // nil: not in the table
}

// get returns the value for the key, or nil.
func (t *table[K, V]) get(key K) *V {
	slots := t.slots.Load()
	if slots == nil {
		return nil
	}
	if e, _ := find(slots.s, key); e != nil {
		return e.value.Load()
	}
	return nil
}

// put sets the value for the key; nil takes it out.
func (t *table[K, V]) put(key K, value *V) {
	var slots []atomic.Pointer[cell[K, V]]
	if p := t.slots.Load(); p != nil {
		slots = p.s
	}
	e, i := find(slots, key)
	switch {
	case e != nil:
		old := e.value.Swap(value)
		t.live += count(value) - count(old)
		return
	case value == nil:
		return
	}
	if 4*(t.taken+1) > 3*len(slots) {
		slots = t.grow(slots, t.live+1)
		_, i = find(slots, key)
	}
	e = &cell[K, V]{key: key}
	e.value.Store(value)
	slots[i].Store(e)
	t.taken++
	t.live++
}

func count[V any](value *V) int {
	if value == nil {
		return 0
	}
	return 1
}

// all calls yield for every key with a value.
func (t *table[K, V]) all(yield func(K, *V) bool) {
	slots := t.slots.Load()
	if slots == nil {
		return
	}
	for i := range slots.s {
		if e := slots.s[i].Load(); e != nil {
			if v := e.value.Load(); v != nil && !yield(e.key, v) {
				return
			}
		}
	}
}

// grow replaces the slots by new ones, for n entries, at most half of them
// taken but for a few, without the entries that lost their value.
func (t *table[K, V]) grow(old []atomic.Pointer[cell[K, V]], n int) []atomic.Pointer[cell[K, V]] {
	p := &t.first
	if old == nil && n < fewSlots {
		p.s = p.few[:]
	} else {
		p = &slots[K, V]{s: make([]atomic.Pointer[cell[K, V]], max(fewSlots, 1<<bits.Len(uint(2*n-1))))}
	}
	t.taken = 0
	for i := range old {
		if e := old[i].Load(); e != nil && e.value.Load() != nil {
			_, j := find(p.s, e.key)
			p.s[j].Store(e)
			t.taken++
		}
	}
	t.slots.Store(p)
	return p.s
}

// fewSlots are so few that finding the first one needs no hash.
const fewSlots = 4

// find returns the entry of a key, or nil and the slot where it would go.
func find[K key, V any](slots []atomic.Pointer[cell[K, V]], key K) (*cell[K, V], int) {
	mask := len(slots) - 1
	if mask < 0 {
		return nil, 0
	}
	i := 0 // few are found as fast one after the other
	if mask >= fewSlots {
		i = int(key.hash()>>1) & mask
	}
	for ; ; i = (i + 1) & mask {
		if e := slots[i].Load(); e == nil || e.key == key {
			return e, i
		}
	}
}

// The seeds differ in each process, so that nobody can choose groups that
// share a slot.
var seed, seed2 = rand.Uint64(), rand.Uint64()

// hashAddr mixes an address with something else, twice: after one
// multiplication by whatever the first half of an address is, some keys that
// differ in a few bits stay close together.
func hashAddr(a netip.Addr, h uint64) uint64 {
	if a.Is4() {
		b := a.As4()
		h ^= uint64(binary.LittleEndian.Uint32(b[:]))
	} else if b := a.AsSlice(); len(b) == 16 {
		// As16 would write two words and read them back as one, for which the
		// processor has to wait.
		h ^= mix(binary.LittleEndian.Uint64(b[:8])^seed, binary.LittleEndian.Uint64(b[8:])^seed2)
	}
	return mix(mix(h^seed, 0x9e3779b97f4a7c15), 0xbf58476d1ce4e5b9)
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}
