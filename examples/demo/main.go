// Demo shows on one machine what the library promises: what you joined is
// what you get. Run it with -h.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"strings"

	"example.com/mcast"
	"example.com/mcast/examples/internal/cli"
)

const usage = `Usage: demo [flags]

Joins, blocks, unblocks and leaves multicast groups on one socket, while up to
three senders, each with an address of its own, send to all of them. After each
request it shows the answer, the filters, who was heard, and who should be.

All datagrams stay on this machine: on the loopback interface, or where that takes
no multicast (IPv6 on Linux), on another one with a time to live of 0. A witness,
a second socket that joins everything, makes sure that all was sent.

  demo
  demo -v -6
  demo -i eth0

It exits with 0 if the promise was kept, and with 1 if it was broken or could
not be tried.
`

func main() { cli.Main("demo", run) }

func run(ctx context.Context, args []string, _ io.Reader, stdout, _ io.Writer) error {
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	only4 := fs.Bool("4", false, "IPv4 only")
	only6 := fs.Bool("6", false, "IPv6 only")
	ifname := fs.String("i", "", "use this `interface` (name or index) and its addresses")
	port := fs.Uint("port", 0, "use this UDP `port`; 0: a free one")
	verbose := fs.Bool("v", false, "show the system's own filters too")
	rest, err := cli.Parse(fs, args, usage, stdout)
	switch {
	case err != nil:
		return err
	case len(rest) != 0:
		return cli.Usagef("unexpected argument %q", rest[0])
	case *only4 && *only6:
		return cli.Usagef("-4 and -6 exclude each other: without them it is both")
	case *port > 65535:
		return cli.Usagef("%d is not a port", *port)
	}
	var on *net.Interface
	if *ifname != "" {
		var err error
		if on, err = cli.Interface(*ifname); err != nil {
			return err
		}
	}

	d := demo{w: stdout, verbose: *verbose}
	var shown []string
	for _, ipv6 := range []bool{false, true} {
		if ipv6 && *only4 || !ipv6 && *only6 {
			continue
		}
		l, err := findLab(ctx, ipv6, on, uint16(*port))
		switch {
		case ctx.Err() != nil:
			return errInterrupted
		case err != nil && (*only4 || *only6):
			return fmt.Errorf("%s cannot be shown here: %w", family(ipv6), err)
		case err != nil:
			fmt.Fprintf(stdout, "%s is left out: %v.\n\n", family(ipv6), err)
			continue
		}
		err = d.walk(ctx, l)
		l.close()
		if err != nil {
			return err
		}
		shown = append(shown, family(ipv6)+" on "+l.ifi.Name)
	}
	switch {
	case len(shown) == 0:
		return errors.New("nothing could be shown here")
	case d.broken > 0:
		return fmt.Errorf("the promise is broken in %d of %d steps: see BROKEN above", d.broken, d.steps)
	}
	fmt.Fprintf(stdout, "The promise was kept in all %d steps, %s: after each request\n"+
		"those were heard who should be, nobody else, and a refusal changed nothing.\n", d.steps, strings.Join(shown, " and "))
	if d.unsupported > 0 {
		fmt.Fprintf(stdout, "This system does not offer %d of the requests.\n", d.unsupported)
	}
	return nil
}

var errInterrupted = errors.New("interrupted")

func family(ipv6 bool) string {
	if ipv6 {
		return "IPv6"
	}
	return "IPv4"
}

// A demo goes through the script.
type demo struct {
	w                          io.Writer
	verbose                    bool
	steps, broken, unsupported int
}

// An outcome is what a step should lead to, or did.
type outcome struct {
	err     error
	filters filters
	heard   hearing
}

// walk goes through the script in a lab.
func (d *demo) walk(ctx context.Context, l *lab) error {
	l.describe(d.w)
	expected := oracle{speak: l.speak()}
	for _, p := range script {
		fmt.Fprintf(d.w, "\n%s\n", p.title)
		d.row("", "request", "answer", "filters", "heard", "should be", "")
		for _, r := range p.requests {
			if ctx.Err() != nil {
				return errInterrupted
			}
			var want, got outcome
			got.err = l.ask(r)
			if errors.Is(got.err, errors.ErrUnsupported) {
				d.unsupported++ // then the request must change nothing
				want.err = errors.ErrUnsupported
			} else {
				want.err = expected.ask(r)
			}
			want.filters, want.heard = expected.filters(), expected.hears()
			got.filters = l.filters()
			var odd []string
			var err error
			if got.heard, odd, err = l.listen(want.heard); err != nil {
				return err
			}
			d.show(r, want, got, append(judge(want, got), odd...))
			if d.verbose && r.verb != "" {
				d.remark("the system's filter of %s: %s", groupNames[r.group], l.system(r.group))
			}
		}
	}
	fmt.Fprintln(d.w)
	return nil
}

// show shows a step.
func (d *demo) show(r request, want, got outcome, wrong []string) {
	d.steps++
	verdict := "ok"
	if len(wrong) > 0 {
		d.broken++
		verdict = "BROKEN"
	}
	d.row(fmt.Sprint(d.steps), r.String(), answer(got.err), got.filters.String(), got.heard.String(), want.heard.String(), verdict)
	if got.err != nil {
		d.remark("%s", strings.ReplaceAll(got.err.Error(), "\n", "; "))
	}
	for _, w := range wrong {
		d.remark("BROKEN: %s", w)
	}
}

func (d *demo) row(step, request, answer, filters, heard, expected, verdict string) {
	line := fmt.Sprintf("%4s  %-24s  %-13s  %-30s  %-11s  %-11s  %s", step, request, answer, filters, heard, expected, verdict)
	fmt.Fprintln(d.w, strings.TrimRight(line, " "))
}

func (d *demo) remark(format string, args ...any) { fmt.Fprintf(d.w, "      "+format+"\n", args...) }

// judge says what is wrong with an outcome.
func judge(want, got outcome) (wrong []string) {
	note := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if !errors.Is(got.err, want.err) {
		note("the answer should be %s", answer(want.err))
	}
	if got.filters != want.filters {
		note("the filters should be %v", want.filters)
	}
	for g, group := range groupNames {
		for i, sender := range senderNames {
			switch heard := got.heard[g][i]; {
			case heard && !want.heard[g][i]:
				note("%s was heard on %s", sender, group)
			case !heard && want.heard[g][i]:
				note("%s was not heard on %s", sender, group)
			}
		}
	}
	return wrong
}

// answer puts an error in a word.
func answer(err error) string {
	for _, s := range []struct {
		err  error
		word string
	}{
		{nil, "ok"},
		{mcast.ErrJoined, "ErrJoined"},
		{mcast.ErrNotJoined, "ErrNotJoined"},
		{mcast.ErrMode, "ErrMode"},
		{mcast.ErrBlocked, "ErrBlocked"},
		{mcast.ErrNotBlocked, "ErrNotBlocked"},
		{mcast.ErrAddress, "ErrAddress"},
		{mcast.ErrInterface, "ErrInterface"},
		{mcast.ErrSSM, "ErrSSM"},
		{mcast.ErrLimit, "ErrLimit"},
		{errors.ErrUnsupported, "unsupported"},
	} {
		if errors.Is(err, s.err) {
			return s.word
		}
	}
	return "failed"
}

// String returns the filters as "G EXCLUDE{A}  S INCLUDE{BC}".
func (f filters) String() string { return perGroup(f, " ", "  ") }

// String returns the hearing as "G:A S:BC".
func (h hearing) String() string {
	var s [numGroups]string
	for g := range h {
		s[g] = h[g].String()
	}
	return perGroup(s, ":", " ")
}

func perGroup(ss [numGroups]string, within, between string) string {
	var parts []string
	for g, s := range ss {
		if s != "" {
			parts = append(parts, groupNames[g]+within+s)
		}
	}
	if parts == nil {
		return "-"
	}
	return strings.Join(parts, between)
}
