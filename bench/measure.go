//go:build linux && cgo

package main

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A subject is one line of a table: something whose cost is measured.
type subject struct {
	name    string
	units   int          // datagrams, or calls, that one run stands for
	prepare func() error // before each run, not timed; may be nil
	run     func() error
}

// cycle runs the subject once and returns the CPU time of this thread in
// nanoseconds per unit.
func (s *subject) cycle() (float64, error) {
	if s.prepare != nil {
		if err := s.prepare(); err != nil {
			return 0, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	start := threadCPU()
	err := s.run()
	ns := threadCPU() - start
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.name, err)
	}
	return float64(ns) / float64(s.units), nil
}

// turn runs the subject once to warm the caches up, then a few times more, and
// returns the mean of these.
func (s *subject) turn() (float64, error) {
	const timed = 3
	sum := 0.0
	for i := range 1 + timed {
		ns, err := s.cycle()
		if err != nil {
			return 0, err
		}
		if i > 0 {
			sum += ns
		}
	}
	return sum / timed, nil
}

// times are the nanoseconds per unit of each subject, in each round.
type times map[string][]float64

// measure gives every subject one turn in each round, in an order drawn anew
// for each. The subjects share whatever else happens on the machine.
func measure(rounds int, subjects []subject) (times, error) {
	// CPU time is that of a thread: stay on it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for i := range subjects { // headers, pages, branch predictors
		for range 3 {
			if _, err := subjects[i].turn(); err != nil {
				return nil, err
			}
		}
	}
	t := make(times)
	for range rounds {
		for _, i := range rand.Perm(len(subjects)) {
			ns, err := subjects[i].turn()
			if err != nil {
				return nil, err
			}
			t[subjects[i].name] = append(t[subjects[i].name], ns)
		}
	}
	return t, nil
}

func (t times) has(names ...string) bool {
	for _, name := range names {
		if len(t[name]) == 0 {
			return false
		}
	}
	return true
}

// ns is the median of a subject.
func (t times) ns(name string) float64 { return median(t[name]) }

// ratio is the median, over the rounds, of one subject's time to that of
// another in the same round.
func (t times) ratio(name, to string) float64 {
	rs := make([]float64, len(t[name]))
	for i := range rs {
		rs[i] = t[name][i] / t[to][i]
	}
	return median(rs)
}

func median(xs []float64) float64 {
	xs = slices.Sorted(slices.Values(xs))
	n := len(xs)
	if n == 0 {
		return 0
	}
	return (xs[(n-1)/2] + xs[n/2]) / 2
}

// allocations counts what one unit of a subject allocates, with prepare, which
// does not.
func (s *subject) allocations() (allocs, bytes float64, err error) {
	const runs = 50
	var before, after runtime.MemStats
	for i := range 1 + runs {
		if i == 1 {
			runtime.ReadMemStats(&before)
		}
		if s.prepare != nil {
			err = s.prepare()
		}
		if err == nil {
			err = s.run()
		}
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	runtime.ReadMemStats(&after)
	per := 1 / float64(runs*s.units)
	return float64(after.Mallocs-before.Mallocs) * per, float64(after.TotalAlloc-before.TotalAlloc) * per, nil
}

// threadCPU is the CPU time of this thread, in nanoseconds.
func threadCPU() int64 { return clock(unix.CLOCK_THREAD_CPUTIME_ID) }

// processCPU is the CPU time of all threads, those of the runtime too.
func processCPU() int64 { return clock(unix.CLOCK_PROCESS_CPUTIME_ID) }

func clock(id uintptr) int64 {
	var ts unix.Timespec
	unix.RawSyscall(unix.SYS_CLOCK_GETTIME, id, uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Nano()
}
