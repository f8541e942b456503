package main

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"example.com/mcast"
)

// receive reads from all sockets, and shows each second what came, until ctx
// is done, the time is over, or the monitor has seen enough.
func receive(ctx context.Context, conns []conn, m *monitor, duration time.Duration) error {
	failed := make(chan error, len(conns))
	var readers sync.WaitGroup
	for _, c := range conns {
		readers.Go(func() {
			if err := c.read(m); !errors.Is(err, os.ErrDeadlineExceeded) {
				failed <- err
			}
		})
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
	for _, c := range conns {
		c.SetReadDeadline(time.Unix(1, 0)) // long ago: wakes the reader
	}
	readers.Wait()
	return err
}

// read reads until the deadline or an error.
func (c conn) read(m *monitor) error {
	ms := make([]mcast.Message, 32)
	for i := range ms {
		ms[i].Buf = make([]byte, 1<<16) // no datagram is longer
	}
	for {
		n, err := c.ReadBatch(ms)
		if err != nil {
			return err
		}
		if err := m.note(ms[:n]); err != nil {
			return err
		}
	}
}
