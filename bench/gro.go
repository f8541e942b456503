//go:build linux && cgo

package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"example.com/mcast"
)

// segmented sends a load in two calls, each for the kernel to cut into
// datagrams (UDP_SEGMENT), which it does not before somebody wants them so.
func segmented(fd int, ch channel, port, size int) func() error {
	control := make([]byte, unix.CmsgSpace(2))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(control[unix.CmsgLen(0):], uint16(size))
	to := unix.SockaddrInet4{Port: port, Addr: ch.Group.Addr.As4()}
	const calls = 2
	payload := make([]byte, size*datagrams/calls)
	return func() error {
		for range calls {
			if err := unix.Sendmsg(fd, payload, control, &to, 0); err != nil {
				return os.NewSyscallError("sendmsg, UDP_SEGMENT", err)
			}
		}
		return nil
	}
}

// gro measures what Config.GRO gains, for senders that use UDP_SEGMENT and for
// those that do not.
func gro(o *options, out *report) error {
	if !o.wants("gro", "read") {
		return nil
	}
	ch, err := channel4()
	if err != nil {
		return err
	}
	from, err := ch.openSender()
	if err != nil {
		return err
	}
	defer from.Close()
	const size = 1316
	return withFD(from, func(fd int) error {
		var ss []subject
		type reading struct {
			name string
			gro  bool
			slab bool
		}
		readings := []reading{
			{"ReadBatch, 32", false, false},
			{"ReadBatch, 32, again", false, false},
			{"ReadSlab", false, true},
			{"ReadBatch, 32, GRO", true, false},
			{"ReadSlab, GRO", true, true},
		}
		const plain, segments = "", "from UDP_SEGMENT: "
		for _, r := range readings {
			for _, by := range []string{plain, segments} {
				c, err := mcast.Listen(ch.network(), ":0", &mcast.Config{ReadBuffer: readBuffer, GRO: r.gro})
				if err != nil {
					return err
				}
				defer c.Close()
				if err := c.JoinSource(ch.Group, ch.Source); err != nil {
					return err
				}
				c.SetReadDeadline(deadline())
				port := c.LocalAddr().(*net.UDPAddr).Port
				s := subject{name: by + r.name, units: datagrams, run: drainInto(c, r.slab, size)}
				if by == segments {
					s.prepare = segmented(fd, ch, port, size)
				} else {
					s.prepare = newSender(fd, netip.AddrPortFrom(ch.Group.Addr, uint16(port)), make([]byte, size)).send
				}
				ss = append(ss, s)
			}
		}
		m, err := measure(o.rounds, ss)
		if err != nil {
			out.note("Config.GRO was not measured: %v.", err)
			return nil
		}
		t := out.table("Config.GRO: CPU time per datagram of 1316 bytes in ns, and as a multiple of ReadBatch's without it",
			"receiver", "sender without UDP_SEGMENT", "of ReadBatch", "sender with UDP_SEGMENT", "of ReadBatch")
		for _, r := range readings {
			cells := []string{"mcast " + r.name}
			for _, by := range []string{plain, segments} {
				cells = append(cells, fmt.Sprintf("%.0f", m.ns(by+r.name)), fmt.Sprintf("%.2f", m.ratio(by+r.name, by+readings[0].name)))
			}
			t.row(cells...)
		}
		out.null("ReadBatch beside ReadBatch", m.ratio(readings[1].name, readings[0].name))
		out.atMost("Config.GRO, sender with UDP_SEGMENT: ReadBatch, of without", m.ratio(segments+"ReadBatch, 32, GRO", segments+readings[0].name), 0.5)
		out.atMost("Config.GRO, sender with UDP_SEGMENT: ReadSlab, of ReadBatch without", m.ratio(segments+"ReadSlab, GRO", segments+readings[0].name), 0.33)
		return nil
	})
}

// drainInto reads a load by ReadBatch or by ReadSlab.
func drainInto(c *mcast.Conn, slab bool, size int) func() error {
	if slab {
		b, ds := make([]byte, 16<<16), make([]mcast.Datagram, datagrams)
		return func() error {
			for left := datagrams; left > 0; {
				n, err := c.ReadSlab(b, ds)
				if err != nil {
					return err
				}
				if left -= n; ds[0].Size != size {
					return fmt.Errorf("a datagram of %d bytes, want %d", ds[0].Size, size)
				}
			}
			return nil
		}
	}
	ms := make([]mcast.Message, 32)
	for i, b := range buffers(len(ms)) {
		ms[i].Buf = b
	}
	return func() error {
		for left := datagrams; left > 0; {
			n, err := c.ReadBatch(ms)
			if err != nil {
				return err
			}
			if left -= n; ms[0].N != size {
				return fmt.Errorf("a datagram of %d bytes, want %d", ms[0].N, size)
			}
		}
		return nil
	}
}
