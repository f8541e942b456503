//go:build linux && cgo

package main

import (
	"flag"
	"io"
	"log"
	"os"
	"regexp"
	"runtime"
	"testing"
)

func TestMain(m *testing.M) {
	flag.Parse() // before what enterNamespace may end
	if err := enterNamespace(); err != nil {
		log.Fatal(err)
	}
	os.Exit(m.Run())
}

// TestEverything runs each section for two rounds: all receivers must read the
// same from the same datagrams, and all requests succeed.
func TestEverything(t *testing.T) {
	out := newReport()
	for _, s := range sections {
		if err := s.run(&options{rounds: 2}, out); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
		out.print(s.name, io.Discard)
	}
	out.printTargets(io.Discard)
	for _, n := range out.notes {
		t.Log(n)
	}
}

// TestOnly leaves out what was not asked for, but not the reference.
func TestOnly(t *testing.T) {
	out := newReport()
	if err := receive(&options{rounds: 1, only: regexp.MustCompile("^receive/mcast ReadMessage$")}, out); err != nil {
		t.Fatal(err)
	}
	if got := len(out.tables[0].rows); got != 3 {
		t.Errorf("%d lines, want C twice and ReadMessage", got)
	}
}

// BenchmarkReceive is for benchstat: CPU time per datagram of 1316 bytes.
func BenchmarkReceive(b *testing.B) {
	ch, err := channel4()
	if err != nil {
		b.Fatal(err)
	}
	for _, t := range receiverTypes {
		b.Run(t.name, func(b *testing.B) {
			ss, done, err := load{channel: ch, size: 1316}.subjects([]receiverType{t})
			if err != nil {
				b.Fatal(err)
			}
			defer done()
			runtime.LockOSThread() // whose CPU time it is
			defer runtime.UnlockOSThread()
			sum, n := 0.0, 0
			for b.Loop() {
				ns, err := ss[0].cycle()
				if err != nil {
					b.Fatal(err)
				}
				sum += ns
				n++
			}
			b.ReportMetric(0, "ns/op") // has the sending in it
			b.ReportMetric(sum/float64(n), "cpu-ns/datagram")
		})
	}
}
