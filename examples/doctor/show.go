package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

// show writes a line for each finding, the problems last, so that they are
// what one sees.
func show(w io.Writer, f *facts, findings []finding) {
	on := ""
	if f.Link != nil {
		on = " on " + f.Link.Name
	}
	port := ""
	if f.Port != 0 {
		port = ", port " + strconv.Itoa(int(f.Port))
	}
	fmt.Fprintf(w, "%s%s%s\n", f.channel(), port, on)
	for _, s := range []severity{ok, note, problem} {
		for _, x := range findings {
			if x.Severity != s {
				continue
			}
			fmt.Fprintf(w, "%-8s %s\n", s, x.Text)
			for _, command := range x.Fix {
				fmt.Fprintf(w, "%-8s     %s\n", "", command)
			}
		}
	}
	for _, u := range f.Unseen {
		fmt.Fprintf(w, "%-8s %s: that takes %s\n", "unseen", u.What, u.Needs)
	}
}

func showJSON(w io.Writer, f *facts, findings []finding) {
	b, err := json.MarshalIndent(struct {
		Heard    bool      `json:"heard"`
		Findings []finding `json:"findings"`
		Facts    *facts    `json:"facts"`
	}{f.Heard.Received > 0, findings, f}, "", "  ")
	if err != nil {
		panic(err) // the types can all be marshalled
	}
	w.Write(append(b, '\n'))
}

// list lists the first few, each once.
func list[T fmt.Stringer](as []T) string {
	var seen []string
	more := 0
	for _, a := range as {
		s := a.String()
		switch {
		case strings.Contains("\n"+strings.Join(seen, "\n")+"\n", "\n"+s+"\n"):
		case len(seen) == 4:
			more++
		default:
			seen = append(seen, s)
		}
	}
	s := strings.Join(seen, ", ")
	if more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}

func sources(fs []flow) (as []netip.Addr) {
	for _, x := range fs {
		as = append(as, x.Source)
	}
	return as
}

func heardFrom(h heard) (as []netip.Addr) {
	for _, s := range h.Sources {
		as = append(as, s.Source)
	}
	return as
}

// count is a number of things.
func count[T int | int64 | uint64](n T, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
