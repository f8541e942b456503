//go:build !plan9

package kerneltest

import "time"

// A kernel's time stands still until a test moves it. On macOS what a request
// changes is reported by another thread, TimerDelay later, and once more one to
// three seconds after that; what happens in between is what the model is for.

// runInterval is the time between two runs of the report code: igmp_timeout_delay of
// XNU's igmp.c.
const runInterval = time.Second

// timers are when the two runs of the report code are due.
type timers struct {
	now        time.Duration
	soon, late time.Duration // when a run is due
	fast, slow bool          // whether one is
	running    bool          // some record waits for a run
}

// Now is the kernel's time, zero at first.
func (k *Kernel) Now() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.timers.now
}

// Advance lets time go by and does what is due in it.
func (k *Kernel) Advance(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := &k.timers
	end := t.now + d
	for {
		switch {
		case t.fast && t.soon <= end && (!t.slow || t.soon <= t.late):
			t.now = max(t.now, t.soon)
			k.runTimers(true)
		case t.slow && t.late <= end:
			t.now = max(t.now, t.late)
			k.runTimers(false)
		default:
			t.now = end
			return
		}
	}
}

// RunTimers does at once what is due within TimerDelay: the kernel's other threads
// have had their turn.
func (k *Kernel) RunTimers() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.timers.fast {
		k.runTimers(true)
	}
}

// schedule is igmp_set_fast_timeout: there is something to report.
func (k *Kernel) schedule() {
	t := &k.timers
	t.running = true
	if !t.fast {
		t.fast, t.soon = true, t.now+k.TimerDelay
	}
}

// runTimers is igmp_timeout: one run, and the next in a second if anything is left.
func (k *Kernel) runTimers(fast bool) {
	t := &k.timers
	if t.running {
		t.running = false
		k.report()
	}
	if fast {
		t.fast = false
	} else {
		t.slow = false
	}
	if t.running && !t.slow {
		t.slow, t.late = true, t.now+runInterval
	}
}
