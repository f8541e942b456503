//go:build !linux && !plan9

package mcast

import (
	"fmt"
	"net"
	"slices"
	"testing"
)

// Hints and interfaces put together.
func TestSnapshotChanges(t *testing.T) {
	const up = net.FlagUp | net.FlagRunning
	ifis := func(names ...string) (list []net.Interface) {
		for i, name := range names {
			if name != "" {
				list = append(list, net.Interface{Index: i + 1, Name: name, Flags: up})
			}
		}
		return list
	}
	s := snapshotLinks{known: make(map[int]bool)}
	for _, step := range []struct {
		hints []linkHint
		ifis  []net.Interface
		want  string
	}{
		{nil, ifis("lo0", "en0"), "new lo0, new en0"},
		{[]linkHint{{look: true}}, ifis("lo0", "en0"), "new lo0, new en0"},
		// Down and up before anybody looked.
		{[]linkHint{{index: 2}, {index: 2, up: true, running: true}}, ifis("lo0", "en0"), "down en0, new en0, new lo0, new en0"},
		{[]linkHint{{index: 9, up: true}}, ifis("lo0", "en0"), "new lo0, new en0"},
		{nil, ifis("lo0", "en0", "en1"), "new lo0, new en0, new en1"},
		{nil, ifis("lo0", "", "en1"), "new lo0, new en1, gone 2"},
		{[]linkHint{{index: 2, gone: true}}, ifis("lo0", "", "en1"), "new lo0, new en1"},
		{nil, ifis("lo0", "en0"), "new lo0, new en0, gone 3"},
		// Another one with the same index.
		{[]linkHint{{index: 2, gone: true}}, ifis("lo0", "en0"), "gone 2, new lo0, new en0"},
		// A hint of what is gone by now.
		{[]linkHint{{index: 2, up: true}}, ifis("lo0"), "gone 2, new lo0, gone 2"},
	} {
		var got string
		for _, c := range s.changes(step.hints, step.ifis) {
			switch {
			case c.gone:
				got += fmt.Sprint(", gone ", c.index)
			case c.up && c.running:
				got += ", new " + c.name
			default:
				got += ", down " + c.name
			}
		}
		if got = got[min(2, len(got)):]; got != step.want {
			t.Errorf("%v: %s, want %s", step.hints, got, step.want)
		}
	}
	if !slices.Equal(s.changes(nil, nil), []linkChange{{link: link{index: 1}, gone: true}}) {
		t.Error("the last one is gone")
	}
}
