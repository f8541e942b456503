// Package cli is what the example programs have in common around the edges:
// flags, exit codes, signals, and channels and interfaces on the command line.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"example.com/mcast"
)

// A Program does all that a program does but exit.
type Program func(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error

// Main runs a program and exits with its code. The context ends at Ctrl-C, and
// when the terminal is closed; a second one ends the program at once.
func Main(name string, p Program) {
	signals := append([]os.Signal{os.Interrupt, syscall.SIGTERM}, hangUp...)
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, stop)
	os.Exit(Run(ctx, name, p, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// Run runs a program, reports its error in one line and returns its exit
// code: 0, 1 for a failure, 2 for a wrong command line. The context ends too
// when stdout cannot be written to, which is a failure.
func Run(ctx context.Context, name string, p Program, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := &output{w: stdout, failed: cancel}
	err := p(ctx, args, stdin, out, stderr)
	if out.err != nil && !errors.Is(err, out.err) {
		err = out.err
	}
	var usage usageError
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "%s: %s (%s -h explains)\n", name, oneLine(err), name)
		return 2
	}
	fmt.Fprintf(stderr, "%s: %s\n", name, oneLine(err))
	return 1
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// An output remembers the first error of writing, so that not every line must
// be looked after.
type output struct {
	w      io.Writer
	failed func()

	mu  sync.Mutex
	err error
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return 0, o.err
	}
	n, err := o.w.Write(b)
	if err != nil {
		o.err = err
		o.failed()
	}
	return n, err
}

type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// Usagef makes an error of the command line.
func Usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// Parse parses flags, which may stand before, between and behind the other
// arguments, and returns those. For -h it writes the usage and the flags to
// stdout and returns [flag.ErrHelp].
func Parse(fs *flag.FlagSet, args []string, usage string, stdout io.Writer) (rest []string, err error) {
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	for {
		err := fs.Parse(args)
		switch {
		case errors.Is(err, flag.ErrHelp):
			fmt.Fprintf(stdout, "%s\nFlags:\n", usage)
			fs.SetOutput(stdout)
			fs.PrintDefaults()
			return nil, err
		case err != nil:
			return nil, usageError{err}
		case fs.NArg() == 0:
			return rest, nil
		}
		if flags := args[:len(args)-fs.NArg()]; len(flags) > 0 && flags[len(flags)-1] == "--" {
			return append(rest, fs.Args()...), nil
		}
		rest = append(rest, fs.Arg(0))
		args = fs.Args()[1:]
	}
}

// Given reports whether a flag was on the command line.
func Given(fs *flag.FlagSet, name string) (given bool) {
	fs.Visit(func(f *flag.Flag) { given = given || f.Name == name })
	return given
}

// Duration defines a flag for a time, such as 10s, or 10, which are seconds.
func Duration(fs *flag.FlagSet, d *time.Duration, name string, usage string) {
	fs.Func(name, usage, func(s string) error {
		if seconds, err := strconv.ParseFloat(s, 64); err == nil && seconds >= 0 && seconds < 1e9 {
			*d = time.Duration(seconds * float64(time.Second))
			return nil
		}
		got, err := time.ParseDuration(s)
		if err != nil || got < 0 {
			return errors.New("not a time such as 10s")
		}
		*d = got
		return nil
	})
}

// Channel reads a channel, which is on the interface if it names none itself.
// Every interface that is named must be there.
func Channel(s, ifname string) (mcast.Channel, error) {
	ch, err := mcast.ParseChannel(s)
	var e *mcast.OpError
	if errors.As(err, &e) {
		err = e.Err // the operation does not help here
	}
	if err != nil {
		return ch, Usagef("%w", err)
	}
	_, at, found := strings.Cut(s, "@")
	if !found {
		at = s
	}
	if _, port, err := net.SplitHostPort(at); err == nil && ch.Port == 0 {
		return ch, Usagef("%q is not a port from 1 to 65535", port)
	}
	if ch.Group.Interface == "" {
		ch.Group.Interface = ifname
	}
	if on := ch.Group.Interface; on != "" && on != "*" {
		if _, err := Interface(on); err != nil {
			return ch, err
		}
	}
	return ch, nil
}

// IsRTP reports whether a channel was given as a URL for RTP.
func IsRTP(s string) bool { return len(s) >= 6 && strings.EqualFold(s[:6], "rtp://") }

// Interface finds an interface by its name or index.
func Interface(s string) (*net.Interface, error) {
	ifi, err := net.InterfaceByName(s)
	if err != nil {
		if n, e := strconv.Atoi(s); e == nil {
			ifi, err = net.InterfaceByIndex(n)
		}
	}
	if err != nil {
		return nil, Usagef("there is no interface %q", s)
	}
	return ifi, nil
}

// Name is what a [mcast.Group] calls an interface: its name, or its index if
// the name would be taken for something else.
func Name(ifi net.Interface) string {
	if strings.Trim(ifi.Name, "0123456789") == "" || ifi.Name == "*" {
		return strconv.Itoa(ifi.Index)
	}
	return ifi.Name
}
