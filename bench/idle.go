//go:build linux && cgo

package main

import (
	"fmt"
	"syscall"
	"time"

	"example.com/mcast"
)

// idle measures what a program uses that has joined many channels and hears
// nothing.
func idle(o *options, out *report) error {
	if !o.wants("idle", "Pool") {
		return nil
	}
	ch, err := channel4()
	if err != nil {
		return err
	}
	n, length := many, 10*time.Second
	switch {
	case o.rounds < 10: // a test
		n, length = 100, 100*time.Millisecond
	case o.rounds < 100:
		length = 2 * time.Second
	}
	if !enoughDescriptors(n) {
		return nil // pool says so
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	p, err := openPool(ch, n, port)
	if err != nil {
		return err
	}
	defer p.Close()
	p.SetReadDeadline(time.Time{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m := mcast.Message{Buf: make([]byte, room)}
		p.ReadMessage(&m) // until Close
	}()
	settle()
	time.Sleep(time.Second)
	var before, after syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	cpu := processCPU()
	time.Sleep(length)
	cpu = processCPU() - cpu
	syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	wakes := after.Nvcsw - before.Nvcsw
	out.table(fmt.Sprintf("Idle: a program with %s channels joined, nothing sent, in %v", thousands(n), length),
		"", "CPU, ms", "wake-ups of all threads").
		row("mcast Pool, a reader waiting", fmt.Sprintf("%.2f", float64(cpu)/1e6), fmt.Sprint(wakes))
	out.atMost(fmt.Sprintf("Idle: %s channels: CPU in ‰ of a processor", thousands(n)), float64(cpu)/float64(length)*1000, 0.1)
	out.headline(fmt.Sprintf("%s channels joined, nothing sent: CPU and wake-ups in %v", thousands(n), length), fmt.Sprintf("%.1f ms, %d", float64(cpu)/1e6, wakes))
	p.Close()
	<-ended
	return nil
}
