//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.com/mcast/examples/internal/cli"
	"example.com/mcast/examples/internal/looptest"
	"example.com/mcast/internal/netlab"
)

// TestPeers: what other programs make of what is sent.
func TestPeers(t *testing.T) {
	netlab.Run(t, func(l *netlab.Lab) {
		me, far := l.Local(), l.Host("far")
		l.Switch(me, far)
		src := me.Addr4("eth0").String()
		dir := t.TempDir()
		film := filepath.Join(dir, "film.ts")
		makeFilm := func(t *testing.T) {
			t.Helper()
			looptest.Peer(t, "ffmpeg")
			if _, err := os.Stat(film); err != nil {
				far.Run("ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", "testsrc=size=320x240:rate=25", "-t", "3", "-c:v", "mpeg2video", "-b:v", "2M", "-f", "mpegts", film)
			}
		}
		// keepSending runs send again and again until the test ends.
		keepSending := func(t *testing.T, args ...string) {
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			out := looptest.NewBuffer()
			go func() {
				defer close(ended)
				for ctx.Err() == nil {
					if code := cli.Run(ctx, "send", run, append([]string{"-from", src, "-ttl", "4"}, args...), nil, out, out); code != 0 {
						t.Errorf("exit code %d: %s", code, out)
						return
					}
				}
			}()
			t.Cleanup(func() { cancel(); <-ended })
		}

		for _, scheme := range []string{"udp", "rtp"} {
			l.Run("ffmpeg "+scheme, func(t *testing.T) {
				makeFilm(t)
				keepSending(t, "-ts", film, scheme+"://232.1.2.3:5000")
				got := filepath.Join(dir, scheme+".ts")
				out := far.Run("timeout", "50", "ffmpeg", "-loglevel", "error", "-i",
					fmt.Sprintf("%s://232.1.2.3:5000?sources=%s&localaddr=%v", scheme, src, far.Addr4("eth0")), "-t", "1", "-c", "copy", "-f", "mpegts", "-y", got)
				if strings.TrimSpace(out) != "" {
					t.Error(out)
				}
				if s := far.Run("ffprobe", "-loglevel", "error", "-show_entries", "stream=codec_name,width", "-of", "csv=p=0", got); !strings.Contains(s, "mpeg2video,320") {
					t.Errorf("what arrived is %q", s)
				}
			})
		}
		l.Run("tshark", func(t *testing.T) {
			looptest.Peer(t, "tshark")
			looptest.Peer(t, "socat") // which joins
			makeFilm(t)
			keepSending(t, "-ts", film, "rtp://239.1.2.3:5000")
			far.IP("route", "add", "224.0.0.0/4", "dev", "eth0")
			join := far.Command("socat", "-u", "UDP4-RECV:5000,reuseaddr,ip-add-membership=239.1.2.3:eth0", "-")
			far.Start(join)
			s := far.Run("timeout", "50", "tshark", "-i", "eth0", "-c", "20", "-f", "udp port 5000", "-d", "udp.port==5000,rtp", "-T", "fields", "-e", "rtp.version", "-e", "rtp.p_type", "-e", "mp2t.pid", "-e", "ip.ttl")
			lines := strings.Split(strings.TrimSpace(s), "\n")
			for _, line := range lines {
				f := strings.Split(line, "\t")
				if len(f) != 4 || f[0] != "2" || f[1] != "33" || len(strings.Split(f[2], ",")) != 7 || f[3] != "4" {
					t.Errorf("a packet is %q", line)
				}
			}
			if len(lines) != 20 {
				t.Errorf("%d packets", len(lines))
			}
		})
		l.Run("socat", func(t *testing.T) {
			looptest.Peer(t, "socat")
			keepSending(t, "-raw", "-bitrate", "1M", "-size", "100", "239.1.2.3:5000")
			s := far.Run("timeout", "50", "sh", "-c", "socat -u UDP4-RECV:5000,reuseaddr,ip-add-membership=239.1.2.3:eth0 - | head -c 300 | wc -c")
			if strings.TrimSpace(s) != "300" {
				t.Errorf("%q bytes", s)
			}
		})
	})
}
