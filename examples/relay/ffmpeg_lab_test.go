//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"example.com/mcast/examples/internal/looptest"
	"example.com/mcast/internal/netlab"
)

// What ffmpeg sends, ffprobe and ffmpeg read from the relay: any source and one
// source, raw and RTP.
func TestLabFFmpeg(t *testing.T) {
	t.Parallel()
	ffmpeg, ffprobe := looptest.Peer(t, "ffmpeg"), looptest.Peer(t, "ffprobe")
	netlab.Run(t, func(l *netlab.Lab) {
		me, far := l.Local(), l.Host("far")
		l.Switch(me, far)
		far.IP("route", "add", "224.0.0.0/4", "dev", "eth0")
		src := far.Addr4("eth0")
		channels := []struct{ target, path, format, to string }{
			{"udp://@239.1.1.1:5000", "/udp/239.1.1.1:5000", "mpegts", "udp://239.1.1.1:5000?pkt_size=1316&localaddr=%v"},
			{"udp://%v@232.1.1.1:5000", "/udp/%v@232.1.1.1:5000", "mpegts", "udp://232.1.1.1:5000?pkt_size=1316&localaddr=%v"},
			{"rtp://@239.1.1.2:5004", "/rtp/239.1.1.2:5004", "rtp_mpegts", "rtp://239.1.1.2:5004?pkt_size=1328&localaddr=%v"},
			{"rtp://%v@232.1.1.2:5004", "/rtp/%v@232.1.1.2:5004", "rtp_mpegts", "rtp://232.1.1.2:5004?pkt_size=1328&localaddr=%v"},
		}
		with := func(s string) string { return strings.Replace(s, "%v", src.String(), 1) }
		args := []string{"-i", "eth0"}
		for _, c := range channels {
			args = append(args, with(c.target))
		}
		p := startProgram(t, args...)
		// One picture, encoded once, goes to all: four encoders would be slow.
		send := []string{
			"-nostdin", "-loglevel", "error", "-re", "-f", "lavfi", "-i", "testsrc=size=320x180:rate=10", "-f", "lavfi", "-i", "sine=frequency=440",
			"-map", "0:v", "-map", "1:a", "-c:v", "mpeg2video", "-g", "5", "-b:v", "600k", "-c:a", "mp2", "-f", "tee",
		}
		var outputs []string
		for _, c := range channels {
			outputs = append(outputs, fmt.Sprintf("[f=%s]%s", c.format, with(c.to)))
		}
		var sender *exec.Cmd
		errs := looptest.NewBuffer()
		far.Do(func() { // on the thread of its host
			sender = exec.Command(ffmpeg, append(send, strings.Join(outputs, "|"))...)
			sender.Stderr = errs
			if err := sender.Start(); err != nil {
				t.Fatal(err)
			}
		})
		t.Cleanup(func() { sender.Process.Kill(); sender.Wait() })
		ctx, cancel := context.WithTimeout(t.Context(), looptest.Patience)
		defer cancel()
		for _, c := range channels {
			l.Run(strings.TrimPrefix(with(c.path), "/"), func(t *testing.T) {
				url := p.url + with(c.path)
				out, err := exec.CommandContext(ctx, ffprobe, "-v", "error", "-analyzeduration", "2M", "-of", "json", "-show_entries", "format=format_name:stream=codec_name,width", url).CombinedOutput()
				var found struct {
					Streams []struct {
						Codec string `json:"codec_name"`
						Width int
					}
					Format struct {
						Name string `json:"format_name"`
					}
				}
				at := bytes.IndexByte(out, '{') // before it are remarks about a stream that began in the middle
				if err != nil || at < 0 || json.Unmarshal(out[at:], &found) != nil {
					t.Fatalf("ffprobe: %v\n%s\nffmpeg: %s\nrelay: %s", err, out, errs, p.stderr)
				}
				if found.Format.Name != "mpegts" || len(found.Streams) != 2 || found.Streams[0].Codec != "mpeg2video" || found.Streams[0].Width != 320 || found.Streams[1].Codec != "mp2" {
					t.Errorf("ffprobe found %s", out)
				}
				out, err = exec.CommandContext(ctx, ffmpeg, "-nostdin", "-v", "error", "-analyzeduration", "2M", "-i", url, "-map", "0:v", "-frames:v", "20", "-f", "framecrc", "-").Output()
				if frames := bytes.Count(out, []byte("\n0, ")); err != nil || frames != 20 {
					t.Errorf("%d frames, %v", frames, err)
				}
			})
		}
		for _, m := range []string{"mcast_relay_rtp_lost_packets_total", "mcast_relay_ts_lost_packets_total", "mcast_relay_other_sender_datagrams_total"} {
			if n := p.metric(t, m, ""); n != 0 {
				t.Errorf("%s is %v", m, n)
			}
		}
		if n := p.metric(t, "mcast_relay_received_datagrams_total", ""); n == 0 {
			t.Error("nothing was received")
		}
	})
}
