package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"example.com/mcast"
)

// A report is a second, or the summary; with -json it is a line.
type report struct {
	Event   string    `json:"event"` // "second", "summary"
	Time    time.Time `json:"time"`
	Seconds float64   `json:"seconds"` // that it is about
	counts
	Rate    float64        `json:"datagrams_per_second"`
	Mbit    float64        `json:"mbit_per_second"`
	Sources []netip.Addr   `json:"sources"`
	Streams []streamReport `json:"streams,omitempty"` // in the summary
}

func (r *report) rates(d time.Duration) {
	r.Seconds = d.Seconds()
	if r.Seconds > 0 {
		r.Rate = float64(r.Datagrams) / r.Seconds
		r.Mbit = float64(r.Bytes) * 8 / 1e6 / r.Seconds
	}
	r.Sources = []netip.Addr{} // [] in JSON
}

// A streamReport is what came of one stream.
type streamReport struct {
	Group     string         `json:"group"` // with the interface
	Port      int            `json:"port"`
	Source    netip.AddrPort `json:"source"`
	Stream    string         `json:"stream,omitempty"` // send's, in hexadecimal
	Datagrams uint64         `json:"datagrams"`
	Bytes     uint64         `json:"bytes"`
	Lost      uint64         `json:"lost"`
	Late      uint64         `json:"late"`
	Duplicate uint64         `json:"duplicate"`
}

func newStreamReport(k streamKey, s *stream) streamReport {
	r := streamReport{
		Group: k.group.String(), Port: k.port, Source: k.source,
		Datagrams: s.datagrams, Bytes: s.bytes, Lost: s.Lost, Late: s.Late, Duplicate: s.Duplicate,
	}
	if k.numbered {
		r.Stream = fmt.Sprintf("%08x", k.id)
	}
	return r
}

func (r streamReport) order() []string {
	return []string{r.Group, fmt.Sprintf("%05d", r.Port), r.Source.String(), r.Stream}
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
}

// A display writes reports, as text or as JSON.
type display struct {
	w    io.Writer
	json bool
}

func (d display) object(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // the types above can all be marshalled
	}
	d.w.Write(append(b, '\n'))
}

func (d display) joined(conns []conn) {
	r := joinedReport{Event: "joined", Time: time.Now()}
	for _, c := range conns {
		for _, m := range c.Memberships() {
			sources := append([]netip.Addr{}, m.Sources...)
			r.Memberships = append(r.Memberships, membershipReport{m.Group.String(), c.port, m.Mode.String(), sources})
		}
	}
	if d.json {
		d.object(r)
		return
	}
	for _, m := range r.Memberships {
		from := "from " + list(m.Sources)
		switch {
		case m.Mode == mcast.Exclude.String() && len(m.Sources) == 0:
			from = "from any source"
		case m.Mode == mcast.Exclude.String():
			from = "from any source but " + list(m.Sources)
		}
		fmt.Fprintf(d.w, "joined %s, port %d, %s\n", m.Group, m.Port, from)
	}
}

func (d display) second(r report) {
	if d.json {
		d.object(r)
		return
	}
	from := ""
	if len(r.Sources) > 0 {
		from = "  from " + list(r.Sources)
	}
	fmt.Fprintf(d.w, "%s %8.0f datagrams/s %9.3f Mbit/s  lost %d  dropped %d  filtered %d%s\n",
		r.Time.Format(time.TimeOnly), r.Rate, r.Mbit, r.Lost, r.Dropped, r.Filtered, from)
}

func (d display) summary(r report) {
	if d.json {
		d.object(r)
		return
	}
	fmt.Fprintf(d.w, "%d datagrams, %d bytes in %.1f s; %d lost, %d late, %d duplicate; %d dropped by the system, %d by the filter\n",
		r.Datagrams, r.Bytes, r.Seconds, r.Lost, r.Late, r.Duplicate, r.Dropped, r.Filtered)
	for _, s := range r.Streams {
		numbers := "not numbered"
		if s.Stream != "" {
			numbers = fmt.Sprintf("stream %s, %d lost, %d late, %d duplicate", s.Stream, s.Lost, s.Late, s.Duplicate)
		}
		fmt.Fprintf(d.w, "  %s port %d from %v: %d datagrams, %d bytes; %s\n", s.Group, s.Port, s.Source, s.Datagrams, s.Bytes, numbers)
	}
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
