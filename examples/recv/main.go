// Recv joins multicast groups and channels and shows what arrives. Run it
// with -h.
//
// # With -json
//
// Each line is an object. Its "event" is
//
//   - "joined", once: "memberships", each with "group" (and interface), "port",
//     "mode", "sources", and "pending" if there is no interface for it yet;
//   - "second": the counts below, "seconds", "datagrams_per_second",
//     "mbit_per_second", and "sources", the addresses that were heard; with -v
//     "streams";
//   - "membership": "kind" ("lost", "pending", "restored", "failed", "down",
//     "up") and "text";
//   - "tunnel", with -amt: "kind" ("fallback", "relay found", "tunnel up", "relay
//     lost", "new address", "refused", "failed", "native") and "text";
//   - "note": "text", what a person should know;
//   - "ended": the sender has ended "stream", after "sent" datagrams;
//   - "summary", at the end: the counts, and "streams", each with "group",
//     "port", "source", "format" ("numbered", "rtp", "rtp/ts", "ts" or none) and
//     its own counts.
//
// The counts are "datagrams", "bytes", "filtered", and where they can be known
// "lost", "late" and "duplicate" (datagrams, by numbers in them), "ts_lost"
// (packets of transport streams, by their counters), "dropped" (by the system,
// Linux), "jitter_seconds" (of a stream that has times). A count that is not
// known is left out. In a second "lost" may be less than 0: what was missing
// has come.
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
	"example.com/mcast/examples/internal/incoming"
)

const usage = `Usage: recv [flags] [S@]G:PORT...

Joins multicast groups, or channels with their sources S, and shows each second
what arrives, and what is missing: by the numbers of examples/send, of RTP or of
MPEG transport streams, where the payload is one of these (else lost is "-").
Ctrl-C ends it.

  recv 239.1.1.1:5000
  recv 10.0.0.1@232.1.1.1:5000 10.0.0.2@232.1.1.1:5000 '239.1.1.1%eth0:5001'
  recv '2001:db8::1@[ff3e::8000:1%eth0]:5000'
  recv -i eth0 -block 10.0.0.9 239.1.1.1:5000
  recv -json -t 10s -n 1 udp://@239.1.1.1:5000
  recv -o - rtp://10.0.0.1@232.1.1.1:5000 | ffplay -
  recv -amt relay.example.net 10.0.0.1@232.1.1.1:5000
  recv -amt auto 10.0.0.1@232.1.1.1:5000

Without an interface, behind the group or as -i, the routing table chooses one:
towards the source of a channel, towards the group otherwise. %* are all.

Where the network has no multicast, -amt receives through a tunnel to a relay
(RFC 7450): to the one that is named, or, with auto, to one that is looked for
(RFC 8777) for the channels of which nothing is heard for 5s. When one of them is
heard from the network after all, it is left in the tunnel, of which nothing
counts from then on, until the network is silent for 10s; the next time for 20s,
and never longer than a minute, or than -amt-after.

It exits with 0, with 1 for a failure, also if -n and -t are given and nothing
is heard, and with 2 for a wrong command line.
`

func main() { cli.Main("recv", run) }

// Options are what the command line says.
type options struct {
	channels []mcast.Channel
	block    []netip.Addr
	bind     string        // to this interface; "": to none
	relay    string        // by -amt, "auto": looked for, "": no tunnel
	after    time.Duration // of silence in the network; 0: the tunnel alone
	output   string        // "": none, "-": standard output
	rtp      bool
	json     bool
	verbose  bool
	count    uint64 // 0: no limit
	duration time.Duration
}

func parse(args []string, stdout io.Writer) (o options, err error) {
	fs := flag.NewFlagSet("recv", flag.ContinueOnError)
	ifname := fs.String("i", "", "join on this `interface` (name or index) where none is behind the group")
	fs.StringVar(&o.bind, "bind", "", "hear only what comes in by this `interface` or VRF; in a VRF nothing is heard without")
	fs.StringVar(&o.relay, "amt", "", "receive through a tunnel to this `relay` (name, address or ADDRESS:PORT); auto: look for one")
	cli.Duration(fs, &o.after, "amt-after", "with -amt: hear the network, and after that `time` of silence the tunnel; 0: only the tunnel (default 0, with auto 5s)")
	fs.Func("block", "do not hear this `source` of the groups that are joined for any source; may be repeated", func(s string) error {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return errors.New("not an address")
		}
		o.block = append(o.block, a.Unmap())
		return nil
	})
	fs.StringVar(&o.output, "o", "", "write the payloads to this `file`, without the header of send; - for standard output")
	fs.BoolVar(&o.rtp, "rtp", false, "with -o: take off RTP headers, put packets in order and drop what comes twice; rtp:// is the same")
	fs.BoolVar(&o.json, "json", false, "show JSON, one object a line; see go doc ./examples/recv")
	fs.BoolVar(&o.verbose, "v", false, "show each stream each second, with TTL and jitter")
	fs.Uint64Var(&o.count, "n", 0, "stop after this `number` of datagrams; 0: do not")
	cli.Duration(fs, &o.duration, "t", "stop after this `time`, such as 10s; 0: do not")
	rest, err := cli.Parse(fs, args, usage, stdout)
	if err != nil {
		return o, err
	}
	if len(rest) == 0 {
		return o, cli.Usagef("want one or more groups [S@]G:PORT")
	}
	switch {
	case cli.Given(fs, "amt") && o.relay == "":
		return o, cli.Usagef("-amt is a relay, or auto")
	case cli.Given(fs, "amt-after") && o.relay == "":
		return o, cli.Usagef("-amt-after is for -amt")
	case o.relay == incoming.Auto && !cli.Given(fs, "amt-after"):
		o.after = 5 * time.Second
	}
	tunnelAlone := o.relay != "" && o.after == 0
	if tunnelAlone && (*ifname != "" || o.bind != "") {
		return o, cli.Usagef("a tunnel has no interface: leave out -i and -bind, or hear the network too (-amt-after)")
	}
	if *ifname != "" {
		ifi, err := cli.Interface(*ifname)
		if err != nil {
			return o, err
		}
		*ifname = cli.Name(*ifi)
	}
	if o.bind != "" {
		ifi, err := cli.Interface(o.bind)
		if err != nil {
			return o, err
		}
		o.bind = ifi.Name
	}
	for _, arg := range rest {
		ch, err := cli.Channel(arg, *ifname)
		switch {
		case err != nil:
			return o, err
		case ch.Port == 0:
			return o, cli.Usagef("%q is not [S@]G:PORT, such as 10.0.0.1@232.1.1.1:5000 or [ff3e::8000:1]:5000", arg)
		case !ch.Source.IsValid() && ch.Group.IsSSM():
			return o, cli.Usagef("%v is for channels: name a source, S@%s", ch.Group.Addr, arg)
		case tunnelAlone && ch.Group.Interface != "":
			return o, cli.Usagef("a tunnel has no interface: leave out the %%%s, or hear the network too (-amt-after)", ch.Group.Interface)
		case slices.Contains(o.channels, ch):
			return o, cli.Usagef("%s is there twice", arg)
		}
		o.channels = append(o.channels, ch)
		o.rtp = o.rtp || cli.IsRTP(arg)
	}
	for _, s := range o.block {
		if !slices.ContainsFunc(o.channels, func(ch mcast.Channel) bool { return blocks(ch, s) }) {
			return o, cli.Usagef("-block %v: no group of that family is joined for any source", s)
		}
	}
	if o.output != "" && len(o.channels) > 1 {
		return o, cli.Usagef("-o takes one channel, not %d, which it would mix: run recv once for each", len(o.channels))
	}
	return o, nil
}

// blocks reports whether a source can be blocked of what is joined.
func blocks(ch mcast.Channel, s netip.Addr) bool {
	return !ch.Source.IsValid() && s.Is4() == ch.Group.Addr.Is4()
}

func run(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) (err error) {
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	show := &display{w: stdout, json: o.json, verbose: o.verbose}
	if o.output == "-" {
		show.w = stderr
	}
	conns, err := joinAll(ctx, o, show)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	if err != nil {
		return err
	}
	// Only now: what was in the file is not lost to a join that failed.
	var output io.Writer
	switch o.output {
	case "":
	case "-":
		output = stdout
	default:
		f, e := os.Create(o.output)
		if e != nil {
			return e
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		output = f
	}
	m := newMonitor(conns, o, output, show)
	show.joined(conns)
	err = receive(ctx, conns, m, o.duration)
	err = errors.Join(err, m.flush(), leaveAll(conns))
	s := m.summary()
	show.summary(s)
	if err == nil && o.count > 0 && o.duration > 0 && s.Datagrams == 0 && ctx.Err() == nil {
		err = errors.New("nothing was heard")
	}
	return err
}
