//go:build linux && cgo

package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// What was measured takes the place of what stood there; the rest stays.
func TestFillIn(t *testing.T) {
	text := "a\n<!-- bench: one -->\nold\n<!-- bench end -->\nb\n<!-- bench: two -->\nkept\n<!-- bench end -->\nc\n"
	got, err := fillIn(text, map[string]string{"one": "\nnew\n", "three": "unused"})
	want := "a\n<!-- bench: one -->\n\nnew\n\n<!-- bench end -->\nb\n<!-- bench: two -->\nkept\n<!-- bench end -->\nc\n"
	if err != nil || got != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if again, err := fillIn(got, map[string]string{"one": "new"}); err != nil || again != want {
		t.Errorf("again: %q, %v", again, err)
	}
	for _, text := range []string{"<!-- bench: one -->\nno end", "<!-- bench: one"} {
		if _, err := fillIn(text, nil); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

// Every table of this directory's README has a section that makes it.
func TestReadme(t *testing.T) {
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	tables := map[string]string{"machine": "", "summary": "", "targets": ""}
	for _, s := range sections {
		tables[s.name] = ""
	}
	empty, err := fillIn(string(b), tables)
	if err != nil {
		t.Fatal(err)
	}
	for name := range tables {
		filled, err := fillIn(empty, map[string]string{name: "measured"})
		if err != nil || filled == empty {
			t.Errorf("README.md has no table %q (%v)", name, err)
		}
	}
}

// A plot is well-formed XML, whatever was measured.
func TestPlot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "plot.svg")
	if err := writePlot(file, nil, nil); err == nil {
		t.Error("nothing was plotted")
	}
	latencies := []series{{"C: a & <b>", []int64{1, 900, 2_000, 3_000_000_000}}, {"mcast", []int64{5_000}}}
	curves := []curve{{"one", []float64{0, 50, 1000}, []float64{1, 0.2, 0.1}}}
	for _, err := range []error{writePlot(file, latencies, nil), writePlot(file, nil, curves), writePlot(file, latencies, curves)} {
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		d := xml.NewDecoder(f)
		for err == nil {
			_, err = d.Token()
		}
		if !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	}
}
