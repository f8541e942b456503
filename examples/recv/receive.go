package main

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/incoming"
)

// receive reads from all sockets and tunnels, and shows each second what came, until ctx
// is done, the time is over, or the monitor has seen enough.
func receive(ctx context.Context, conns []conn, m *monitor, duration time.Duration) error {
	failed := make(chan error, 2*len(conns))
	var readers sync.WaitGroup
	start := func(run func() error) {
		readers.Go(func() {
			if err := run(); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				failed <- err
			}
		})
	}
	tunnels, leave := context.WithCancel(ctx)
	defer leave()
	for _, c := range conns {
		if c.fallback == nil {
			start(func() error { return read(c, m.note) })
			continue
		}
		start(func() error {
			return read(c, func(ms []mcast.Message) error { return c.fallback.native(ms, m.note) })
		})
		start(func() error { return c.fallback.run(tunnels, m.note) })
	}
	var over <-chan time.Time
	if duration > 0 {
		over = time.After(duration)
	}
	second := time.NewTicker(time.Second)
	defer second.Stop()
	var err error
	for going := true; going; {
		m.show.notes(oldVersions(conns))
		select {
		case <-second.C:
			m.show.second(m.second())
		case err = <-failed:
			going = false
		case <-ctx.Done():
			going = false
		case <-over:
			going = false
		case <-m.enough:
			going = false
		}
	}
	leave()
	for _, c := range conns {
		c.SetReadDeadline(longAgo) // wakes the reader
	}
	readers.Wait()
	return err
}

var longAgo = time.Unix(1, 0)

// read reads until the deadline or an error.
func read(r incoming.Receiver, got func([]mcast.Message) error) error {
	ms := make([]mcast.Message, 32)
	for i := range ms {
		ms[i].Buf = make([]byte, 1<<16) // no datagram is longer
	}
	for {
		n, err := r.ReadBatch(ms)
		if err != nil {
			return err
		}
		if err := got(ms[:n]); err != nil {
			return err
		}
	}
}
