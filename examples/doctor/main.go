// Doctor finds out why a multicast group is not heard. Run it with -h.
//
// # For programs
//
// It exits with 0 if it heard datagrams, with 1 if it did not, and names at
// least one problem, and with 2 for a wrong command line, of which it says
// nothing but a line on standard error. It exits with 1 too when it was
// interrupted or could not write.
//
// With -json it writes one object:
//
//   - "heard": whether it heard datagrams, as the exit code says;
//   - "findings": each with "severity" ("problem", what keeps datagrams away;
//     "note", what may matter; "ok"), "rule", "text" for people, and perhaps
//     "fix", commands for a shell;
//   - "facts": what the findings rest on. What a system does not tell, or not to
//     this user, is left out, and "unseen" in it says what that is.
//
// Rules are interface, up, carrier, multicast, address, port-of, kind, vrf,
// scope, ssm, source, rp_filter, version, limits, join, members, sockets,
// firewall, report, querier, buffer, checksum, packets, martian, heard, amt.
// Their names, "severity" and the exit codes stay; texts and facts may change.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/cli"
)

const usage = `Usage: doctor [flags] [S@]G[:PORT]

Why do I hear nothing? Doctor looks at what stands between the sender S of a
multicast group G and a program on this host: the interface, its addresses, the
route back to the source, limits, versions of IGMP and MLD, who else has joined,
the firewall; and, as root, what is on the wire. It joins and listens. What it
finds wrong it says in a sentence, with the command that mends it.

  doctor 10.0.0.1@232.1.1.1:5000
  doctor -i eth0 239.1.1.1:5000
  doctor -t 130s '2001:db8::1@[ff3e::8000:1%eth0]:5000'
  doctor -json 239.1.1.1
  doctor -amt relay.example.net 10.0.0.1@232.1.1.1:5000

Without an interface, behind the group or as -i, the routing table chooses one:
towards the source of a channel, towards the group otherwise. Any user may run
it; it says what it could not look at, and what right that takes. Where nothing is
heard, the relays that -amt names are asked for a tunnel (RFC 7450), and no others.

It exits with 0 if it hears datagrams, with 1 if it does not, and says why, and
with 2 for a wrong command line.
`

func main() { cli.Main("doctor", run) }

// Options are what the command line says.
type options struct {
	mcast.Channel     // port 0: unknown
	index         int // of the interface; 0: none was named
	json          bool
	duration      time.Duration
	relays        []string // to ask after silence
}

func network(g netip.Addr) string {
	if g.Is6() {
		return "udp6"
	}
	return "udp4"
}

func parse(args []string, stdout io.Writer) (o options, err error) {
	fs := flag.NewFlagSet("doctor", flag.ContinueOnError)
	ifname := fs.String("i", "", "look at this `interface` (name or index) if there is none behind the group")
	fs.BoolVar(&o.json, "json", false, "show JSON: the findings, and the facts that they rest on; see go doc ./examples/doctor")
	fs.Func("amt", "if nothing is heard, ask this `relay` (name, address or ADDRESS:PORT) for a tunnel; auto: look for one; may be repeated", func(s string) error {
		if s == "" {
			return errors.New("want a relay, or auto")
		}
		o.relays = append(o.relays, s)
		return nil
	})
	o.duration = 3 * time.Second
	cli.Duration(fs, &o.duration, "t", "listen for this `time`, and after silence once more, for any source and on all interfaces (default 3s)")
	rest, err := cli.Parse(fs, args, usage, stdout)
	switch {
	case err != nil:
		return o, err
	case len(rest) != 1:
		return o, cli.Usagef("want one group [S@]G[:PORT]")
	case o.duration == 0:
		return o, cli.Usagef("-t is a time, not 0")
	}
	if o.Channel, err = cli.Channel(rest[0], *ifname); err != nil {
		return o, err
	}
	switch on := o.Group.Interface; on {
	case "":
	case "*":
		return o, cli.Usagef("doctor looks at one interface: name it")
	default:
		ifi, err := cli.Interface(on)
		if err != nil {
			return o, err
		}
		o.index = ifi.Index
	}
	return o, nil
}

func run(ctx context.Context, args []string, _ io.Reader, stdout, _ io.Writer) error {
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	f := collect(ctx, o)
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("interrupted")
	}
	findings := diagnose(f)
	if o.json {
		showJSON(stdout, f, findings)
	} else {
		show(stdout, f, findings)
	}
	problems := 0
	for _, x := range findings {
		if x.Severity == problem {
			problems++
		}
	}
	if f.Heard.Received > 0 {
		return nil
	}
	return errors.New(count(problems, "problem") + " found")
}
