// Recv joins multicast groups and channels and shows what arrives. Run it
// with -h.
package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"net/netip"
	"os"
	"slices"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/cli"
)

const usage = `Usage: recv [flags] [S@]G:PORT...

Joins multicast groups, or channels with their sources S, and shows each second
what arrives: datagrams and megabits a second, sources, datagrams that are
missing by the numbers of examples/send, that the system dropped for want of
buffer, and that the filter kept out. Ctrl-C ends it.

  recv 239.1.1.1:5000
  recv 10.0.0.1@232.1.1.1:5000 10.0.0.2@232.1.1.1:5000 '239.1.1.1%eth0:5001'
  recv '2001:db8::1@[ff3e::8000:1%eth0]:5000'
  recv -i eth0 -block 10.0.0.9 239.1.1.1:5000
  recv -json -t 10s 239.1.1.1:5000
  recv -o - 239.1.1.1:5000 | some-player -

Without an interface, behind the group or as -i, the routing table chooses one:
towards the source of a channel, towards the group otherwise.
`

func main() { cli.Main("recv", run) }

// Options are what the command line says.
type options struct {
	channels []mcast.Channel
	block    []netip.Addr
	output   string // "": none, "-": standard output
	json     bool
	count    uint64 // 0: no limit
	duration time.Duration
}

func parse(args []string, stdout io.Writer) (o options, err error) {
	fs := flag.NewFlagSet("recv", flag.ContinueOnError)
	ifname := fs.String("i", "", "join on this `interface` (name or index) where none is behind the group")
	fs.Func("block", "do not hear this `source` of the groups that are joined for any source; may be repeated", func(s string) error {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return errors.New("not an address")
		}
		o.block = append(o.block, a.Unmap())
		return nil
	})
	fs.StringVar(&o.output, "o", "", "write the payloads to this `file`, without the header of send; - for standard output")
	fs.BoolVar(&o.json, "json", false, "show JSON, one object a line")
	fs.Uint64Var(&o.count, "n", 0, "stop after this `number` of datagrams; 0: do not")
	fs.DurationVar(&o.duration, "t", 0, "stop after this `time`, such as 10s; 0: do not")
	if err := cli.Parse(fs, args, usage, stdout); err != nil {
		return o, err
	}
	if fs.NArg() == 0 {
		return o, cli.Usagef("want one or more groups [S@]G:PORT")
	}
	if o.duration < 0 {
		return o, cli.Usagef("-t is a time, not %v", o.duration)
	}
	on := ""
	if *ifname != "" {
		ifi, err := cli.Interface(*ifname)
		if err != nil {
			return o, err
		}
		on = cli.Name(*ifi)
	}
	for _, arg := range fs.Args() {
		ch, err := cli.Channel(arg, on)
		switch {
		case err != nil:
			return o, err
		case ch.Port == 0:
			return o, cli.Usagef("%q is not [S@]G:PORT, such as 10.0.0.1@232.1.1.1:5000 or [ff3e::8000:1]:5000", arg)
		case !ch.Source.IsValid() && ch.Group.IsSSM():
			return o, cli.Usagef("%v is for channels: name a source, S@%s", ch.Group.Addr, arg)
		case slices.Contains(o.channels, ch):
			return o, cli.Usagef("%s is there twice", arg)
		}
		o.channels = append(o.channels, ch)
	}
	for _, s := range o.block {
		if !slices.ContainsFunc(o.channels, func(ch mcast.Channel) bool { return blocks(ch, s) }) {
			return o, cli.Usagef("-block %v: no group of that family is joined for any source", s)
		}
	}
	return o, nil
}

// blocks reports whether a source can be blocked of what is joined.
func blocks(ch mcast.Channel, s netip.Addr) bool {
	return !ch.Source.IsValid() && s.Is4() == ch.Group.Addr.Is4()
}

func run(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) error {
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	switch o.output {
	case "":
		return listen(ctx, o, nil, stdout)
	case "-":
		return listen(ctx, o, stdout, stderr)
	}
	f, err := os.Create(o.output)
	if err != nil {
		return err
	}
	return errors.Join(listen(ctx, o, f, stdout), f.Close())
}

// listen joins, receives and leaves. Payloads go to output, if it is not nil,
// all else to w.
func listen(ctx context.Context, o options, output, w io.Writer) error {
	conns, err := joinAll(o)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	if err != nil {
		return err
	}
	m, show := newMonitor(conns, output, o.count), display{w, o.json}
	show.joined(conns)
	err = receive(ctx, conns, m, o.duration, show)
	err = errors.Join(err, leaveAll(conns))
	show.summary(m.summary())
	return err
}
