//go:build linux && cgo

// Bench measures the library beside what one would otherwise use: C, the
// standard library, golang.org/x/net and bare system calls. From the root of
// the repository:
//
//	go run -C bench .
//
// "go test -C bench -bench ." has the receivers for benchstat. Both need Linux and
// a C compiler, but no privileges. They run in a network namespace of their own,
// on its loopback interface, where they can make one; else IPv6 is left out.
//
// # Method
//
// Everything is a ratio within one run. In each round every subject has one
// turn, in an order drawn anew; the ratio of two subjects is the median, over
// the rounds, of their ratio in each round. What is counted is the CPU time of
// the one thread that works (CLOCK_THREAD_CPUTIME_ID): neither waiting nor
// the garbage collector's own threads.
//
// A receiver has 64 datagrams put into its socket's buffer, from a
// source-specific group on the loopback interface, then drains it; only this
// is timed, once to warm up and then three times. The reference is recvmmsg(2)
// in C for 16 datagrams at a time, with group, interface and source of each put
// into a struct, all 64 in one call from Go. It runs a second time under
// another name: if the two differ by more than 2 %, the machine was too noisy.
// Where C does not reach a target either, the line says what C reaches.
//
// Many channels are those of a Pool, beside C with as many sockets and with 20
// channels to each. They are joined and closed a few times in turn; what this
// takes is the CPU time of the whole process. A load then goes to one of them,
// the same each time, or one datagram each to 64 of them, other ones each time.
//
// Config.Coalesce is measured on a live stream: a thread of its own, in C, sends
// at a steady rate, and its CPU time is taken from that of the process, which
// leaves the reader and all that the runtime does for it. Both are on this
// machine: the delays need a quiet one.
//
// Latency and fairness are measured on such streams too, in short turns of which
// the median counts: each datagram has the sender's clock in it. Without a
// processor for the sender and one for the reader, what is measured is the
// scheduler; C's own figures, and those of the quietest turn, tell.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"log"
	"os"
	"regexp"
	"runtime"
	"runtime/pprof"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A section is a part of the output, in a file of its own: it measures its
// subjects and adds a table and targets to the report.
type section struct {
	name string
	run  func(*options, *report) error
}

var sections = []section{
	{"receive", receive},
	{"requests", requests},
	{"filter", filter},
	{"pool", pool},
	{"coalesce", coalesce},
	{"gro", gro},
	{"send", send},
	{"latency", latency},
	{"fairness", fairness},
	{"idle", idle},
}

type options struct {
	rounds int
	only   *regexp.Regexp
}

// wants reports whether a line of a section was asked for.
func (o *options) wants(section, name string) bool {
	return o.only == nil || o.only.MatchString(section+"/"+name)
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("bench: ")
	rounds := flag.Int("rounds", 400, "rounds that every subject has a turn in")
	quick := flag.Bool("quick", false, "40 rounds: to see that it works")
	profile := flag.String("cpuprofile", "", "write a CPU profile to this `file`")
	plot := flag.String("plot", "", "draw the latencies and the curve of Config.Coalesce into this SVG `file`")
	write := flag.Bool("write", false, "put the tables into README.md, and ../README.md if it has any, and the plot into plot.svg;\nwith -only, the tables of these sections alone")
	only := flag.String("only", "", "only lines whose \"section/name\" matches this `regexp`, beside their reference:\n\"receive/mcast ReadBatch\", requests, filter, pool/join, pool/read,\ncoalesce, gro, send, latency, fairness, idle")
	flag.Parse()
	o := &options{rounds: *rounds}
	if *quick {
		o.rounds = 40
	}
	if o.rounds < 1 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if *only != "" {
		var err error
		if o.only, err = regexp.Compile(*only); err != nil {
			log.Fatal(err)
		}
	}
	if err := enterNamespace(); err != nil {
		log.Fatal(err)
	}
	out, err := run(o, *profile)
	if err != nil {
		log.Fatal(err)
	}
	if *write && *plot == "" && o.only == nil {
		*plot = "plot.svg"
	}
	if *plot != "" {
		if err := writePlot(*plot, out.latencies, out.curves); err != nil {
			log.Fatal(err)
		}
	}
	if *write {
		if o.only != nil { // they would be a part of what stands there
			delete(out.written, "summary")
			delete(out.written, "targets")
			delete(out.written, "machine")
		}
		if err := writeReadmes(out.written); err != nil {
			log.Fatal(err)
		}
	}
}

func run(o *options, profile string) (*report, error) {
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return nil, err
		}
		defer pprof.StopCPUProfile()
	}
	start := time.Now()
	out := newReport()
	on := machine()
	fmt.Println(on)
	out.written["machine"] = on
	for _, s := range sections {
		if err := s.run(o, out); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		out.print(s.name, os.Stdout)
	}
	out.printTargets(os.Stdout)
	fmt.Printf("\n%d rounds, %.0f s.\n", o.rounds, time.Since(start).Seconds())
	return out, nil
}

// machine says when, on what and how this was measured.
func machine() string {
	var u unix.Utsname
	unix.Uname(&u)
	text := func(b []byte) string { b, _, _ = bytes.Cut(b, []byte{0}); return string(b) }
	release, _, _ := strings.Cut(text(u.Release[:]), "-") // what follows names the machine
	return fmt.Sprintf("%s, Linux %s %s, %d × %s, %s: `%s`",
		time.Now().Format(time.DateOnly), release, text(u.Machine[:]), runtime.NumCPU(), cpu(), runtime.Version(),
		strings.Join(append([]string{"go run -C bench ."}, os.Args[1:]...), " "))
}

func cpu() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return runtime.GOARCH
}
