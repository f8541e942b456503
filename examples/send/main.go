// Send sends numbered datagrams, or a file or its input, to a multicast group.
// Run it with -h.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/cli"
	"example.com/mcast/examples/internal/mpegts"
	"example.com/mcast/examples/internal/numbered"
	"example.com/mcast/examples/internal/rtp"
)

const usage = `Usage: send [flags] G:PORT

Sends numbered datagrams to a multicast group, or what it reads from a file or
from standard input. examples/recv counts them and finds out which are missing.

  send 239.1.1.1:5000
  send -i eth0 -ttl 8 -rate 1000 -size 1400 232.1.1.1:5000
  send -from 2001:db8::1 -n 100 '[ff3e::8000:1%eth0]:5000'
  send -ts film.ts 239.1.1.1:5000
  send -ts film.ts rtp://239.1.1.1:5000
  ffmpeg … -f mpegts - | send -ts - 239.1.1.1:5000
  some-program | send -raw -bitrate 4M -f - 239.1.1.1:5000

A datagram starts with 16 bytes, its number among them, unless -raw, -rtp or -ts
say otherwise: players take what these send.
`

func main() { cli.Main("send", run) }

// maxSize is the most that UDP over IPv4 carries.
const maxSize = 65507

// A format is what a datagram begins with.
type format uint8

const (
	isNumbered format = iota
	isRaw
	isRTP
)

func (f format) header() int { return [...]int{numbered.Size, 0, rtp.HeaderSize}[f] }

// Options are what the command line says.
type options struct {
	group   mcast.Group
	port    uint16
	from    netip.Addr // with its zone; invalid: the system chooses
	ttl     int
	format  format
	rate    float64 // datagrams a second; 0: no limit
	bitrate float64 // bits a second, instead; 0: not said
	size    int     // of a datagram, the header included
	count   uint64  // 0: no limit
	file    string  // "": zeros, "-": standard input
	ts      bool    // it is a transport stream
	every   time.Duration
}

func parse(args []string, stdout io.Writer) (o options, err error) {
	fs := flag.NewFlagSet("send", flag.ContinueOnError)
	ifname := fs.String("i", "", "send from this `interface` (name or index); else that of -from, else the routing table's")
	from := fs.String("from", "", "send from this source `address` of the machine; S@G:PORT is the same")
	fs.IntVar(&o.ttl, "ttl", 1, "time to live or hop `limit`, 0 (this machine) to 255")
	fs.Float64Var(&o.rate, "rate", 100, "`datagrams` a second; 0: as fast as possible")
	fs.Func("bitrate", "`bits` a second of UDP payload, such as 8M, in place of -rate", func(s string) (err error) {
		o.bitrate, err = parseBitrate(s)
		return err
	})
	fs.IntVar(&o.size, "size", 0, "`bytes` in a datagram with its header (default 1200; 1316 with -raw, and 12 more with -rtp)")
	fs.Uint64Var(&o.count, "n", 0, "stop after this `number` of datagrams; 0: do not")
	fs.StringVar(&o.file, "f", "", "send this `file`, - for standard input, cut into datagrams")
	ts := fs.String("ts", "", "send this MPEG transport stream, a `file` or -, at the pace of its clock (PCR), 7 packets a datagram")
	raw := fs.Bool("raw", false, "send payloads as they are, without numbers")
	isrtp := fs.Bool("rtp", false, "send RTP (RFC 3550); rtp:// is the same")
	cli.Duration(fs, &o.every, "every", "say what was sent each such `time`; 0: do not (default 1s)")
	rest, err := cli.Parse(fs, args, usage, stdout)
	if err != nil {
		return o, err
	}
	if len(rest) != 1 {
		return o, cli.Usagef("want one destination G:PORT, not %d", len(rest))
	}
	ch, err := cli.Channel(rest[0], "")
	switch {
	case err != nil:
		return o, err
	case ch.Port == 0:
		return o, cli.Usagef("%q is not a destination G:PORT, such as 239.1.1.1:5000 or [ff3e::8000:1]:5000", rest[0])
	case *from != "" && ch.Source.IsValid():
		return o, cli.Usagef("-from %s, and %v in %s: give one of them", *from, ch.Source, rest[0])
	case ch.Source.IsValid():
		*from = ch.Source.String()
	}
	o.group, o.port = ch.Group, uint16(ch.Port)

	*isrtp = *isrtp || cli.IsRTP(rest[0])
	switch {
	case *raw && *isrtp:
		return o, cli.Usagef("-raw and RTP exclude each other")
	case *isrtp:
		o.format = isRTP
	case *raw, *ts != "":
		o.format = isRaw
	}
	least := o.format.header()
	switch {
	case *ts != "" && o.file != "":
		return o, cli.Usagef("-ts and -f exclude each other")
	case *ts != "" && (cli.Given(fs, "rate") || o.bitrate > 0):
		return o, cli.Usagef("-ts sends at the pace of the stream's clock: for another one, give -raw, -f and -bitrate")
	case *ts != "":
		o.file, o.ts = *ts, true
		least += mpegts.Size
	case o.file != "" || o.format == isRaw:
		least++
	}
	if !cli.Given(fs, "size") {
		o.size = 1200
		if o.format != isNumbered {
			o.size = o.format.header() + mpegts.PerDatagram*mpegts.Size
		}
	}
	if !cli.Given(fs, "every") {
		o.every = time.Second
	}
	switch {
	case o.ttl < 0 || o.ttl > 255:
		return o, cli.Usagef("-ttl is 0 to 255, not %d", o.ttl)
	case !(o.rate >= 0) || math.IsInf(o.rate, 0):
		return o, cli.Usagef("-rate is 0 or more datagrams a second, not %v", o.rate)
	case o.bitrate > 0 && cli.Given(fs, "rate"):
		return o, cli.Usagef("-rate and -bitrate exclude each other")
	case o.size < least || o.size > maxSize:
		return o, cli.Usagef("-size is %d to %d bytes, not %d", least, maxSize, o.size)
	}
	if err := o.source(*from); err != nil {
		return o, err
	}
	return o, o.outgoing(*ifname)
}

// parseBitrate parses bits a second: "8M", "500k", "1e6".
func parseBitrate(s string) (float64, error) {
	factor := 1.0
	for suffix, f := range map[string]float64{"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9} {
		if digits, found := strings.CutSuffix(s, suffix); found {
			s, factor = digits, f
		}
	}
	n, err := strconv.ParseFloat(s, 64)
	if n *= factor; err != nil || !(n > 0) || math.IsInf(n, 0) {
		return 0, fmt.Errorf("not a number of bits such as 8M")
	}
	return n, nil
}

// source sets the address to send from.
func (o *options) source(s string) (err error) {
	if s == "" {
		return nil
	}
	if o.from, err = netip.ParseAddr(s); err != nil {
		return cli.Usagef("-from: %q is not an address", s)
	}
	switch o.from = o.from.Unmap(); {
	case o.from.Is4() != o.group.Addr.Is4():
		return cli.Usagef("-from %v and the group %v are of different families", o.from, o.group.Addr)
	case o.from.IsMulticast() || o.from.IsUnspecified():
		return cli.Usagef("-from %v cannot be a source", o.from)
	}
	return nil
}

// outgoing sets the interface to send by.
func (o *options) outgoing(ifname string) error {
	switch zone := o.group.Interface; {
	case zone == "*":
		return cli.Usagef("%v: what is sent leaves by one interface: name it", o.group)
	case ifname != "":
		ifi, err := cli.Interface(ifname)
		if err != nil {
			return err
		}
		if zone != "" && zone != ifi.Name && zone != strconv.Itoa(ifi.Index) {
			return cli.Usagef("-i %s and the interface in %v are not the same", ifname, o.group)
		}
		o.group.Interface = cli.Name(*ifi)
	case zone == "" && o.from.IsValid():
		// The routing table does not look at the source.
		o.group.Interface = owner(o.from)
	}
	return nil
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
	s := newSender(c, o)
	what := fmt.Sprintf("stream %08x", s.next.Stream)
	switch o.format {
	case isRaw:
		what = "as it is"
	case isRTP:
		what = fmt.Sprintf("RTP, SSRC %08x", s.next.Stream)
	}
	fmt.Fprintf(stdout, "sending to %v, %s\n", s.to, what)
	stop := s.report(stdout, o.every)
	err = s.sendAll(ctx, in)
	s.end()
	stop()
	fmt.Fprintf(stdout, "sent %d datagrams, %d bytes, in %.1f s\n", s.sent.Load(), s.bytes.Load(), time.Since(s.started).Seconds())
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
