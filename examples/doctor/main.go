// Doctor finds out why a multicast group is not heard. Run it with -h.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
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

Without an interface, behind the group or as -i, the routing table chooses one:
towards the source of a channel, towards the group otherwise. Any user may run
it; it says what it could not look at, and what right that takes.

It exits with 0 if it hears datagrams or finds no problem, with 1 if it finds
one, and with 2 for a wrong command line.
`

func main() { cli.Main("doctor", run) }

// Options are what the command line says.
type options struct {
	target
	json     bool
	duration time.Duration
}

// A target is what to hear.
type target struct {
	group  mcast.Group
	source netip.Addr // invalid: any
	port   uint16     // 0: unknown
}

func (t target) network() string {
	if t.group.Addr.Is6() {
		return "udp6"
	}
	return "udp4"
}

func parse(args []string, stdout io.Writer) (o options, err error) {
	fs := flag.NewFlagSet("doctor", flag.ContinueOnError)
	ifname := fs.String("i", "", "look at this `interface` (name or index) if there is none behind the group")
	fs.BoolVar(&o.json, "json", false, "show JSON: an object with the findings and the facts that they rest on")
	fs.DurationVar(&o.duration, "t", 3*time.Second, "listen for this `time`, and once more for any source or port if nothing was heard")
	if err := cli.Parse(fs, args, usage, stdout); err != nil {
		return o, err
	}
	switch {
	case fs.NArg() != 1:
		return o, cli.Usagef("want one group [S@]G[:PORT]")
	case o.duration <= 0:
		return o, cli.Usagef("-t is a time, not %v", o.duration)
	}
	if o.target, err = parseTarget(fs.Arg(0)); err != nil {
		return o, err
	}
	if *ifname != "" {
		ifi, err := cli.Interface(*ifname)
		if err != nil {
			return o, err
		}
		if o.group.Interface == 0 {
			o.group.Interface = ifi.Index
		}
	}
	if i := o.group.Interface; i != 0 {
		if _, err := net.InterfaceByIndex(i); err != nil {
			return o, cli.Usagef("there is no interface %d", i)
		}
	}
	return o, nil
}

// parseTarget parses [S@]G[:PORT]. IPv6 groups with a port are in brackets;
// without one, and sources, may be.
func parseTarget(s string) (t target, err error) {
	source, host, found := strings.Cut(s, "@")
	if !found {
		source, host = "", s
	}
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		host = host[1 : len(host)-1]
	} else if h, port, err := net.SplitHostPort(host); err == nil {
		if t.port, err = cli.Port(port); err != nil {
			return t, err
		}
		host = h
	}
	if found {
		host = strings.TrimSuffix(strings.TrimPrefix(source, "["), "]") + "@" + host
	}
	if t.group, t.source, err = mcast.ParseChannel(host); err != nil {
		return t, cli.Usagef("%w", err)
	}
	return t, nil
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
	switch {
	case f.Heard.Received > 0 || problems == 0:
		return nil
	case problems == 1:
		return fmt.Errorf("1 problem found")
	}
	return fmt.Errorf("%d problems found", problems)
}
