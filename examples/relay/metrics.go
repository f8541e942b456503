package main

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// serveMetrics writes what Prometheus reads: its text format 0.0.4.
func (r *relay) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	var b strings.Builder
	r.writeMetrics(&b)
	io.WriteString(w, b.String())
}

// A metric is one of each channel's.
type metric struct {
	name, kind, help string
	value            func(s *snapshot) float64
}

func counter(name, help string, value func(t *totals) uint64) metric {
	return metric{name, "counter", help, func(s *snapshot) float64 { return float64(value(&s.totals)) }}
}

var channelMetrics = []metric{
	{"mcast_relay_channel_viewers", "gauge", "Viewers of the channel.", func(s *snapshot) float64 { return float64(s.viewers) }},
	{"mcast_relay_channel_joined", "gauge", "Whether the channel is joined.", func(s *snapshot) float64 { return truth(s.joined) }},
	{"mcast_relay_channel_pending", "gauge", "Whether the channel is joined, but its membership waits for an interface.", func(s *snapshot) float64 { return truth(s.joined && s.status.membership.Pending) }},
	counter("mcast_relay_received_datagrams_total", "Datagrams received.", func(t *totals) uint64 { return t.datagrams }),
	counter("mcast_relay_received_bytes_total", "Payload of the datagrams received.", func(t *totals) uint64 { return t.bytes }),
	counter("mcast_relay_filtered_datagrams_total", "Datagrams of sources that are not the channel's.", func(t *totals) uint64 { return t.filtered }),
	counter("mcast_relay_other_sender_datagrams_total", "Datagrams left out because another sender is followed.", func(t *totals) uint64 { return t.others }),
	counter("mcast_relay_dropped_datagrams_total", "Datagrams dropped by the kernel, for want of buffer or because of a wrong checksum.", func(t *totals) uint64 { return t.dropped }),
	counter("mcast_relay_truncated_datagrams_total", "Datagrams that were longer than expected, and cut.", func(t *totals) uint64 { return t.truncated }),
	counter("mcast_relay_rtp_lost_packets_total", "RTP packets missing by their sequence numbers.", func(t *totals) uint64 { return t.lost }),
	counter("mcast_relay_rtp_late_packets_total", "RTP packets that came too late to be put in order.", func(t *totals) uint64 { return t.late }),
	counter("mcast_relay_rtp_duplicate_packets_total", "RTP packets that came more than once.", func(t *totals) uint64 { return t.duplicate }),
	counter("mcast_relay_ts_lost_packets_total", "TS packets missing by their continuity counters, at the least.", func(t *totals) uint64 { return t.lostTS }),
	{"mcast_relay_last_received_timestamp_seconds", "gauge", "When the last datagram was received; 0 if none was.", func(s *snapshot) float64 { return unix(s.totals.last) }},
	{"mcast_relay_receive_buffer_bytes", "gauge", "Receive buffer that the system granted; 0 if the channel is not joined.", func(s *snapshot) float64 { return float64(s.status.stats.ReadBuffer) }},
}

func (r *relay) writeMetrics(w io.Writer) {
	head := func(name, kind, help string) {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, escapeHelp.Replace(help), name, kind)
	}
	one := func(name, kind, help string, v float64) {
		head(name, kind, help)
		fmt.Fprintf(w, "%s %s\n", name, number(v))
	}
	n := &r.counts
	r.mu.Lock()
	joined := r.joined
	r.mu.Unlock()
	one("process_start_time_seconds", "gauge", "When the program began.", unix(r.started))
	one("mcast_relay_viewers", "gauge", "Viewers of all channels.", float64(n.viewers.Load()))
	one("mcast_relay_viewers_limit", "gauge", "Viewers that there may be.", float64(r.options.viewers))
	one("mcast_relay_channels_joined", "gauge", "Channels that are joined.", float64(joined))
	one("mcast_relay_channels_joined_limit", "gauge", "Channels that may be joined.", float64(r.options.channels))
	one("mcast_relay_pages", "gauge", "Pages that are open.", float64(n.pages.Load()))
	one("mcast_relay_viewers_started_total", "counter", "Viewers that were served.", float64(n.started.Load()))
	one("mcast_relay_viewers_dropped_total", "counter", "Viewers that were dropped because they took nothing.", float64(n.dropped.Load()))
	one("mcast_relay_sent_bytes_total", "counter", "Bytes sent to viewers.", float64(n.sent.Load()))
	one("mcast_relay_skipped_bytes_total", "counter", "Bytes not sent to viewers that were too slow.", float64(n.skipped.Load()))
	head("mcast_relay_refused_requests_total", "counter", "Requests for a stream that were refused, by reason.")
	for _, x := range []struct {
		reason string
		n      uint64
	}{
		{"bad_request", n.bad.Load()},
		{"channel_limit", n.busyChannels.Load()},
		{"forbidden", n.forbidden.Load()},
		{"join_failed", n.failed.Load()},
		{"viewer_limit", n.busyViewers.Load()},
	} {
		fmt.Fprintf(w, "mcast_relay_refused_requests_total{reason=\"%s\"} %d\n", x.reason, x.n)
	}
	channels := r.all()
	shots := make([]snapshot, len(channels))
	labels := make([]string, len(channels))
	for i, c := range channels {
		shots[i] = c.snapshot()
		labels[i] = fmt.Sprintf(`{channel="%s",name="%s"}`, label(c.ch.String()), label(c.name))
	}
	for _, m := range channelMetrics {
		head(m.name, m.kind, m.help)
		for i := range channels {
			fmt.Fprintf(w, "%s%s %s\n", m.name, labels[i], number(m.value(&shots[i])))
		}
	}
}

var (
	escapeHelp  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	escapeLabel = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

func label(s string) string { return escapeLabel.Replace(strings.ToValidUTF8(s, "\ufffd")) }

func number(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func unix(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
