package netif

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A modelKernel is the kernel's end of a netlink socket. It has few places in
// its queue, loses what comes while that is full, and says so once.
type modelKernel struct {
	r      *rand.Rand
	links  map[int]*modelLink
	clock  uint32
	queue  [][]byte
	lost   bool
	places int
	meddle func() // is called between the parts of a dump

	dump    uint32 // the one under way; 0: none
	dumped  int    // the last index that was
	changed bool   // links came or went since it began
}

type modelLink struct {
	name                      string
	up, carrier, six          bool // six: the administrator wants IPv6
	mtu, carriers             uint32
	stamp, reachable, retrans uint32
}

const modelPort = 4711

// failed is the data of an NLMSG_ERROR.
func failed(errno unix.Errno) []byte { return ne.AppendUint32(nil, uint32(-int32(errno))) }

var errIdle = errors.New("there is no news")

func newModelKernel(r *rand.Rand) *modelKernel {
	return &modelKernel{r: r, links: make(map[int]*modelLink), places: 1000, meddle: func() {}}
}

func (k *modelKernel) Close() error                    { return nil }
func (k *modelKernel) SetReadDeadline(time.Time) error { return nil }

func (k *modelKernel) tell(b []byte) {
	if len(k.queue) >= k.places {
		k.lost = true
		return
	}
	k.queue = append(k.queue, b)
}

func (l *modelLink) runs() bool    { return l.six && l.mtu >= leastIPv6MTU }
func (l *modelLink) started() bool { return l.runs() && l.up && l.carrier }

func (l *modelLink) describe(index int) Interface {
	return Interface{Index: index, Name: l.name, Up: l.up, Carrier: l.up && l.carrier, IPv6: l.runs(), IPv6Disabled: !l.six && l.mtu >= leastIPv6MTU}
}

func (l *modelLink) inet6() []byte {
	flags := uint32(0)
	if l.started() {
		flags = ifReady
	}
	return inet6Attrs(flags, !l.six, l.stamp, l.reachable, l.retrans)
}

func (l *modelLink) data(index int) []byte {
	flags := uint32(0)
	if l.up {
		flags |= unix.IFF_UP
	}
	if l.up && l.carrier {
		flags |= unix.IFF_LOWER_UP
	}
	spec := attribute(unix.AF_INET, nil)
	if l.mtu >= leastIPv6MTU {
		spec = append(spec, attribute(unix.AF_INET6, l.inet6())...)
	}
	return linkData(0, int32(index), flags, attribute(unix.IFLA_IFNAME, []byte(l.name+"\x00")), uint32Attr(unix.IFLA_MTU, l.mtu),
		uint32Attr(unix.IFLA_CARRIER_CHANGES, l.carriers), attribute(unix.IFLA_AF_SPEC, spec))
}

func (k *modelKernel) tellLink(index int) {
	k.tell(netlinkMessage(unix.RTM_NEWLINK, 0, 0, 0, k.links[index].data(index)...))
}

// change changes one thing about a link, and tells what the kernel tells.
func (k *modelKernel) change(index int, f func(*modelLink)) {
	l := k.links[index]
	was, before := l.started(), *l
	f(l)
	k.clock += 3
	if l.started() != was {
		l.stamp = k.clock
	}
	if before.up != l.up || before.carrier != l.carrier || before.name != l.name || before.mtu != l.mtu {
		k.tellLink(index)
	}
	if was && !l.started() {
		a := append(ne.AppendUint32([]byte{unix.AF_INET6, 64, 0, 0}, uint32(index)), attribute(unix.IFA_ADDRESS, make([]byte, 16))...)
		k.tell(netlinkMessage(unix.RTM_DELADDR, 0, 0, 0, a...))
	}
	if l.started() != was && l.started() {
		k.tell(netlinkMessage(unix.RTM_NEWLINK, 0, 0, 0, linkData(unix.AF_INET6, int32(index), 0,
			attribute(unix.IFLA_IFNAME, []byte(l.name+"\x00")), uint32Attr(unix.IFLA_MTU, l.mtu), attribute(unix.IFLA_PROTINFO, l.inet6()))...))
	}
}

func (k *modelKernel) add(index int, name string) {
	k.clock += 3
	k.links[index] = &modelLink{name: name, mtu: 1500, carriers: 1, six: true, stamp: k.clock, reachable: 5, retrans: 1000}
	k.changed = true
	k.tellLink(index)
}

func (k *modelKernel) remove(index int) {
	delete(k.links, index)
	k.changed = true
	k.tell(netlinkMessage(unix.RTM_DELLINK, 0, 0, 0, linkData(0, int32(index), 0)...))
}

func (k *modelKernel) Write(b []byte) (int, error) {
	for m := range messages(b) {
		index := int(ne.Uint32(m.data[4:]))
		switch {
		case m.flags&unix.NLM_F_DUMP != 0 && k.dump != 0:
			k.queue = append(k.queue, netlinkMessage(unix.NLMSG_ERROR, 0, m.seq, modelPort, failed(unix.EBUSY)...))
		case m.flags&unix.NLM_F_DUMP != 0:
			k.dump, k.dumped, k.changed = m.seq, 0, false
		case k.links[index] != nil:
			k.queue = append(k.queue, netlinkMessage(unix.RTM_NEWLINK, 0, m.seq, modelPort, k.links[index].data(index)...))
		default:
			k.queue = append(k.queue, netlinkMessage(unix.NLMSG_ERROR, 0, m.seq, modelPort, failed(unix.ENODEV)...))
		}
	}
	return len(b), nil
}

func (k *modelKernel) Read(b []byte) (int, error) {
	k.meddle()
	if k.lost {
		k.lost = false
		return 0, &os.PathError{Op: "read", Err: unix.ENOBUFS}
	}
	if k.dump != 0 && (len(k.queue) == 0 || k.r.IntN(3) == 0) {
		k.queue = append(k.queue, k.part())
	}
	if len(k.queue) == 0 {
		return 0, errIdle
	}
	n := copy(b, k.queue[0])
	k.queue = k.queue[1:]
	return n, nil
}

// part returns the next part of a dump: a link, or the end.
func (k *modelKernel) part() []byte {
	flags := uint16(unix.NLM_F_MULTI)
	if k.changed {
		flags |= unix.NLM_F_DUMP_INTR
	}
	next := 0
	for index := range k.links {
		if index > k.dumped && (next == 0 || index < next) {
			next = index
		}
	}
	if next != 0 && k.changed && k.r.IntN(2) == 0 {
		k.dumped = next // a kernel may miss some then, and says so
		return netlinkMessage(unix.NLMSG_NOOP, flags, k.dump, modelPort)
	}
	if next == 0 {
		seq := k.dump
		k.dump = 0
		return netlinkMessage(unix.NLMSG_DONE, flags, seq, modelPort, 0, 0, 0, 0)
	}
	k.dumped = next
	return netlinkMessage(unix.RTM_NEWLINK, flags, k.dump, modelPort, k.links[next].data(next)...)
}

// drain reads all that there is and applies it.
func drain(t *testing.T, s *source, state *State) (news []News) {
	t.Helper()
	for range 10_000 {
		changes, err := s.Read()
		if err == errIdle {
			return news
		}
		if err != nil {
			t.Fatal(err)
		}
		news = append(news, state.Apply(changes, time.Unix(1, 0))...)
	}
	t.Fatal("there is no end to it")
	return nil
}

// Whatever happens, and however much of the news of it is lost, in the end a
// State has what is. What was not lost is all told, and an IPv6 that ended and
// began is told even then.
func TestSourceRandom(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for round := range 300 {
		k := newModelKernel(r)
		k.add(1, "lo")
		k.add(2, "eth0")
		removed, restarted := make(map[int]int), make(map[int]bool)
		overrun := false
		step := func() {
			index := 1 + r.IntN(5)
			l := k.links[index]
			if l == nil {
				k.add(index, fmt.Sprint("if", index))
				return
			}
			if r.IntN(12) == 0 {
				removed[index]++
				delete(restarted, index)
				k.remove(index)
				return
			}
			started := l.started()
			if r.IntN(5) == 0 {
				l.reachable++ // the kernel varies it by itself
			}
			switch r.IntN(6) {
			case 0, 1:
				k.change(index, func(l *modelLink) { l.up = !l.up })
			case 2:
				k.change(index, func(l *modelLink) { l.carrier = !l.carrier; l.carriers++ })
			case 3:
				k.change(index, func(l *modelLink) { l.six = !l.six })
			case 4:
				k.change(index, func(l *modelLink) { l.mtu = 1000 + 1500 - l.mtu })
			case 5:
				k.change(index, func(l *modelLink) { l.name = fmt.Sprint("name", r.IntN(100)) })
			}
			if started && !l.started() && (!l.six || l.mtu < leastIPv6MTU) {
				restarted[index] = true
			}
		}
		s, err := newSource(k, modelPort)
		if err != nil {
			t.Fatal(err)
		}
		var state State
		drain(t, s, &state)
		for range 10 {
			clear(removed)
			clear(restarted)
			known := make(map[int]bool)
			for _, ifi := range state.Interfaces() {
				known[ifi.Index] = ifi.IPv6 && ifi.Up && ifi.Carrier
			}
			overrun = false
			k.places = 1000
			if r.IntN(2) == 0 {
				k.places = 1 + r.IntN(6)
			}
			for range r.IntN(20) {
				step()
			}
			overrun = k.lost
			more := r.IntN(5)
			k.meddle = func() {
				if more > 0 && r.IntN(2) == 0 {
					more--
					step()
				}
				overrun = overrun || k.lost
			}
			news := drain(t, s, &state)
			k.meddle = func() {}
			var want []Interface
			for index, l := range k.links {
				want = append(want, l.describe(index))
			}
			sortByIndex(want)
			got := state.Interfaces()
			for i := range min(len(got), len(want)) {
				if !want[i].Up || !want[i].Carrier {
					got[i].IPv6, got[i].IPv6Disabled = want[i].IPv6, want[i].IPv6Disabled // no message says so
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d, round %d: %+v, want %+v", seed, round, got, want)
			}
			count := func(kind Kind, index int) (n int) {
				for _, one := range news {
					if one.Kind == kind && one.Interface.Index == index {
						n++
					}
				}
				return n
			}
			for index := range 6 {
				if n := count(Gone, index); !overrun && n != removed[index] {
					t.Fatalf("seed %d, round %d: interface %d went %d times, told %d times", seed, round, index, removed[index], n)
				}
				if restarted[index] && removed[index] == 0 && known[index] && k.links[index].started() && count(IPv6Lost, index) == 0 {
					t.Fatalf("seed %d, round %d: IPv6 on %d ended and began (overrun: %v), told: %v", seed, round, index, overrun, newsString(news))
				}
			}
		}
	}
}

// News that the dump is newer than, of links that are gone since.
func TestSourceOldNews(t *testing.T) {
	k := newModelKernel(rand.New(rand.NewPCG(1, 1)))
	k.add(1, "lo")
	s, err := newSource(k, modelPort)
	if err != nil {
		t.Fatal(err)
	}
	var state State
	drain(t, s, &state)
	k.add(2, "eth0")
	k.places = len(k.queue)
	k.remove(2) // lost
	drain(t, s, &state)
	if got := state.Interfaces(); len(got) != 1 {
		t.Errorf("%+v", got)
	}
}

// Another program's request may have the number of a dump.
func TestBatchForeign(t *testing.T) {
	var b batch
	name := attribute(unix.IFLA_IFNAME, []byte("eth0\x00"))
	b.add(netlinkMessage(unix.RTM_NEWLINK, unix.NLM_F_DUMP_INTR, 1, 99, linkData(0, 5, 0, name)...), 1, modelPort)
	b.add(netlinkMessage(unix.NLMSG_DONE, 0, 1, 99), 1, modelPort)
	b.add(netlinkMessage(unix.NLMSG_DONE, 0, 2, modelPort), 1, modelPort)
	b.add(netlinkMessage(unix.NLMSG_ERROR, 0, 2, modelPort, 0xf0, 0xff, 0xff, 0xff), 1, modelPort)
	if b.begun || b.done || b.interrupted || b.err != nil || len(b.updates) != 1 {
		t.Errorf("%+v", b)
	}
	b.add(netlinkMessage(unix.NLMSG_ERROR, 0, 1, modelPort, 0, 0, 0, 0), 1, modelPort)
	if b.err != nil {
		t.Error("an acknowledgment is no error")
	}
	b.add(netlinkMessage(unix.NLMSG_ERROR, 0, 1, modelPort, failed(unix.EPERM)...), 1, modelPort)
	if !errors.Is(b.err, unix.EPERM) {
		t.Error("a dump that is refused goes unnoticed")
	}
}

// alarmFile returns what a timerfd does, once each.
type alarmFile []error

func (a *alarmFile) Read([]byte) (int, error) {
	if len(*a) == 0 {
		return 0, os.ErrClosed
	}
	err := (*a)[0]
	*a = (*a)[1:]
	return 8, err
}

func TestListen(t *testing.T) {
	set := &os.PathError{Op: "read", Err: unix.ECANCELED}
	const s, h = time.Second, time.Hour
	for _, test := range []struct {
		name  string
		times []times
		want  int
	}{
		{"nothing", nil, 0},
		{"the clock is set by a second", []times{{h, h, h + s}}, 0},
		{"sleep", []times{{s, h, h}}, 1},
		{"a short sleep", []times{{s, 30 * s, 30 * s}}, 0},
		{"sleep twice", []times{{s, h, h}, {2 * s, 2 * h, 2 * h}}, 2},
		{"sleep, and the clock is set by a second", []times{{s, h, h}, {2 * s, h + s, h + 3*s}}, 1},
		{"a virtual machine that was stopped", []times{{s, s, h}}, 1},
		{"the clock is set back", []times{{s, s, -h}}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			alarm, calls, woke := alarmFile(nil), 0, 0
			for range test.times {
				alarm = append(alarm, set)
			}
			listen(&alarm, func() times {
				calls++
				return append([]times{{}}, test.times...)[calls-1]
			}, func() { woke++ })
			if woke != test.want {
				t.Errorf("woke %d times, want %d", woke, test.want)
			}
		})
	}
}

// deadlineFile is a socket on which there is never any news, but a deadline.
type deadlineFile struct {
	mu      sync.Mutex
	changed sync.Cond
	passed  bool
	*modelKernel
}

func (f *deadlineFile) SetReadDeadline(at time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.passed = !at.IsZero()
	f.changed.Broadcast()
	return nil
}

func (f *deadlineFile) Read(b []byte) (int, error) {
	f.mu.Lock()
	passed := f.passed
	f.mu.Unlock()
	if passed {
		return 0, os.ErrDeadlineExceeded
	}
	if n, err := f.modelKernel.Read(b); err != errIdle {
		return n, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for !f.passed {
		f.changed.Wait()
	}
	return 0, os.ErrDeadlineExceeded
}

func TestSourceWoke(t *testing.T) {
	f := &deadlineFile{modelKernel: newModelKernel(rand.New(rand.NewPCG(1, 1)))}
	f.changed.L = &f.mu
	f.add(1, "lo")
	s, err := newSource(f, modelPort)
	if err != nil {
		t.Fatal(err)
	}
	if changes, err := s.Read(); err != nil || len(changes) == 0 {
		t.Fatalf("%+v, %v", changes, err)
	}
	for range 3 {
		go s.wake()
		if changes, err := s.Read(); err != nil || !slices.Equal(changes, []Change{{Woke: true}}) {
			t.Fatalf("%+v, %v", changes, err)
		}
	}
	if f.passed {
		t.Error("the deadline stays")
	}
	// In the middle of a dump, which goes on: nothing is taken for gone.
	f.add(2, "eth0")
	if changes, err := s.Read(); err != nil || len(changes) != 1 {
		t.Fatalf("%+v, %v", changes, err)
	}
	f.lost = true
	parts := 0
	f.meddle = func() {
		if parts++; parts == 3 {
			go s.wake()
			for !s.woke.Load() {
				time.Sleep(time.Millisecond)
			}
		}
	}
	changes, err := s.Read()
	woke := slices.Contains(changes, Change{Woke: true})
	for err == nil && !woke {
		changes, err = s.Read()
		woke = slices.Contains(changes, Change{Woke: true})
	}
	if err != nil || f.dump != 0 || slices.ContainsFunc(changes, func(c Change) bool { return c.Gone }) {
		t.Errorf("%+v, %v, dump %d", changes, err, f.dump)
	}
}

// What links make of single messages.
func TestLinks(t *testing.T) {
	name, spec := attribute(unix.IFLA_IFNAME, []byte("eth0\x00")), func(stamp, retrans uint32) []byte {
		return attribute(unix.IFLA_AF_SPEC, attribute(unix.AF_INET6, inet6Attrs(ifReady, false, stamp, 1, retrans)))
	}
	link := func(stamp, retrans, carriers uint32) []byte {
		return netlinkMessage(unix.RTM_NEWLINK, 0, 0, 0, linkData(0, 5, unix.IFF_UP|unix.IFF_LOWER_UP, name, spec(stamp, retrans), uint32Attr(unix.IFLA_CARRIER_CHANGES, carriers))...)
	}
	address := func(kind uint16) []byte {
		a := append(ne.AppendUint32([]byte{unix.AF_INET6, 64, 0, 0}, 5), attribute(unix.IFA_ADDRESS, make([]byte, 16))...)
		return netlinkMessage(kind, 0, 0, 0, a...)
	}
	ls := make(links)
	for i, step := range []struct {
		b       []byte
		overrun bool
		want    string
	}{
		{link(100, 1000, 4), false, "on"},
		{link(100, 1000, 4), false, "on"},
		{link(101, 1000, 4), false, "off, on"},
		{link(102, 1001, 4), false, "on"}, // a router advertises another time
		{address(unix.RTM_NEWADDR), false, "moved"},
		{link(103, 1002, 4), false, "on"},
		{address(unix.RTM_DELADDR), false, "moved"},
		{link(104, 1003, 4), false, "off, on"},
		{link(105, 1004, 4), false, "on"}, // that address is no reason any more
		{link(106, 1005, 4), true, "off, on"},
		{link(200, 1005, 2), false, "on"}, // another one with its index
		{netlinkMessage(unix.RTM_NEWLINK, 0, 0, 0, linkData(unix.AF_INET6, 6, 0, name, attribute(unix.IFLA_PROTINFO, nil))...), false, ""},
		{netlinkMessage(unix.RTM_DELLINK, 0, 0, 0, linkData(unix.AF_INET6, 5, 0, name)...), false, "off"},
		{netlinkMessage(unix.RTM_DELLINK, 0, 0, 0, linkData(0, 5, 0, name)...), false, "gone"},
	} {
		var b batch
		b.add(step.b, 1, modelPort)
		var got []string
		for _, c := range ls.apply(&b, false, step.overrun) {
			switch {
			case c.Gone:
				got = append(got, "gone")
			case c.Moved:
				got = append(got, "moved")
			case c.IPv6:
				got = append(got, "on")
			default:
				got = append(got, "off")
			}
		}
		if got := strings.Join(got, ", "); got != step.want {
			t.Errorf("step %d: %s, want %s", i, got, step.want)
		}
	}
}

func TestAlarm(t *testing.T) {
	f, err := newAlarm()
	if err != nil {
		t.Skip("no timerfd:", err)
	}
	done := make(chan bool)
	go func() {
		listen(f, clocks, func() { t.Error("it slept") })
		close(done)
	}()
	f.Close()
	<-done
	c := clocks()
	if c.monotonic <= 0 || c.boot < c.monotonic || c.wall <= 0 {
		t.Errorf("%+v", c)
	}
}
