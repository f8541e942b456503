// Package cli is what the example programs have in common around the edges:
// flags, exit codes, Ctrl-C and the names of interfaces.
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
	"syscall"

	"example.com/mcast"
)

// A Program does all that a program does but exit.
type Program func(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error

// Main runs a program and exits with its code. The context ends at Ctrl-C;
// a second one ends the program at once.
func Main(name string, p Program) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(Run(ctx, name, p, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// Run runs a program, reports its error in one line and returns its exit
// code: 0, 1 for a failure, 2 for a wrong command line.
func Run(ctx context.Context, name string, p Program, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	err := p(ctx, args, stdin, stdout, stderr)
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

type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// Usagef makes an error of the command line.
func Usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// Parse parses flags. For -h it writes the usage and the flags to stdout and
// returns [flag.ErrHelp].
func Parse(fs *flag.FlagSet, args []string, usage string, stdout io.Writer) error {
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stdout, "%s\nFlags:\n", usage)
		fs.SetOutput(stdout)
		fs.PrintDefaults()
		return err
	case err != nil:
		return usageError{err}
	}
	return nil
}

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
	switch on := &ch.Group.Interface; *on {
	case "":
		*on = ifname
	case "*":
	default:
		if _, err := Interface(*on); err != nil {
			return ch, err
		}
	}
	return ch, nil
}

// Port reads a port number, 1 to 65535.
func Port(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, Usagef("%q is not a port from 1 to 65535", s)
	}
	return uint16(n), nil
}
