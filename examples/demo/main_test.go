package main

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/cli"
)

// demoRun runs the program.
func demoRun(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = cli.Run(t.Context(), "demo", run, args, strings.NewReader(""), &out, &errs)
	return out.String(), errs.String(), code
}

func TestDemo(t *testing.T) {
	stdout, stderr, code := demoRun(t)
	t.Logf("\n%s%s", stdout, stderr)
	if code != 0 || stderr != "" || !strings.Contains(stdout, "The promise was kept in all ") || strings.Contains(stdout, "BROKEN") {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(stdout, "IPv4 on ") {
		t.Error("IPv4 was not shown")
	}
}

// testLab builds a lab for IPv4, which every machine can do.
func testLab(t *testing.T) *lab {
	t.Helper()
	l, err := findLab(t.Context(), false, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	return l
}

// Where there is but one address, as on macOS, the script makes sense too.
func TestOneSender(t *testing.T) {
	l := testLab(t)
	for i := 1; i < numSenders; i++ {
		if s := &l.senders[i]; s.Conn != nil {
			s.Close()
			s.Conn, s.why = nil, "for a test"
		}
	}
	var out bytes.Buffer
	d := demo{w: &out, verbose: true}
	if err := d.walk(t.Context(), l); err != nil || d.broken != 0 {
		t.Errorf("broken %d: %v\n%s", d.broken, err, out.String())
	}
	if strings.Count(out.String(), "silent: ") != numSenders-1 {
		t.Errorf("no word of the silent senders:\n%s", out.String())
	}
}

// A receiver that does otherwise is found out.
func TestBroken(t *testing.T) {
	l := testLab(t)
	if err := l.receiver.Join(l.groups[anySource]); err != nil {
		t.Fatal(err)
	}
	l.patience = 100 * time.Millisecond // some will not come, and it does not matter here who
	var out bytes.Buffer
	d := demo{w: &out}
	if err := d.walk(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"BROKEN: A was heard on G", "BROKEN: the filters should be -", "BROKEN: the answer should be ErrNotJoined"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("nothing of %q:\n%s", want, out.String())
		}
	}
}

func TestJudge(t *testing.T) {
	good := outcome{filters: filters{"EXCLUDE{A}"}, heard: hearing{{false, true, true}}}
	if wrong := judge(good, good); wrong != nil {
		t.Errorf("the expected is wrong: %q", wrong)
	}
	bad := outcome{err: &mcast.OpError{Op: "Block", Err: mcast.ErrMode}, heard: hearing{{true, true, false}, {true}}}
	want := []string{
		"the answer should be ok", "the filters should be G EXCLUDE{A}",
		"A was heard on G", "C was not heard on G", "A was heard on S",
	}
	if wrong := judge(good, bad); !slices.Equal(wrong, want) {
		t.Errorf("judge: %q, want %q", wrong, want)
	}
	refused := outcome{err: mcast.ErrMode}
	if wrong := judge(refused, outcome{}); !slices.Equal(wrong, []string{"the answer should be ErrMode"}) {
		t.Errorf("judge: %q", wrong)
	}
}

// The oracle and the library's filter agree on random requests.
func TestOracle(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	l := lab{}
	l.groups[anySource] = mcast.Group{Addr: netip.MustParseAddr("239.1.1.1"), Interface: "eth0"}
	for i := range l.senders {
		l.senders[i].addr = netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + i)})
	}
	ops := []mcast.Op{mcast.OpJoin, mcast.OpJoinSource, mcast.OpBlock, mcast.OpUnblock, mcast.OpLeave, mcast.OpLeaveSource}
	var f mcast.Filter
	o := oracle{speak: members("ABC")}
	for n := range 5000 {
		op, i := ops[r.IntN(len(ops))], r.IntN(numSenders)
		q := request{verb: op.String(), group: anySource, sources: senderNames[i]}
		if op == mcast.OpJoin || op == mcast.OpLeave {
			q.sources = ""
		}
		got := f.Apply(mcast.Request{Op: op, Group: l.groups[anySource], Source: l.senders[i].addr})
		if want := o.ask(q); !errors.Is(got, want) {
			t.Fatalf("seed %d, step %d: %v: %v, want %v", seed, n, q, got, want)
		}
		is := ""
		if m, ok := f.Membership(l.groups[anySource]); ok {
			is = l.letters(m)
		}
		if want := o.filters()[anySource]; is != want {
			t.Fatalf("seed %d, step %d: %v: %q, want %q", seed, n, q, is, want)
		}
		for i, want := range o.hears()[anySource] {
			if f.Allows(l.groups[anySource], l.senders[i].addr) != want {
				t.Fatalf("seed %d, step %d: %v: %s is allowed: %v", seed, n, q, senderNames[i], !want)
			}
		}
	}
}

func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{
		{"x"}, {"-x"}, {"-port", "65536"}, {"-port", "x"}, {"-i", "no-such-interface"}, {"-4", "-6"},
	} {
		stdout, stderr, code := demoRun(t, args...)
		if code != 2 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "demo: ") {
			t.Errorf("%q: exit code %d, %q", args, code, stderr)
		}
	}
	stdout, stderr, code := demoRun(t, "-h")
	if code != 0 || stderr != "" || !strings.HasPrefix(stdout, "Usage: demo ") || !strings.Contains(stdout, "-port") {
		t.Errorf("-h: exit code %d, %q, %q", code, stdout, stderr)
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errs bytes.Buffer
	if code := cli.Run(ctx, "demo", run, nil, nil, &out, &errs); code != 1 || errs.String() != "demo: interrupted\n" {
		t.Errorf("exit code %d, %q", code, errs.String())
	}
}
