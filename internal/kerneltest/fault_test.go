//go:build !plan9

package kerneltest

import (
	"errors"
	"testing"
)

func TestFaults(t *testing.T) {
	for _, k := range []*Kernel{Linux(), Darwin(), FreeBSD(), Windows()} {
		s, other := k.Socket(true), k.Socket(true)
		expect(t, ask(other, joinOp, 3, g6, none), 0)
		calls := k.Calls()
		k.FailCall(2, 105, false)
		k.FailCall(3, 12, true)
		expect(t, ask(s, joinSourceOp, 2, g6, sa6[0]), 0)
		expect(t, ask(s, leaveOp, 2, g6, none), 105) // the second: without effect
		expectState(t, s, "I1")
		expect(t, ask(s, leaveOp, 2, g6, none), 12) // the third: done all the same
		expectState(t, s, "-")
		expect(t, ask(other, leaveOp, 3, g6, none), 0)
		if n := k.Calls() - calls; n != 4 {
			t.Errorf("%d calls", n)
		}

		injected := errors.New("injected")
		asked := 0
		k.FaultAfter = func(level, name int, value []byte) error {
			asked++
			return injected
		}
		if err := ask(other, joinOp, 3, g6, none); err != injected {
			t.Errorf("%s: %v", k.sys.name, err)
		}
		expectState(t, other, "E")
		if err := ask(other, joinOp, 3, g6, none); err == nil || err == injected || asked != 1 {
			t.Errorf("%s: a request that fails by itself: %v", k.sys.name, err)
		}
		if r := other.Requests(); r[len(r)-2].Err != injected {
			t.Errorf("%s: the log has %v", k.sys.name, r[len(r)-2])
		}
	}
}
