package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	for _, tt := range []struct {
		err    error
		code   int
		stderr string
	}{
		{nil, 0, ""},
		{flag.ErrHelp, 0, ""},
		{errors.New("a\nb"), 1, "x: a; b\n"},
		{Usagef("no %s", "flag"), 2, "x: no flag (x -h explains)\n"},
	} {
		var errs bytes.Buffer
		code := Run(t.Context(), "x", func(context.Context, []string, io.Reader, io.Writer, io.Writer) error { return tt.err }, nil, nil, io.Discard, &errs)
		if code != tt.code || errs.String() != tt.stderr {
			t.Errorf("%v: %d %q", tt.err, code, errs.String())
		}
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("the disk is full") }

// A program whose output is lost ends, and fails, though it does not look.
func TestOutput(t *testing.T) {
	var errs bytes.Buffer
	p := func(ctx context.Context, _ []string, _ io.Reader, stdout, _ io.Writer) error {
		io.WriteString(stdout, "hello")
		<-ctx.Done()
		return nil
	}
	if code := Run(t.Context(), "x", p, nil, nil, fullDisk{}, &errs); code != 1 || errs.String() != "x: the disk is full\n" {
		t.Errorf("%d %q", code, errs.String())
	}
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		args, rest, n string
		bad           bool
	}{
		{"", "", "0", false},
		{"a b", "a b", "0", false},
		{"-n 5 a", "a", "5", false},
		{"a -n 5", "a", "5", false},
		{"a -n 5 b -v", "a b", "5", false},
		{"-n 5 -- a -v", "a -v", "5", false},
		{"a -- -v", "a -v", "0", false},
		{"a -x", "", "0", true},
		{"a -n", "", "0", true},
	} {
		fs := flag.NewFlagSet("x", flag.ContinueOnError)
		n := fs.Int("n", 0, "")
		fs.Bool("v", false, "")
		rest, err := Parse(fs, strings.Fields(tt.args), "", io.Discard)
		if (err != nil) != tt.bad || strings.Join(rest, " ") != tt.rest || !tt.bad && (tt.n != "0") != (*n == 5) || Given(fs, "n") != (*n == 5) {
			t.Errorf("%q: %q, n %d, %v", tt.args, rest, *n, err)
		}
	}
}

func TestDuration(t *testing.T) {
	for _, tt := range []struct {
		s    string
		want time.Duration
		ok   bool
	}{
		{"5", 5 * time.Second, true},
		{"0.25", time.Second / 4, true},
		{"0", 0, true},
		{"100ms", time.Second / 10, true},
		{"1m", time.Minute, true},
		{"x", 0, false},
		{"-1", 0, false},
		{"-1s", 0, false},
		{"NaN", 0, false},
		{"Inf", 0, false},
		{"1e300", 0, false},
	} {
		fs := flag.NewFlagSet("x", flag.ContinueOnError)
		var d time.Duration
		Duration(fs, &d, "t", "")
		if _, err := Parse(fs, []string{"-t", tt.s}, "", io.Discard); (err == nil) != tt.ok || d != tt.want {
			t.Errorf("%q: %v %v", tt.s, d, err)
		}
	}
}

func TestChannel(t *testing.T) {
	ifis, err := net.Interfaces()
	if err != nil || len(ifis) == 0 {
		t.Skip("there are no interfaces here", err)
	}
	name := Name(ifis[0])
	for _, tt := range []struct {
		s, ifname, want string
		ok              bool
	}{
		{"239.1.1.1", "", "239.1.1.1", true},
		{"10.0.0.1@232.1.1.1:5000", name, "10.0.0.1@232.1.1.1%" + name + ":5000", true},
		{"239.1.1.1%*:5000", name, "239.1.1.1%*:5000", true},
		{"239.1.1.1%" + name, "no-such-interface", "239.1.1.1%" + name, true},
		{"rtp://@239.1.1.1:5000", "", "239.1.1.1:5000", true},
		{"ff15::0", "", "ff15::", true},
		{"239.1.1.1:0", "", "", false},
		{"[ff15::1]:0", "", "", false},
		{"239.1.1.1%no-such-interface", "", "", false},
		{"239.1.1.1", "no-such-interface", "", false},
		{"10.1.1.1:5000", "", "", false},
	} {
		ch, err := Channel(tt.s, tt.ifname)
		if (err == nil) != tt.ok || tt.ok && ch.String() != tt.want {
			t.Errorf("%s on %q: %v, %v", tt.s, tt.ifname, ch, err)
		}
		if usage := (usageError{}); err != nil && (!errors.As(err, &usage) || strings.Contains(err.Error(), "ParseChannel")) {
			t.Errorf("%s: %v", tt.s, err)
		}
	}
	for s, want := range map[string]bool{"rtp://x": true, "RTP://x": true, "udp://x": false, "rtp:/": false, "": false} {
		if IsRTP(s) != want {
			t.Errorf("IsRTP(%q)", s)
		}
	}
	if got := []string{Name(net.Interface{Index: 7, Name: "eth0"}), Name(net.Interface{Index: 7, Name: "0"}), Name(net.Interface{Index: 7, Name: "*"})}; !slices.Equal(got, []string{"eth0", "7", "7"}) {
		t.Error(got)
	}
}
