//go:build linux

package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.com/mcast/examples/internal/looptest"
	"example.com/mcast/examples/internal/mpegts"
	"example.com/mcast/internal/netlab"
)

// TestPeers: what other programs send.
func TestPeers(t *testing.T) {
	netlab.Run(t, func(l *netlab.Lab) {
		me, far := l.Local(), l.Host("far")
		l.Switch(me, far)
		src, to := far.Addr4("eth0"), netip.MustParseAddrPort("232.1.2.3:5000")
		at := fmt.Sprintf("%v@%v", src, to)
		far.IP("route", "add", "224.0.0.0/4", "dev", "eth0")
		film := []string{"-hide_banner", "-loglevel", "error", "-re", "-f", "lavfi", "-i", "testsrc=size=320x240:rate=25", "-t", "60", "-c:v", "mpeg2video", "-b:v", "2M"}

		for _, tt := range []struct{ muxer, url, format string }{
			{"mpegts", "udp://%v?localaddr=%v&pkt_size=1316&ttl=4", "ts"},
			{"rtp_mpegts", "rtp://%v?localaddr=%v&pkt_size=1328&ttl=4", "rtp/ts"},
			{"rtp", "rtp://%v?localaddr=%v&pkt_size=1328&ttl=4", "rtp"},
		} {
			l.Run("ffmpeg "+tt.muxer, func(t *testing.T) {
				looptest.Peer(t, "ffmpeg")
				file := filepath.Join(t.TempDir(), "film.ts")
				args := []string{"-json", "-v", "-n", "100", "-i", "eth0", "-o", file, at}
				if tt.format != "ts" {
					args = append(args, "-rtp")
				}
				p := launch(t, args...)
				far.Start(far.Command("ffmpeg", append(film, "-f", tt.muxer, fmt.Sprintf(tt.url, to, src))...))
				p.end(t)
				streams := parseJSON(t, p.stdout.String()).summary.Streams
				if len(streams) != 1 {
					t.Fatal(p.stdout)
				}
				s := streams[0]
				if s.Format != tt.format || s.Jitter == nil || s.TTLMin != 4 || number(s.TSLost) != map[bool]string{true: "-", false: "0"}[tt.format == "rtp"] || number(s.Lost) != map[bool]string{true: "-", false: "0"}[tt.format == "ts"] {
					t.Errorf("%s", p.stdout)
				}
				if tt.format == "rtp" {
					return
				}
				b, err := os.ReadFile(file)
				var c mpegts.Counter
				if c.Count(b); err != nil || !mpegts.Valid(b) || c.Discontinuities != 0 {
					t.Errorf("%d bytes were written, %+v, %v", len(b), c, err)
				}
			})
		}
		l.Run("iperf", func(t *testing.T) {
			looptest.Peer(t, "iperf")
			p := launch(t, "-json", "-n", "50", "-i", "eth0", at)
			far.Start(far.Command("iperf", "-c", to.Addr().String(), "-p", "5000", "-u", "-B", src.String(), "-T", "4", "-t", "60", "-b", "2M"))
			p.end(t)
			if x := parseJSON(t, p.stdout.String()).summary; x.Datagrams != 50 || x.Lost != nil || x.TSLost != nil {
				t.Errorf("%s", p.stdout)
			}
		})
		l.Run("socat", func(t *testing.T) {
			looptest.Peer(t, "socat")
			p := launch(t, "-n", "1", "-o", "-", "-i", "eth0", at)
			cmd := far.Command("socat", "-u", "-", fmt.Sprintf("UDP4-DATAGRAM:%v,bind=%v,ip-multicast-if=%v,ip-multicast-ttl=4", to, src, src))
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stdin = r
			far.Start(cmd)
			r.Close()
			defer w.Close()
			for ended := false; !ended; { // until the switch knows who has joined
				w.WriteString("hello")
				select {
				case code := <-p.code:
					p.code <- code
					ended = true
				case <-time.After(20 * time.Millisecond):
				}
			}
			p.end(t)
			if s := p.stdout.String(); !strings.HasPrefix(s, "hello") {
				t.Errorf("%q", s)
			}
		})
	})
}
