//go:build !plan9

package kerneltest

import "syscall"

// A failure is a call that is to fail.
type failure struct {
	call  int // counted from 1
	errno syscall.Errno
	after bool
}

// Calls is how many system calls all sockets have received.
func (k *Kernel) Calls() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.calls
}

// FailCall makes the n-th call from now, 1 being the next one of any socket, answer
// errno: before it has had any effect, or after.
func (k *Kernel) FailCall(n int, errno syscall.Errno, after bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failing = append(k.failing, failure{k.calls + n, errno, after})
}

// fails counts a call. It sets err where the call is to fail at once, and returns
// the answer of one that is to fail when it has succeeded.
func (k *Kernel) fails(err *error) (late error) {
	k.calls++
	for _, f := range k.failing {
		switch {
		case f.call != k.calls:
		case f.after:
			late = f.errno
		case *err == nil:
			*err = f.errno
		}
	}
	return late
}
