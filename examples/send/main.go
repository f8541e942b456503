// Send sends numbered datagrams, or its input cut into them, to a multicast
// group. Run it with -h.
package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/cli"
	"example.com/mcast/examples/internal/numbered"
)

const usage = `Usage: send [flags] G:PORT

Sends numbered datagrams to a multicast group, or what it reads from a file or
from standard input. examples/recv counts them and finds out which are missing.

  send 239.1.1.1:5000
  send -i eth0 -ttl 8 -rate 1000 -size 1400 232.1.1.1:5000
  send -from 2001:db8::1 -n 100 '[ff3e::8000:1%eth0]:5000'
  send -f film.ts -rate 500 239.1.1.1:5000
  some-program | send -f - -rate 0 239.1.1.1:5000

A datagram starts with 16 bytes, its number among them; the payload follows.
`

func main() { cli.Main("send", run) }

// maxSize is the most that UDP over IPv4 carries.
const maxSize = 65507

// Options are what the command line says.
type options struct {
	group mcast.Group
	port  uint16
	from  netip.Addr // with its zone; invalid: the system chooses
	ttl   int
	rate  float64 // datagrams a second; 0: no limit
	size  int     // of a datagram, the header included
	count uint64  // 0: no limit
	file  string  // "": zeros, "-": standard input
}

func parse(args []string, stdout io.Writer) (o options, err error) {
	fs := flag.NewFlagSet("send", flag.ContinueOnError)
	ifname := fs.String("i", "", "send from this `interface` (name or index); else that of -from, else the routing table's")
	from := fs.String("from", "", "send from this source `address` of the machine")
	fs.IntVar(&o.ttl, "ttl", 1, "time to live or hop `limit`, 0 (this machine) to 255")
	fs.Float64Var(&o.rate, "rate", 100, "`datagrams` a second; 0: as fast as possible")
	fs.IntVar(&o.size, "size", 1200, "`bytes` in a datagram, the 16 of the header included")
	fs.Uint64Var(&o.count, "n", 0, "stop after this `number` of datagrams; 0: do not")
	fs.StringVar(&o.file, "f", "", "send this `file`, - for standard input, cut into datagrams")
	if err := cli.Parse(fs, args, usage, stdout); err != nil {
		return o, err
	}
	if fs.NArg() != 1 {
		return o, cli.Usagef("want one destination G:PORT, not %d", fs.NArg())
	}
	host, port, err := net.SplitHostPort(fs.Arg(0))
	if err != nil {
		return o, cli.Usagef("%q is not a destination G:PORT, such as 239.1.1.1:5000 or [ff3e::8000:1]:5000", fs.Arg(0))
	}
	if o.port, err = cli.Port(port); err != nil {
		return o, err
	}
	if o.group, err = mcast.ParseGroup(host); err != nil {
		return o, cli.Usagef("%w", err)
	}

	least := numbered.Size
	if o.file != "" {
		least++
	}
	switch {
	case o.ttl < 0 || o.ttl > 255:
		return o, cli.Usagef("-ttl is 0 to 255, not %d", o.ttl)
	case !(o.rate >= 0) || math.IsInf(o.rate, 0):
		return o, cli.Usagef("-rate is 0 or more datagrams a second, not %v", o.rate)
	case o.size < least || o.size > maxSize:
		return o, cli.Usagef("-size is %d to %d bytes, not %d", least, maxSize, o.size)
	}
	if *from != "" {
		if o.from, err = netip.ParseAddr(*from); err != nil {
			return o, cli.Usagef("-from: %q is not an address", *from)
		}
		switch o.from = o.from.Unmap(); {
		case o.from.Is4() != o.group.Addr.Is4():
			return o, cli.Usagef("-from %v and the group %v are of different families", o.from, o.group.Addr)
		case o.from.IsMulticast() || o.from.IsUnspecified():
			return o, cli.Usagef("-from %v cannot be a source", o.from)
		}
	}
	switch zone := o.group.Interface; {
	case zone == "*":
		return o, cli.Usagef("%s: what is sent leaves by one interface: name it", fs.Arg(0))
	case *ifname != "":
		ifi, err := cli.Interface(*ifname)
		if err != nil {
			return o, err
		}
		if zone != "" && zone != ifi.Name && zone != strconv.Itoa(ifi.Index) {
			return o, cli.Usagef("-i %s and the interface in %s are not the same", *ifname, fs.Arg(0))
		}
		o.group.Interface = cli.Name(*ifi)
	case zone != "":
		if _, err := cli.Interface(zone); err != nil {
			return o, err
		}
	case o.from.IsValid():
		// The routing table does not look at the source.
		o.group.Interface = owner(o.from)
	}
	return o, nil
}

// owner finds the interface that has an address, and "" if none has. All of
// 127.0.0.0/8 is on the loopback interface.
func owner(a netip.Addr) string {
	ifis, _ := net.Interfaces()
	for _, ifi := range ifis {
		if a.IsLoopback() && ifi.Flags&net.FlagLoopback != 0 || a.Zone() == ifi.Name {
			return cli.Name(ifi)
		}
		addrs, _ := ifi.Addrs()
		for _, x := range addrs {
			if p, err := netip.ParsePrefix(x.String()); err == nil && p.Addr() == a {
				return cli.Name(ifi)
			}
		}
	}
	return ""
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, _ io.Writer) error {
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	var in io.Reader
	switch o.file {
	case "":
	case "-":
		in = stdin
	default:
		f, err := os.Open(o.file)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	c, err := open(o)
	if err != nil {
		return err
	}
	defer c.Close()
	s := sender{Conn: c, to: destination(o), started: time.Now(), rate: o.rate}
	var id [4]byte
	rand.Read(id[:])
	s.next.Stream = binary.BigEndian.Uint32(id[:])

	fmt.Fprintf(stdout, "sending to %v, stream %08x\n", s.to, s.next.Stream)
	err = s.sendAll(ctx, o, in)
	fmt.Fprintf(stdout, "sent %d datagrams, %d bytes, in %.1f s\n", s.next.Seq, s.bytes, time.Since(s.started).Seconds())
	return err
}

// open opens a socket to send from.
func open(o options) (*mcast.Conn, error) {
	network, from := "udp4", ""
	if o.group.Addr.Is6() {
		network = "udp6"
	}
	if o.from.IsValid() {
		from = o.from.String()
	}
	c, err := mcast.Listen(network, net.JoinHostPort(from, "0"), nil)
	if err != nil {
		return nil, err
	}
	if o.group.Interface != "" {
		err = c.SetMulticastInterface(o.group.Interface)
	}
	if err == nil {
		err = c.SetMulticastTTL(o.ttl)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// destination is the address to send to. An IPv6 group that is another one on
// each interface has that as its zone.
func destination(o options) netip.AddrPort {
	a := o.group.Addr
	if a.Is6() && (a.IsLinkLocalMulticast() || a.IsInterfaceLocalMulticast()) {
		a = a.WithZone(o.group.Interface)
	}
	return netip.AddrPortFrom(a, o.port)
}

// A sender sends the datagrams of one stream.
type sender struct {
	*mcast.Conn
	to      netip.AddrPort
	next    numbered.Header
	bytes   uint64
	started time.Time
	rate    float64
	buf     []byte
}

// sendAll sends until the input ends, the count is reached or ctx is done.
func (s *sender) sendAll(ctx context.Context, o options, in io.Reader) error {
	zeros := make([]byte, o.size-numbered.Size)
	var chunks <-chan chunk
	if in != nil {
		done := make(chan struct{})
		defer close(done)
		chunks = cut(in, len(zeros), done)
	}
	for o.count == 0 || s.next.Seq < o.count {
		if !s.pace(ctx) {
			return nil
		}
		payload := zeros
		if in != nil {
			select {
			case c := <-chunks:
				if c.err == io.EOF {
					return nil
				} else if c.err != nil {
					return c.err
				}
				payload = c.b
			case <-ctx.Done():
				return nil
			}
		}
		if err := s.send(ctx, payload); err != nil {
			return err
		}
	}
	return nil
}

// send sends one datagram. It is patient with a system that is out of
// buffers, or whose interface is just coming up.
func (s *sender) send(ctx context.Context, payload []byte) error {
	s.buf = append(s.next.Append(s.buf[:0]), payload...)
	for try := 0; ; try++ {
		_, err := s.WriteToUDPAddrPort(s.buf, s.to)
		if err == nil {
			s.next.Seq++
			s.bytes += uint64(len(s.buf))
			return nil
		}
		if try == 100 || ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// pace waits until the next datagram is due. It is false when ctx is done.
func (s *sender) pace(ctx context.Context) bool {
	if s.rate > 0 {
		due := s.started.Add(time.Duration(float64(s.next.Seq) / s.rate * float64(time.Second)))
		if wait := time.Until(due); wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}
	}
	return ctx.Err() == nil
}

// A chunk is a piece of the input, or why there is none.
type chunk struct {
	b   []byte
	err error
}

// cut reads pieces of at most size bytes, each as soon as there is something,
// until done is closed. A read cannot be interrupted, so that it goes on for
// itself.
func cut(in io.Reader, size int, done <-chan struct{}) <-chan chunk {
	chunks := make(chan chunk)
	put := func(c chunk) bool {
		select {
		case chunks <- c:
			return true
		case <-done:
			return false
		}
	}
	go func() {
		for {
			b := make([]byte, size)
			n, err := in.Read(b)
			if n > 0 && !put(chunk{b: b[:n]}) {
				return
			}
			if err != nil {
				put(chunk{err: err})
				return
			}
		}
	}()
	return chunks
}
