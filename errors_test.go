package mcast

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
)

func TestOpErrorText(t *testing.T) {
	g4, g6 := netip.MustParseAddr("232.1.1.1"), netip.MustParseAddr("ff3e::8000:1")
	s4, s6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::1")
	for _, tt := range []struct {
		err  *OpError
		want string
	}{
		{&OpError{"Listen", Group{}, netip.Addr{}, io.EOF}, "mcast: Listen: EOF"},
		{&OpError{"Join", Group{g4, ""}, netip.Addr{}, io.EOF}, "mcast: Join 232.1.1.1: EOF"},
		{&OpError{"Join", Group{g4, "eth0"}, netip.Addr{}, io.EOF}, "mcast: Join 232.1.1.1%eth0: EOF"},
		{&OpError{"Join", Group{g4, "*"}, netip.Addr{}, io.EOF}, "mcast: Join 232.1.1.1%*: EOF"},
		{&OpError{"Join", Group{g4, "2147483647"}, netip.Addr{}, io.EOF}, "mcast: Join 232.1.1.1%2147483647: EOF"},
		{&OpError{"JoinSource", Group{g4, "eth0"}, s4, io.EOF}, "mcast: JoinSource 10.0.0.1@232.1.1.1%eth0: EOF"},
		{&OpError{"Block", Group{g6, ""}, s6, io.EOF}, "mcast: Block 2001:db8::1@ff3e::8000:1: EOF"},
		{&OpError{"Join", Group{netip.Addr{}, "eth0"}, netip.Addr{}, io.EOF}, "mcast: Join invalid group: EOF"},
		{&OpError{"JoinSource", Group{}, s4, io.EOF}, "mcast: JoinSource 10.0.0.1@invalid group: EOF"},
		{&OpError{"Join", Group{g4, ""}, netip.Addr{}, because(ErrSSM, "use %s", "JoinSource")}, "mcast: Join 232.1.1.1: source-specific group: use JoinSource"},
		{&OpError{"Join", Group{g4, ""}, netip.Addr{}, &reason{kind: ErrLimit, cause: io.EOF, text: "20 groups"}}, "mcast: Join 232.1.1.1: system limit reached: 20 groups (EOF)"},
		{&OpError{"Join", Group{g4, ""}, netip.Addr{}, &reason{kind: ErrLimit, cause: io.EOF}}, "mcast: Join 232.1.1.1: system limit reached (EOF)"},
		{&OpError{"Join", Group{g4, ""}, netip.Addr{}, &reason{kind: ErrLimit}}, "mcast: Join 232.1.1.1: system limit reached"},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("got  %q\nwant %q", got, tt.want)
		}
	}
}

// TestOpErrorRefusal: a refusal prints as the example in OpError's comment.
func TestOpErrorRefusal(t *testing.T) {
	var f Filter
	r := Request{OpJoinSource, Group{netip.MustParseAddr("232.1.1.1"), "eth0"}, netip.MustParseAddr("10.0.0.1")}
	if err := f.Apply(r); err != nil {
		t.Fatal(err)
	}
	err := f.Apply(r)
	want := "mcast: JoinSource 10.0.0.1@232.1.1.1%eth0: already joined: "
	if err == nil || len(err.Error()) <= len(want) || err.Error()[:len(want)] != want {
		t.Errorf("got %q, want it to start with %q", err, want)
	}
}

func TestOpErrorChain(t *testing.T) {
	cause := os.NewSyscallError("setsockopt", io.ErrClosedPipe)
	err := error(&OpError{Op: "Join", Err: &reason{kind: ErrLimit, cause: cause, text: "text"}})
	for _, wrapped := range []error{err, fmt.Errorf("start: %w", err), errors.Join(io.EOF, err)} {
		var op *OpError
		var sys *os.SyscallError
		if !errors.As(wrapped, &op) || op.Op != "Join" || !errors.As(wrapped, &sys) || sys.Syscall != "setsockopt" {
			t.Errorf("%v: OpError %v, SyscallError %v", wrapped, op, sys)
		}
		if !errors.Is(wrapped, ErrLimit) || !errors.Is(wrapped, io.ErrClosedPipe) || errors.Is(wrapped, ErrSSM) {
			t.Errorf("%v does not match what it is, or more", wrapped)
		}
	}
	if got := (&OpError{Err: io.EOF}).Unwrap(); got != io.EOF {
		t.Errorf("Unwrap gives %v", got)
	}
	if got := (&OpError{}).Unwrap(); got != nil {
		t.Errorf("Unwrap of nothing gives %v", got)
	}
	if r := because(ErrMode, "text"); errors.Is(r, io.EOF) || !errors.Is(r, ErrMode) {
		t.Errorf("%v", r)
	}
}

// TestOpErrorOnce: an error is wrapped once, the innermost operation stays.
func TestOpErrorOnce(t *testing.T) {
	g := Group{Addr: netip.MustParseAddr("232.1.1.1")}
	inner := opError("Join", g, netip.Addr{}, io.EOF)
	if outer := opError("Other", Group{}, netip.Addr{}, inner); outer != inner {
		t.Errorf("wrapped twice: %v", outer)
	}
	if outer := opError("Other", Group{}, netip.Addr{}, fmt.Errorf("more: %w", inner)); outer.Error() != "more: "+inner.Error() {
		t.Errorf("wrapped twice: %v", outer)
	}
	var e *OpError
	if !errors.As(inner, &e) || *e != (OpError{"Join", g, netip.Addr{}, io.EOF}) {
		t.Errorf("%#v", inner)
	}
}

type timeoutError bool

func (timeoutError) Error() string   { return "timeout" }
func (t timeoutError) Timeout() bool { return bool(t) }

func TestOpErrorTimeout(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{io.EOF, false},
		{ErrLimit, false},
		{os.ErrDeadlineExceeded, true},
		{timeoutError(true), true},
		{timeoutError(false), false},
		{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, true},
		{fmt.Errorf("more: %w", timeoutError(true)), true},
		{&reason{kind: ErrLimit, cause: timeoutError(true)}, true},
		{&reason{kind: ErrLimit, cause: io.EOF}, false},
	} {
		e := &OpError{Op: "Join", Err: tt.err}
		if got := e.Timeout(); got != tt.want {
			t.Errorf("%v: Timeout = %v, want %v", tt.err, got, tt.want)
		}
		var n interface{ Timeout() bool }
		if !errors.As(error(e), &n) || n.Timeout() != tt.want {
			t.Errorf("%v: not a timeout to others", tt.err)
		}
	}
}

// TestSentinels: each matches itself and no other, and says something else.
func TestSentinels(t *testing.T) {
	all := []error{ErrJoined, ErrNotJoined, ErrBlocked, ErrNotBlocked, ErrMode, ErrAddress, ErrInterface, ErrSSM, ErrLimit}
	for i, a := range all {
		for j, b := range all {
			err := error(&OpError{Op: "Join", Err: &reason{kind: a, cause: io.EOF, text: "text"}})
			if errors.Is(err, b) != (i == j) || (a.Error() == b.Error()) != (i == j) {
				t.Errorf("%v and %v", a, b)
			}
		}
	}
}
