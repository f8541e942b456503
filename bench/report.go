//go:build linux && cgo

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// A report collects what the sections found out.
type report struct {
	tables  []*table // not printed yet
	notes   []string
	targets *table
	summary *table            // what the root's README has
	written map[string]string // the tables of each section, as they were printed
	noisy   bool

	// For plots.
	latencies []series
	curves    []curve
}

func newReport() *report {
	return &report{
		targets: newTable("Targets", "ratio or value", "measured", "target", "met"),
		summary: newTable("", "what", "measured"),
		written: make(map[string]string),
	}
}

// addPoint adds a point to the curve of that name.
func (r *report) addPoint(name string, at, value float64) {
	i := slices.IndexFunc(r.curves, func(c curve) bool { return c.name == name })
	if i < 0 {
		i = len(r.curves)
		r.curves = append(r.curves, curve{name: name})
	}
	c := &r.curves[i]
	c.at, c.value = append(c.at, at), append(c.value, value)
}

// headline adds a line for those who want to know the most important only.
func (r *report) headline(what, value string) { r.summary.row(what, value) }

// table adds a table; the first column is the name of the line.
func (r *report) table(title string, columns ...string) *table {
	t := newTable(title, columns...)
	r.tables = append(r.tables, t)
	return t
}

// note adds a sentence at the end.
func (r *report) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

func (r *report) target(what string, value, target float64, relation string, met bool) {
	r.targets.row(what, fmt.Sprintf("%.2f", value), fmt.Sprintf("%s %.2f", relation, target), yes(met))
}

// atMost adds a target.
func (r *report) atMost(what string, value, most float64) {
	r.target(what, value, most, "≤", value <= most+0.005) // what is printed as equal is equal
}

// atMostBeside and atLeastBeside add a target that C may not reach either.
func (r *report) atMostBeside(what string, value, most, c float64) {
	r.beside(what, value, c, fmt.Sprintf("≤ %.2f", most), value <= most+0.005, c <= most+0.005)
}

func (r *report) atLeastBeside(what string, value, least, c float64) {
	r.beside(what, value, c, fmt.Sprintf("≥ %.2f", least), value >= least-0.005, c >= least-0.005)
}

func (r *report) beside(what string, value, c float64, target string, met, metByC bool) {
	m := yes(met)
	if !met && !metByC {
		m += ", nor by C"
	}
	r.targets.row(what, fmt.Sprintf("%.2f; C %.2f", value, c), target, m)
}

// null adds a comparison of a thing with itself.
func (r *report) null(what string, value float64) {
	quiet := value > 0.975 && value < 1.025
	met := yes(quiet)
	if !quiet {
		r.noisy = true
		met = "TOO NOISY"
	}
	r.targets.row(what, fmt.Sprintf("%.2f", value), "1.00 ± 0.02", met)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "NO"
}

// print prints the tables of a section.
func (r *report) print(section string, w io.Writer) {
	var b strings.Builder
	for _, t := range r.tables {
		t.print(&b)
	}
	r.tables = nil
	if b.Len() > 0 {
		r.written[section] = b.String()
	}
	io.WriteString(w, b.String())
}

func (r *report) printTargets(w io.Writer) {
	var b strings.Builder
	r.summary.print(&b)
	r.written["summary"] = b.String()
	b.Reset()
	r.targets.print(&b)
	if r.noisy {
		r.note("The machine was too noisy to tell: C beside itself was not 1.00 ± 0.02. Run it again when nothing else runs.")
	}
	for _, n := range r.notes {
		fmt.Fprintf(&b, "\n%s\n", n)
	}
	r.written["targets"] = b.String()
	io.WriteString(w, b.String())
}

// A table is printed as Markdown that is aligned in plain text too.
type table struct {
	title string
	head  []string
	rows  [][]string
}

func newTable(title string, columns ...string) *table { return &table{title: title, head: columns} }

func (t *table) columns(names ...string) { t.head = append(t.head, names...) }
func (t *table) row(cells ...string)     { t.rows = append(t.rows, cells) }

func (t *table) print(w io.Writer) {
	if len(t.rows) == 0 {
		return
	}
	width := make([]int, len(t.head))
	for _, row := range append([][]string{t.head}, t.rows...) {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	line := func(row []string) {
		for i := range t.head {
			cell := ""
			if i < len(row) {
				cell = row[i]
			}
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			if i == 0 {
				fmt.Fprint(w, "| ", cell, pad, " |")
			} else {
				fmt.Fprint(w, " ", pad, cell, " |")
			}
		}
		fmt.Fprintln(w)
	}
	if t.title != "" {
		fmt.Fprintf(w, "\n%s\n\n", t.title)
	}
	line(t.head)
	for i, n := range width {
		if i == 0 {
			fmt.Fprint(w, "|", strings.Repeat("-", n+2), "|")
		} else {
			fmt.Fprint(w, strings.Repeat("-", n+1), ":|")
		}
	}
	fmt.Fprintln(w)
	for _, row := range t.rows {
		line(row)
	}
}
