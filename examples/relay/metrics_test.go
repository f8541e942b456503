package main

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// parseMetrics reads Prometheus' text format as its documentation has it, and
// complains about what its conventions do not allow.
func parseMetrics(t *testing.T, text string) map[string]float64 {
	t.Helper()
	var (
		comment = regexp.MustCompile(`^# (HELP|TYPE) ([a-z_][a-z0-9_]*) (.+)$`)
		sample  = regexp.MustCompile(`^([a-z_][a-z0-9_]*)(\{[a-z]+="(?:[^"\\\n]|\\["\\n])*"(?:,[a-z]+="(?:[^"\\\n]|\\["\\n])*")*\})? (\S+)$`)
	)
	values := make(map[string]float64)
	kinds, helped := make(map[string]string), make(map[string]bool)
	family := ""
	if !strings.HasSuffix(text, "\n") {
		t.Error("the last line has no end")
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if m := comment.FindStringSubmatch(line); m != nil {
			switch {
			case m[1] == "HELP" && (helped[m[2]] || !strings.HasSuffix(m[3], ".")):
				t.Errorf("%s", line)
			case m[1] == "HELP":
				helped[m[2]] = true
			case kinds[m[2]] != "" || !helped[m[2]] || m[3] != "counter" && m[3] != "gauge":
				t.Errorf("%s", line)
			default:
				kinds[m[2]], family = m[3], m[2]
			}
			continue
		}
		m := sample.FindStringSubmatch(line)
		if m == nil || m[1] != family {
			t.Errorf("a line that is none, or not in its family: %s", line)
			continue
		}
		v, err := strconv.ParseFloat(m[3], 64)
		if _, twice := values[m[1]+m[2]]; err != nil || twice {
			t.Errorf("%s: %v", line, err)
		}
		values[m[1]+m[2]] = v
		// https://prometheus.io/docs/practices/naming/
		if counter := kinds[family] == "counter"; counter != strings.HasSuffix(family, "_total") {
			t.Errorf("%s is a %s", family, kinds[family])
		}
		if !strings.HasPrefix(family, "mcast_relay_") && !strings.HasPrefix(family, "process_") {
			t.Errorf("%s has no prefix", family)
		}
		if regexp.MustCompile(`milli|kilo|mega|mbit|_ms\b|_kb\b`).MatchString(family) {
			t.Errorf("%s has no base unit", family)
		}
	}
	return values
}

func TestMetrics(t *testing.T) {
	two := entry{ch: channelOf(t, "10.0.0.1@232.1.1.1%eth0:5000"), scheme: "udp", name: "Two \"quoted\", \\ and\nbroken \xff"}
	s := newSite(t, options{given: []entry{two}}, "239.1.1.1:5000")
	s.get(t, "/udp/239.1.1.1:5000")
	f := s.fake(t, "239.1.1.1:5000")
	for _, n := range []int{1, 2, 2, 5} {
		f.in <- rtpPacket(7, n, tsPacket(1, n))
	}
	f.in <- rtpPacket(7, 300, tsPacket(1, 6)) // so far ahead that nobody waits
	s.text(t, "/udp/239.9.9.9:5000")
	eventually(t, "sent", func() bool { return s.counts.sent.Load() == 4*188 })
	code, h, body := s.text(t, "/metrics")
	if code != 200 || h.Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8" {
		t.Errorf("%d %v", code, h)
	}
	got := parseMetrics(t, body)
	one, other := `{channel="239.1.1.1:5000",name="239.1.1.1:5000"}`, `{channel="10.0.0.1@232.1.1.1%eth0:5000",name="Two \"quoted\", \\ and\nbroken `+"\ufffd"+`"}`
	for name, want := range map[string]float64{
		"mcast_relay_viewers":                                       1,
		"mcast_relay_viewers_limit":                                 100,
		"mcast_relay_channels_joined":                               1,
		"mcast_relay_viewers_started_total":                         1,
		"mcast_relay_viewers_dropped_total":                         0,
		"mcast_relay_sent_bytes_total":                              4 * 188,
		"mcast_relay_skipped_bytes_total":                           0,
		`mcast_relay_refused_requests_total{reason="forbidden"}`:    1,
		`mcast_relay_refused_requests_total{reason="viewer_limit"}`: 0,
		"mcast_relay_channel_viewers" + one:                         1,
		"mcast_relay_channel_joined" + one:                          1,
		"mcast_relay_channel_joined" + other:                        0,
		"mcast_relay_channel_pending" + one:                         0,
		"mcast_relay_received_datagrams_total" + one:                5,
		"mcast_relay_received_datagrams_total" + other:              0,
		"mcast_relay_received_bytes_total" + one:                    5 * 200,
		"mcast_relay_dropped_datagrams_total" + one:                 3,
		"mcast_relay_rtp_lost_packets_total" + one:                  2 + 294,
		"mcast_relay_rtp_duplicate_packets_total" + one:             1,
		"mcast_relay_ts_lost_packets_total" + one:                   2,
		"mcast_relay_receive_buffer_bytes" + one:                    4096,
		"mcast_relay_receive_buffer_bytes" + other:                  0,
		"mcast_relay_last_received_timestamp_seconds" + other:       0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, want %v", name, v, want)
		}
	}
	if got["mcast_relay_last_received_timestamp_seconds"+one] < got["process_start_time_seconds"] {
		t.Error("heard before the program began")
	}
	// Counters go on after a channel was left.
	c := s.find[channelOf(t, "239.1.1.1:5000")]
	c.mu.Lock()
	c.leave()
	c.mu.Unlock()
	_, _, body = s.text(t, "/metrics")
	got = parseMetrics(t, body)
	if got["mcast_relay_received_datagrams_total"+one] != 5 || got["mcast_relay_channel_joined"+one] != 0 {
		t.Error(body)
	}
}
