package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"example.com/mcast"
)

// ReportCounts are counts, without those that are not known.
type reportCounts struct {
	Datagrams uint64  `json:"datagrams"`
	Bytes     uint64  `json:"bytes"`               // of payload, the header of send included
	Lost      *int64  `json:"lost,omitempty"`      // missing by their numbers
	Late      *int64  `json:"late,omitempty"`      // came after a higher number
	Duplicate *int64  `json:"duplicate,omitempty"` //
	TSLost    *uint64 `json:"ts_lost,omitempty"`   // packets of transport streams missing, at least
}

func (c counts) report() reportCounts {
	r := reportCounts{Datagrams: c.datagrams, Bytes: c.bytes}
	if c.numbers {
		r.Lost, r.Late, r.Duplicate = &c.lost, &c.late, &c.duplicate
	}
	if c.ts {
		r.TSLost = &c.tsLost
	}
	return r
}

// A report is a second, or the summary; with -json it is a line.
type report struct {
	Event   string    `json:"event"` // "second", "summary"
	Time    time.Time `json:"time"`
	Seconds float64   `json:"seconds"` // that it is about
	reportCounts
	Dropped  *uint64        `json:"dropped,omitempty"` // by the system
	Filtered uint64         `json:"filtered"`          // kept out by the filter
	Rate     float64        `json:"datagrams_per_second"`
	Mbit     float64        `json:"mbit_per_second"`
	Sources  []netip.Addr   `json:"sources"`
	Streams  []streamReport `json:"streams,omitempty"` // in the summary, and with -v
}

func newReport(event string, now time.Time, d time.Duration, c counts) report {
	r := report{Event: event, Time: now, Seconds: d.Seconds(), reportCounts: c.report(), Filtered: c.filtered, Sources: []netip.Addr{}}
	if canDrop {
		r.Dropped = &c.dropped
	}
	if r.Seconds > 0 {
		r.Rate = float64(r.Datagrams) / r.Seconds
		r.Mbit = float64(r.Bytes) * 8 / 1e6 / r.Seconds
	}
	return r
}

// A streamReport is what came of one stream.
type streamReport struct {
	Group  string         `json:"group"` // with the interface
	Port   int            `json:"port"`
	Source netip.AddrPort `json:"source"`
	Format string         `json:"format,omitempty"`
	Stream string         `json:"stream,omitempty"` // send's, in hexadecimal
	reportCounts
	Sent   *uint64  `json:"sent,omitempty"` // datagrams, as the sender said at its end
	Jitter *float64 `json:"jitter_seconds,omitempty"`
	TTLMin int      `json:"ttl_min,omitempty"`
	TTLMax int      `json:"ttl_max,omitempty"`
}

func newStreamReport(k streamKey, s *stream, c counts) streamReport {
	r := streamReport{Group: k.group.String(), Port: k.port, Source: k.source, Format: s.Format(), reportCounts: c.report()}
	if k.numbered {
		r.Stream = fmt.Sprintf("%08x", k.id)
	}
	if n, ended := s.Ended(); ended {
		r.Sent = &n
	}
	if j, known := s.Jitter(); known {
		seconds := j.Seconds()
		r.Jitter = &seconds
	}
	if s.ttlMax > 0 {
		r.TTLMin, r.TTLMax = s.ttlMin, s.ttlMax
	}
	return r
}

func (r streamReport) order() []string {
	return []string{r.Group, fmt.Sprintf("%05d", r.Port), r.Source.String(), r.Stream}
}

func sortStreams(rs []streamReport) {
	slices.SortFunc(rs, func(a, b streamReport) int { return slices.Compare(a.order(), b.order()) })
}

// A joinedReport tells what was joined, before anything is received.
type joinedReport struct {
	Event       string             `json:"event"` // "joined"
	Time        time.Time          `json:"time"`
	Memberships []membershipReport `json:"memberships"`
}

type membershipReport struct {
	Group   string       `json:"group"` // with the interface
	Port    int          `json:"port"`
	Mode    string       `json:"mode"` // "INCLUDE", "EXCLUDE"
	Sources []netip.Addr `json:"sources"`
	Pending bool         `json:"pending,omitempty"` // there is no interface for it yet
}

// A newsReport tells what became of a membership or a tunnel, or is a note.
type newsReport struct {
	Event string    `json:"event"` // "membership", "tunnel", "note"
	Time  time.Time `json:"time"`
	Kind  string    `json:"kind,omitempty"` // "lost", "tunnel up", …; a note has none
	Text  string    `json:"text"`
}

// An endedReport tells that a sender has ended a stream.
type endedReport struct {
	Event string    `json:"event"` // "ended"
	Time  time.Time `json:"time"`
	streamReport
}

// A display writes reports, as text or as JSON.
type display struct {
	w             io.Writer
	json, verbose bool

	mu    sync.Mutex
	noted []string
}

// write writes an object with -json, and the text otherwise.
func (d *display) write(v any, text string) {
	if d.json {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err) // the types above can all be marshalled
		}
		text = string(b) + "\n"
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	io.WriteString(d.w, text) // cli.Run knows of errors
}

func (d *display) joined(conns []conn) {
	r := joinedReport{Event: "joined", Time: time.Now()}
	var text strings.Builder
	for _, c := range conns {
		for _, m := range c.Memberships() {
			sources := append([]netip.Addr{}, m.Sources...)
			r.Memberships = append(r.Memberships, membershipReport{m.Group.String(), c.port, m.Mode.String(), sources, m.Pending})
			from := "from " + list(m.Sources)
			switch {
			case m.Mode == mcast.Exclude && len(m.Sources) == 0:
				from = "from any source"
			case m.Mode == mcast.Exclude:
				from = "from any source but " + list(m.Sources)
			}
			pending := ""
			if m.Pending && c.fallback != nil { // through a tunnel each is pending at first
				pending = ", pending: there is no interface for it yet"
			}
			fmt.Fprintf(&text, "joined %s, port %d, %s%s\n", m.Group, c.port, from, pending)
		}
	}
	d.write(r, text.String())
}

// membership tells of what happened to one, or to its interface.
func (d *display) membership(e mcast.Event) {
	now := time.Now()
	d.write(newsReport{"membership", now, e.Kind.String(), e.String()}, fmt.Sprintf("%s %v\n", now.Format(time.TimeOnly), e))
}

// tunnel tells of what happened to one, or because of one.
func (d *display) tunnel(kind, format string, args ...any) {
	now, text := time.Now(), fmt.Sprintf(format, args...)
	d.write(newsReport{"tunnel", now, kind, text}, fmt.Sprintf("%s %s\n", now.Format(time.TimeOnly), text))
}

// notes shows those that were not shown the last time.
func (d *display) notes(texts []string) {
	now := time.Now()
	for _, text := range texts {
		if !slices.Contains(d.noted, text) {
			d.write(newsReport{Event: "note", Time: now, Text: text}, fmt.Sprintf("%s note: %s\n", now.Format(time.TimeOnly), text))
		}
	}
	d.noted = texts
}

func (d *display) ended(s streamReport) {
	now := time.Now()
	d.write(endedReport{"ended", now, s}, fmt.Sprintf("%s stream %s from %v ended: %d sent, %s lost\n", now.Format(time.TimeOnly), s.Stream, s.Source, *s.Sent, number(s.Lost)))
}

func (d *display) second(r report) {
	var text strings.Builder
	from := ""
	if len(r.Sources) > 0 {
		from = "  from " + list(r.Sources)
	}
	fmt.Fprintf(&text, "%s %8.0f datagrams/s %9.3f Mbit/s  lost %s%s  dropped %s  filtered %d%s\n",
		r.Time.Format(time.TimeOnly), r.Rate, r.Mbit, number(r.Lost), r.tsLost("  TS lost %d"), number(r.Dropped), r.Filtered, from)
	for i, s := range r.Streams {
		if i == 20 {
			fmt.Fprintf(&text, "  and %d more\n", len(r.Streams)-i)
			break
		}
		fmt.Fprintf(&text, "  %s\n", s)
	}
	d.write(r, text.String())
}

func (d *display) summary(r report) {
	var text strings.Builder
	fmt.Fprintf(&text, "%d datagrams, %d bytes in %.1f s; %s; %s dropped by the system, %d by the filter\n",
		r.Datagrams, r.Bytes, r.Seconds, r.missing(), number(r.Dropped), r.Filtered)
	for _, s := range r.Streams {
		fmt.Fprintf(&text, "  %s\n", s)
	}
	d.write(r, text.String())
}

// missing is "3 lost, 1 late, 0 duplicate", or "- lost" where nothing has
// numbers.
func (c reportCounts) missing() string {
	s := number(c.Lost) + " lost"
	if c.Late != nil {
		s += fmt.Sprintf(", %d late, %d duplicate", *c.Late, *c.Duplicate)
	}
	return s + c.tsLost(", %d TS packets lost")
}

func (c reportCounts) tsLost(format string) string {
	if c.TSLost == nil {
		return ""
	}
	return fmt.Sprintf(format, *c.TSLost)
}

// String is a stream in a line.
func (r streamReport) String() string {
	what := map[string]string{"": "not numbered", "numbered": "stream " + r.Stream, "rtp": "RTP", "rtp/ts": "RTP with a transport stream", "ts": "transport stream"}[r.Format]
	s := fmt.Sprintf("%s port %d from %v: %d datagrams, %d bytes; %s, %s", r.Group, r.Port, r.Source, r.Datagrams, r.Bytes, what, r.missing())
	if r.Sent != nil {
		s += fmt.Sprintf("; %d were sent", *r.Sent)
	}
	if r.Jitter != nil {
		s += fmt.Sprintf(", jitter %.2f ms", *r.Jitter*1e3)
	}
	switch {
	case r.TTLMax == 0:
	case r.TTLMin == r.TTLMax:
		s += fmt.Sprintf(", TTL %d", r.TTLMax)
	default:
		s += fmt.Sprintf(", TTL %d to %d", r.TTLMin, r.TTLMax)
	}
	return s
}

// number is a number, or "-" if it is not known.
func number[T int64 | uint64](n *T) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}

// list lists the first addresses.
func list(as []netip.Addr) string {
	var b strings.Builder
	for i, a := range as {
		if i == 4 {
			return b.String() + " and " + strconv.Itoa(len(as)-i) + " more"
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(a.String())
	}
	return b.String()
}
