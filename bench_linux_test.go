package mcast

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkRequest compares JoinSource and LeaveSource of a Conn on the
// loopback with the two bare system calls on a socket beside it, by turns in
// one run. The ratio is that of the medians.
func BenchmarkRequest(b *testing.B) {
	lo, index := loopbackName(b)
	c, err := Listen("udp4", ":0", nil)
	if err != nil {
		b.Skip(err)
	}
	defer c.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Skip(err)
	}
	defer unix.Close(fd)

	g, source := Group{netip.MustParseAddr("232.1.1.1"), lo}, netip.MustParseAddr("127.0.0.1")
	value := string(hostSystem.groupReq(nil, change{OpJoinSource, g.Addr, index, source}))
	ours := func() error {
		if err := c.JoinSource(g, source); err != nil {
			return err
		}
		return c.LeaveSource(g, source)
	}
	bare := func() error {
		if err := unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.MCAST_JOIN_SOURCE_GROUP, value); err != nil {
			return err
		}
		return unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.MCAST_LEAVE_SOURCE_GROUP, value)
	}
	const round = 20
	var times [2][]time.Duration // of a round
	for n := 0; b.Loop(); n++ {
		for i, do := range []func() error{ours, bare} {
			start := time.Now()
			for range round {
				if err := do(); err != nil {
					b.Skip(err)
				}
			}
			times[i] = append(times[i], time.Since(start)/round)
		}
	}
	var median [2]float64
	for i, t := range times {
		slices.Sort(t)
		median[i] = float64(t[len(t)/2])
	}
	b.ReportMetric(median[0], "ns/pair")
	b.ReportMetric(median[1], "ns/bare-pair")
	b.ReportMetric(median[0]/median[1], "ratio")
	b.ReportMetric(0, "ns/op") // both together, many times: says nothing
}
