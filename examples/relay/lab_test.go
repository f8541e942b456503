//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/mcast/examples/internal/cli"
	"example.com/mcast/examples/internal/looptest"
	"example.com/mcast/examples/internal/mpegts"
	"example.com/mcast/internal/netlab"
)

// A program is a relay that runs on the lab's local host.
type program struct {
	url    string
	stderr *looptest.Buffer
	stop   func()
}

func startProgram(t *testing.T, args ...string) *program {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stdout, stderr := looptest.NewBuffer(), looptest.NewBuffer()
	code := make(chan int, 1)
	go func() {
		code <- cli.Run(ctx, "relay", run, append([]string{"-listen", "127.0.0.1:0"}, args...), nil, stdout, stderr)
	}()
	p := &program{url: addressOf(t, stdout), stderr: stderr}
	p.stop = sync.OnceFunc(func() {
		cancel()
		if c := <-code; c != 0 {
			t.Errorf("exit code %d: %s", c, stderr)
		}
	})
	t.Cleanup(p.stop)
	return p
}

func (p *program) text(t *testing.T, path string) string {
	t.Helper()
	resp, err := http.Get(p.url + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%s: %s %v %s", path, resp.Status, err, b)
	}
	return string(b)
}

// metric returns the sum of a metric over all channels whose name has a word in
// it.
func (p *program) metric(t *testing.T, name, word string) (sum float64) {
	t.Helper()
	for k, v := range parseMetrics(t, p.text(t, "/metrics")) {
		if (k == name || strings.HasPrefix(k, name+"{")) && strings.Contains(k, word) {
			sum += v
		}
	}
	return sum
}

// A player watches a stream of numbered packets and looks whether they are all
// there.
type player struct {
	packets  atomic.Int64
	first    atomic.Int64
	gaps     atomic.Int64 // places where a number is not the next one
	body     io.ReadCloser
	done     chan struct{}
	finished error
}

func play(url string) (*player, error) {
	resp, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "video/mp2t" {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s %v", url, resp.Status, resp.Header)
	}
	p := &player{body: resp.Body, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.finished = p.read()
	}()
	return p, nil
}

func (p *player) read() error {
	b := make([]byte, 348*mpegts.Size)
	next := int64(-1)
	for {
		n, err := io.ReadAtLeast(p.body, b, mpegts.Size)
		for rest := n % mpegts.Size; rest != 0 && err == nil; rest = n % mpegts.Size {
			var more int
			more, err = io.ReadFull(p.body, b[n:n+mpegts.Size-rest])
			n += more
		}
		for at := 0; at+mpegts.Size <= n; at += mpegts.Size {
			packet := b[at : at+mpegts.Size]
			if packet[0] != 0x47 {
				return fmt.Errorf("a packet begins with %#x", packet[0])
			}
			number := int64(binary.BigEndian.Uint64(packet[4:]))
			switch {
			case next < 0:
				p.first.Store(number)
			case number != next:
				p.gaps.Add(1)
			}
			next = number + 1
			p.packets.Add(1)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func mustPlay(t *testing.T, url string) *player {
	t.Helper()
	p, err := play(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.body.Close() })
	return p
}

// close ends the viewing, and complains about what was missing.
func (p *player) close(t *testing.T) {
	t.Helper()
	p.body.Close()
	<-p.done
	if p.gaps.Load() != 0 || p.packets.Load() == 0 {
		t.Errorf("%d packets with %d gaps", p.packets.Load(), p.gaps.Load())
	}
}

// A station sends numbered packets, seven in a datagram.
type station struct {
	rtp      bool
	shuffle  bool // changes the order of two datagrams, and sends some twice
	ssrc     uint32
	each     time.Duration
	sent     atomic.Int64
	datagram []byte
}

// next makes the next datagram.
func (s *station) next() []byte {
	b := s.datagram[:0]
	n := s.sent.Add(1) - 1
	if s.rtp {
		b = append(b, rtpPacket(s.ssrc, int(n), nil)...)
	}
	for i := range int64(mpegts.PerDatagram) {
		number := n*mpegts.PerDatagram + i
		p := make([]byte, mpegts.Size)
		copy(p, []byte{0x47, 1, 0, 0x10 | byte(number&15)})
		binary.BigEndian.PutUint64(p[4:], uint64(number))
		b = append(b, p...)
	}
	s.datagram = b
	return b
}

// run sends until the test ends, or stop is called. What cannot be sent, because
// an interface is gone, is lost.
func (s *station) run(t *testing.T, open func() (io.Writer, func())) (stop func()) {
	t.Helper()
	done := make(chan struct{})
	var over sync.WaitGroup
	w, end := open()
	over.Go(func() {
		defer end()
		started := time.Now()
		for n := 0; ; n++ {
			// Many at once where the clock is too coarse: so do senders.
			if wait := time.Until(started.Add(time.Duration(n) * s.each)); wait > time.Millisecond {
				select {
				case <-done:
					return
				case <-time.After(wait):
				}
			}
			select {
			case <-done:
				return
			default:
			}
			b := bytes.Clone(s.next())
			if s.shuffle && n%10 == 3 {
				w.Write(s.next())
			}
			w.Write(b)
			if s.shuffle && n%7 == 3 {
				w.Write(b)
			}
		}
	})
	stop = sync.OnceFunc(func() { close(done); over.Wait() })
	t.Cleanup(stop)
	return stop
}

// A sending is a netlab.Sender as a Writer.
type sending struct{ s *netlab.Sender }

func (w sending) Write(b []byte) (int, error) { return len(b), w.s.Send(string(b)) }

func (s *station) from(t *testing.T, h *netlab.Host, source netip.Addr, to netip.AddrPort) (stop func()) {
	return s.run(t, func() (io.Writer, func()) {
		sender := h.Sender(t, "eth0", source, to)
		return sending{sender}, func() { sender.Close() }
	})
}

// From a sender over a network to viewers: any source and one source, raw and
// RTP, IPv4 and IPv6.
func TestLabStreams(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		me, far := l.Local(), l.Host("far")
		l.Switch(me, far)
		me.IP("route", "add", "224.0.0.0/4", "dev", "eth0")
		src, src6 := far.Addr4("eth0"), far.Addr6("eth0")
		other := netip.MustParseAddr("10.200.0.9")
		channels := []struct {
			target string
			source netip.Addr
			to     string
			s      *station
		}{
			{"udp://@239.1.1.1:5000", src, "239.1.1.1:5000", &station{}},
			{fmt.Sprintf("udp://%v@232.1.1.1:5000", src), src, "232.1.1.1:5000", &station{}},
			{"rtp://@239.1.1.2:5004", src, "239.1.1.2:5004", &station{rtp: true, shuffle: true}},
			{fmt.Sprintf("rtp://%v@232.1.1.2%%eth0:5004", src), src, "232.1.1.2:5004", &station{rtp: true, shuffle: true}},
			{fmt.Sprintf("udp://%v@[ff3e::8000:1%%eth0]:5000", src6), src6, "[ff3e::8000:1]:5000", &station{}},
		}
		var list strings.Builder
		for i, c := range channels {
			fmt.Fprintf(&list, "#EXTINF:-1,Channel %d\n%s\n", i, c.target)
		}
		file := t.TempDir() + "/list.m3u"
		if err := os.WriteFile(file, []byte(list.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		p := startProgram(t, "-list", file, "-linger", "200ms")
		for i := range channels {
			c := &channels[i]
			c.s.each = 5 * time.Millisecond
			c.s.from(t, far, c.source, netip.MustParseAddrPort(c.to))
			if c.source.Is4() { // who must not be heard in a channel, and not be mixed into a group
				(&station{rtp: c.s.rtp, shuffle: c.s.shuffle, ssrc: 8, each: c.s.each}).from(t, far, other, netip.MustParseAddrPort(c.to))
			}
		}
		var paths []string
		for line := range strings.Lines(p.text(t, "/playlist.m3u")) {
			if strings.HasPrefix(line, "http://") {
				paths = append(paths, strings.TrimSpace(line))
			}
		}
		if len(paths) != len(channels) {
			t.Fatalf("%q", paths)
		}
		var players []*player
		for range 3 {
			for _, url := range paths {
				players = append(players, mustPlay(t, url))
			}
		}
		for i, p := range players {
			eventually(t, fmt.Sprintf("player %d plays", i), func() bool { return p.packets.Load() > 300*mpegts.PerDatagram })
		}
		for i := range channels {
			group := netip.MustParseAddrPort(channels[i].to).Addr()
			if n := me.Users("eth0", group); n != 1 {
				t.Errorf("%v has %d members for three viewers", group, n)
			}
			name := fmt.Sprintf("Channel %d", i)
			if n := p.metric(t, "mcast_relay_channel_viewers", name); n != 3 {
				t.Errorf("%s has %v viewers", name, n)
			}
			for _, m := range []string{"mcast_relay_rtp_lost_packets_total", "mcast_relay_ts_lost_packets_total", "mcast_relay_dropped_datagrams_total"} {
				if n := p.metric(t, m, name); n != 0 {
					t.Errorf("%s: %s is %v", name, m, n)
				}
			}
			if n := p.metric(t, "mcast_relay_rtp_duplicate_packets_total", name); (n > 0) != channels[i].s.rtp {
				t.Errorf("%s: %v duplicates", name, n)
			}
		}
		for _, pl := range players {
			pl.close(t)
		}
		for i := range channels {
			group := netip.MustParseAddrPort(channels[i].to).Addr()
			eventually(t, "left", func() bool { return me.Users("eth0", group) == 0 })
		}
	})
}

// The interface goes and comes back while people watch: the page says so, and
// the stream goes on.
func TestLabInterface(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		me, far := l.Local(), l.Host("far")
		l.Switch(me, far)
		src := far.Addr4("eth0")
		asm, ssm := netip.MustParseAddrPort("239.1.1.1:5000"), netip.MustParseAddrPort("232.1.1.1:5000")
		p := startProgram(t, "-i", "eth0", asm.String(), fmt.Sprintf("%v@%v", src, ssm), fmt.Sprintf("%v@232.1.1.3%%eth9:5000", src))
		(&station{each: 5 * time.Millisecond}).from(t, far, src, asm)
		(&station{each: 5 * time.Millisecond}).from(t, far, src, ssm)
		next := (&site{url: p.url}).eventsOf(t)
		states := make(map[string]row)
		await := func(name, state, why string) {
			t.Helper()
			for end := time.Now().Add(looptest.Patience); ; {
				if r := states[name]; r.State == state && strings.Contains(r.Why, why) {
					return
				}
				if time.Now().After(end) {
					t.Fatalf("%s is %+v, not %s, %s\n%s", name, states[name], state, why, p.stderr)
				}
				for _, r := range next().Rows {
					states[strings.TrimSuffix(r.Group, ":5000")] = r
				}
			}
		}
		players := []*player{mustPlay(t, p.url+"/udp/"+asm.String()), mustPlay(t, p.url+"/udp/"+ssm.String())}
		waiting := mustPlay(t, p.url+"/udp/232.1.1.3:5000") // joined before its interface is there
		plays := func(p *player) {
			t.Helper()
			n := p.packets.Load()
			eventually(t, "it plays", func() bool { return p.packets.Load() > n+100*mpegts.PerDatagram })
		}
		for _, pl := range players {
			plays(pl)
		}
		await("239.1.1.1", "live", "")
		await("232.1.1.1", "live", "")
		await("232.1.1.3", "pending", "eth9")
		heard := p.metric(t, "mcast_relay_received_datagrams_total", "")
		for _, same := range []bool{false, true} {
			me.Delete("eth0")
			await("239.1.1.1", "pending", "eth0")
			await("232.1.1.1", "pending", "eth0")
			if n := p.metric(t, "mcast_relay_channel_pending", ""); n != 3 {
				t.Errorf("%v memberships are pending", n)
			}
			me.Recreate("eth0", same)
			for _, pl := range players {
				plays(pl)
			}
			await("239.1.1.1", "live", "")
			await("232.1.1.1", "live", "")
			before := heard
			if heard = p.metric(t, "mcast_relay_received_datagrams_total", ""); heard < before+200 {
				t.Errorf("%v datagrams heard, and %v before", heard, before)
			}
		}
		me.Carrier("eth0", false)
		await("239.1.1.1", "down", "eth0")
		me.Carrier("eth0", true)
		await("239.1.1.1", "live", "")
		for _, pl := range players {
			plays(pl)
		}
		l.Veth(me, "eth9", far, "eth9")
		me.AddAddr("eth9", "10.99.0.1/24")
		await("232.1.1.3", "silent", "")
		far.AddAddr("eth9", "10.99.0.2/24")
		(&station{each: 5 * time.Millisecond}).run(t, func() (io.Writer, func()) {
			s := far.Sender(t, "eth9", src, netip.MustParseAddrPort("232.1.1.3:5000"))
			return sending{s}, func() { s.Close() }
		})
		plays(waiting)
		await("232.1.1.3", "live", "")
		if n := p.metric(t, "mcast_relay_viewers", ""); n != 3 {
			t.Errorf("%v viewers are left of 3", n)
		}
	})
}

// 200 viewers of 8 Mbit/s: nothing is lost, on the way in or out. For a minute
// with MCAST_RELAY_LOAD=1m.
func TestLabViewers(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds, and all processors")
	}
	length := 4 * time.Second
	if s := os.Getenv("MCAST_RELAY_LOAD"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	} else if raceDetector {
		t.Skip("under the race detector viewers are too slow; MCAST_RELAY_LOAD=4s runs it all the same")
	}
	netlab.Run(t, func(l *netlab.Lab) {
		me, far := l.Local(), l.Host("far")
		l.Switch(me, far)
		to := netip.MustParseAddrPort("232.1.1.1:5000")
		p := startProgram(t, "-i", "eth0", fmt.Sprintf("%v@%v", far.Addr4("eth0"), to))
		players := make([]*player, 200)
		for i := range players {
			players[i] = mustPlay(t, p.url+"/udp/"+to.String())
		}
		stuck, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://")) // and one that does not read
		if err != nil {
			t.Fatal(err)
		}
		defer stuck.Close()
		fmt.Fprintf(stuck, "GET /udp/%v HTTP/1.1\r\nHost: relay\r\n\r\n", to)
		const bits = 8_000_000
		s := &station{each: mpegts.PerDatagram * mpegts.Size * 8 * time.Second / bits}
		stop := s.from(t, far, far.Addr4("eth0"), to)
		time.Sleep(length)
		stop()
		sent := s.sent.Load()
		for i, pl := range players {
			eventually(t, fmt.Sprintf("viewer %d has it all", i), func() bool { return pl.packets.Load() >= sent*mpegts.PerDatagram || pl.gaps.Load() > 0 })
			if pl.first.Load() != 0 || pl.packets.Load() != sent*mpegts.PerDatagram {
				t.Errorf("viewer %d has %d packets of %d, from %d on", i, pl.packets.Load(), sent*mpegts.PerDatagram, pl.first.Load())
			}
			pl.close(t)
		}
		if n := p.metric(t, "mcast_relay_received_datagrams_total", ""); n != float64(sent) {
			t.Errorf("%v datagrams received of %d", n, sent)
		}
		for _, m := range []string{"mcast_relay_dropped_datagrams_total", "mcast_relay_ts_lost_packets_total", "mcast_relay_truncated_datagrams_total"} {
			if n := p.metric(t, m, ""); n != 0 {
				t.Errorf("%s is %v", m, n)
			}
		}
		t.Logf("%d datagrams to 200 viewers in %v", sent, length)
	})
}
