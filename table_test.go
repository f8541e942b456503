package mcast

import (
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// tableAddr makes addresses that differ in all parts.
func tableAddr(i int) netip.Addr {
	if i%3 == 0 {
		return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x3e, 12: byte(i >> 24), 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
	}
	return netip.AddrFrom4([4]byte{239, byte(i >> 16), byte(i >> 8), byte(i)})
}

// The keys of a filter, and those of what a socket hears.
func addrKey(i int) groupAddr { return groupAddr{tableAddr(i)} }

func indexKey(i int) groupIndex { return groupIndex{tableAddr(i / 2), (i%6 + 6) % 6} }

// checkTable checks what must always hold of a table, and gives its size.
func checkTable[K key](t *testing.T, tab *table[K, int], want map[K]*int) (slots int) {
	t.Helper()
	var taken, live int
	if p := tab.slots.Load(); p != nil {
		slots = len(p.s)
		seen := map[K]bool{}
		for i := range p.s {
			e := p.s[i].Load()
			if e == nil {
				continue
			}
			taken++
			if seen[e.key] {
				t.Fatalf("%v is in two slots", e.key)
			}
			seen[e.key] = true
			if e.value.Load() != nil {
				live++
			}
		}
		if slots&(slots-1) != 0 || taken == slots {
			t.Fatalf("%d of %d slots are taken: a search would not end", taken, slots)
		}
	}
	if taken != tab.taken || live != tab.live || live != len(want) {
		t.Fatalf("%d slots taken, %d live; the table says %d, %d; want %d live", taken, live, tab.taken, tab.live, len(want))
	}
	n := 0
	for k, v := range tab.all {
		if n++; want[k] != v {
			t.Fatalf("all gives %v for %v, want %v", v, k, want[k])
		}
	}
	if n != len(want) {
		t.Fatalf("all gives %d entries, want %d", n, len(want))
	}
	for range tab.all { // can be left early
		break
	}
	return slots
}

func TestTableRandom(t *testing.T) {
	t.Run("groupAddr", func(t *testing.T) { testTableRandom(t, addrKey) })
	t.Run("groupIndex", func(t *testing.T) { testTableRandom(t, indexKey) })
}

func testTableRandom[K key](t *testing.T, tableKey func(int) K) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 1))
		keys := []int{1, 5, 20, 300, 3000, 100_000}[seed]
		var tab table[K, int]
		want := map[K]*int{}
		for step := range 20_000 {
			k := tableKey(rng.IntN(keys))
			if rng.IntN(3) == 0 {
				tab.put(k, nil)
				delete(want, k)
			} else {
				v := &step
				tab.put(k, v)
				want[k] = v
			}
			for _, k := range []K{k, tableKey(rng.IntN(keys)), *new(K)} {
				if got := tab.get(k); got != want[k] {
					t.Fatalf("seed %d, step %d: get(%v) = %v, want %v", seed, step, k, got, want[k])
				}
			}
			if step%500 == 0 {
				checkTable(t, &tab, want)
			}
		}
		checkTable(t, &tab, want)
	}
}

func TestTableGrows(t *testing.T) {
	t.Run("groupAddr", func(t *testing.T) { testTableGrows(t, addrKey) })
	t.Run("groupIndex", func(t *testing.T) { testTableGrows(t, indexKey) })
}

func testTableGrows[K key](t *testing.T, tableKey func(int) K) {
	var tab table[K, int]
	want := map[K]*int{}
	if tab.get(tableKey(1)) != nil || checkTable(t, &tab, want) != 0 {
		t.Error("the zero table is not empty")
	}
	tab.put(tableKey(1), nil) // nothing to take out
	if checkTable(t, &tab, want) != 0 {
		t.Error("taking out what is not there took room")
	}
	for i := range 10_000 {
		v := i
		tab.put(tableKey(i), &v)
		want[tableKey(i)] = &v
		if i&(i-1) == 0 {
			if slots := checkTable(t, &tab, want); slots > 8*(i+2) {
				t.Fatalf("%d slots for %d entries", slots, i+1)
			}
		}
	}
	for i := range 10_000 {
		if v := tab.get(tableKey(i)); v == nil || *v != i {
			t.Fatalf("get(%v) = %v, want %d", tableKey(i), v, i)
		}
	}
	// A search begins where the hash says, and ends soon.
	slots, away := tab.slots.Load().s, 0
	for i := range slots {
		if e := slots[i].Load(); e != nil {
			away += (i - int(e.key.hash()>>1)) & (len(slots) - 1)
		}
	}
	if average := float64(away) / 10_000; average > 2 { // at most 1.5 or so, by chance
		t.Errorf("an entry is %.1f slots away from its place on average", average)
	}
}

// TestTableReuses: a key that comes and goes stays in one slot.
func TestTableReuses(t *testing.T) {
	var tab table[groupAddr, int]
	one := 1
	for range 1000 {
		tab.put(addrKey(1), &one)
		tab.put(addrKey(1), nil)
	}
	if slots := checkTable(t, &tab, nil); tab.taken != 1 || slots > 8 {
		t.Errorf("%d of %d slots are taken by one key", tab.taken, slots)
	}
}

// TestTableBounded: keys that come and go forever, each another, do not make
// the table grow; nor does it stay large for good after it shrank.
func TestTableBounded(t *testing.T) {
	for _, live := range []int{0, 1, 10, 100} {
		var tab table[groupIndex, int]
		v := 1
		want := map[groupIndex]*int{}
		for i := range 5000 { // was once large
			tab.put(indexKey(i), &v)
		}
		for i := range 5000 {
			tab.put(indexKey(i), nil)
		}
		for i := range live {
			tab.put(indexKey(-1-i), &v)
			want[indexKey(-1-i)] = &v
		}
		for i := range 100_000 {
			tab.put(indexKey(i), &v)
			tab.put(indexKey(i), nil)
		}
		if slots := checkTable(t, &tab, want); slots > 8*(live+2) {
			t.Errorf("%d slots for %d entries", slots, live)
		}
	}
}

// TestTableReaders: readers never miss an entry that is there all along, nor
// see another's value, while a writer grows and rebuilds the table.
func TestTableReaders(t *testing.T) {
	t.Run("groupAddr", func(t *testing.T) { testTableReaders(t, addrKey) })
	t.Run("groupIndex", func(t *testing.T) { testTableReaders(t, indexKey) })
}

func testTableReaders[K key](t *testing.T, tableKey func(int) K) {
	const stable, churning = 20, 2000
	var tab table[K, K]
	put := func(i int) { k := tableKey(i); tab.put(k, &k) }
	for i := range stable {
		put(i)
	}
	var done atomic.Bool
	var wg sync.WaitGroup
	for r := range 4 {
		rng := rand.New(rand.NewPCG(uint64(r), 4))
		wg.Go(func() {
			for !done.Load() {
				for range 100 {
					i := rng.IntN(2 * stable)
					if i >= stable {
						i = stable + rng.IntN(churning)
					}
					k := tableKey(i)
					if v := tab.get(k); v == nil && i < stable || v != nil && *v != k {
						t.Errorf("get(%v) = %v", k, v)
						return
					}
				}
				n := 0
				for k, v := range tab.all {
					if *v != k {
						t.Errorf("all gives %v for %v", *v, k)
						return
					}
					n++
				}
				if n < stable {
					t.Errorf("all gives %d entries, %d are there", n, stable)
					return
				}
				runtime.Gosched()
			}
		})
	}
	for round := range 20 {
		for i := range churning >> (round % 5) {
			put(stable + i)
		}
		for i := range stable {
			put(i)
		}
		for i := range churning {
			tab.put(tableKey(stable+i), nil)
		}
	}
	done.Store(true)
	wg.Wait()
}

// TestTableSpreads: whatever the keys have in common, a search looks at a few
// slots, in each process: the seeds must not matter. IPv6 prefixes stand for
// seeds here, as both go into the hash alike.
func TestTableSpreads(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 5))
	four := func(b0, b1, b2, b3 int) netip.Addr {
		return netip.AddrFrom4([4]byte{byte(b0), byte(b1), byte(b2), byte(b3)})
	}
	hashes := map[string]func(i int) uint64{}
	add := func(name string, key func(i int) (a netip.Addr, index int)) {
		hashes["groupIndex: "+name] = func(i int) uint64 {
			a, index := key(i)
			return groupIndex{a, index}.hash()
		}
		if !strings.Contains(name, "interface") {
			hashes["groupAddr: "+name] = func(i int) uint64 {
				a, _ := key(i)
				return groupAddr{a}.hash()
			}
		}
	}
	add("IPv4, last octets", func(i int) (netip.Addr, int) { return four(232, 1, i>>8, i), 2 })
	add("IPv4, middle octets", func(i int) (netip.Addr, int) { return four(232, i, i>>8, 1), 2 })
	add("IPv4, interface", func(i int) (netip.Addr, int) { return four(232, 1, 1, 1), i })
	add("IPv4, octet by interface", func(i int) (netip.Addr, int) { return four(224+i&15, 1, 1, i>>8), i >> 4 & 15 })
	add("IPv6, prefixes", func(i int) (netip.Addr, int) { // RFC 3306
		return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x3e, 3: 64, 4: 0x20, 5: 1, 6: byte(i >> 8), 7: byte(i), 15: 1}), 2
	})
	for n := range 250 {
		prefix := [16]byte{0: 0xff, 1: 0x3e}
		for i := 2; i < 8; i++ {
			prefix[i] = byte(rng.Uint32())
		}
		add("IPv6, prefix "+strconv.Itoa(n), func(i int) (netip.Addr, int) {
			a := prefix
			a[14], a[15] = byte(i>>8), byte(i)
			return netip.AddrFrom16(a), 2
		})
	}
	const n, size = 1000, 2048
	bad, worst, where := 0, 0.0, ""
	for name, hash := range hashes {
		var taken [size]bool
		looks := 0
		for i := range n {
			j := int(hash(i)>>1) & (size - 1) // as find has it
			for looks++; taken[j]; looks++ {
				j = (j + 1) & (size - 1)
			}
			taken[j] = true
		}
		average := float64(looks) / n // at random 1.5, by chance 1.8
		if average > 3 {
			bad++
		}
		if average > worst {
			worst, where = average, name
		}
	}
	if bad > 0 {
		t.Errorf("a search among %d keys looks at more than 3 slots on average for %d of %d kinds of keys; at %.1f for %s", n, bad, len(hashes), worst, where)
	}
}
