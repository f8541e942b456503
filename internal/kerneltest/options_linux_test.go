package kerneltest

import (
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLinuxModelSettings asks the running kernel for every option that the model
// knows, and sets it with and without a byte less than it takes.
func TestLinuxModelSettings(t *testing.T) {
	sinceLinux(t, 5, 14) // SO_NETNS_COOKIE
	k := linuxHere(t)
	onlySet := []string{"SO_RCVBUFFORCE", "SO_SNDBUFFORCE", "SO_BUSY_POLL_BUDGET"}
	for o, known := range linuxSettings {
		p := newPair(t, k, o.level == levelIPv6)
		p.seed = known.name
		value := make([]byte, max(4, known.min))
		if _, err := p.real.Getsockopt(o.level, int(o.number), value); err != nil && !slices.Contains(onlySet, known.name) {
			t.Errorf("get %s: %v", known.name, err)
		}
		if known.read {
			continue
		}
		clear(value)
		if err := p.real.Setsockopt(o.level, int(o.number), value); err == unix.EPERM {
			continue
		} else if got := p.model.Setsockopt(o.level, int(o.number), value); (got == nil) != (err == nil || err == unix.EINVAL) {
			t.Errorf("set %s to 0: model %s, kernel %v", known.name, answer(got), err)
		}
		if known.min > 1 {
			p.set(o.level, int(o.number), value[:known.min-1])
		}
	}
	for _, o := range []option{{levelIP, 150}, {levelIPv6, 150}, {levelUDP, 200}, {levelSocketLin, 2000}} {
		p := newPair(t, k, o.level == levelIPv6)
		if err := p.set(o.level, int(o.number), make([]byte, 4)); err != syscall.ENOPROTOOPT {
			t.Errorf("an option that nobody knows: %v", err)
		}
	}
}

// TestLinuxModelSender names the interface to send by.
func TestLinuxModelSender(t *testing.T) {
	k := linuxHere(t)
	index := func(i int32) []byte {
		v := make([]byte, 4)
		k.Order.PutUint32(v, uint32(i))
		return v
	}
	p, q := newPair(t, k, false), newPair(t, k, true)
	for _, i := range []int32{0, 1, 1 << 20, -1} {
		p.set(levelIP, 32, append(make([]byte, 8), index(i)...))
		q.set(levelIPv6, 17, index(i))
	}
	for _, v := range [][]byte{
		{127, 0, 0, 1},
		{0, 0, 0, 0},
		{192, 0, 2, 99},
		{239, 0, 0, 1, 127, 0, 0, 1},
		{239, 0, 0, 1, 192, 0, 2, 99},
		{0, 0, 0},
		{0, 0, 0, 0, 1},
	} {
		p.set(levelIP, 32, v)
	}
}
