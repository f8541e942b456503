package incoming

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestNative(t *testing.T) {
	for _, tt := range []struct {
		after time.Duration
		steps string // at that time something is "heard", or one "looks", and what that tells
		want  string
	}{
		{5 * time.Second, "1s look, 4.999s look", "-"},
		{5 * time.Second, "4s heard, 8.999s look", "-"},
		{5 * time.Second, "5s look, 6s look, 100h look", "5s missing"},
		{5 * time.Second, "4s heard, 9s look", "9s missing"},
		{5 * time.Second, "5s look, 6s heard, 7s heard, 16.999s look, 17s look", "5s missing, 6s back, 17s missing"},
		// The network comes and goes: it is given more time, up to a minute.
		{5 * time.Second, "5s look, 6s heard, 16s look, 17s heard, 36s look, 37s look, 38s heard, 77s look, 78s look", "5s missing, 6s back, 16s missing, 17s back, 37s missing, 38s back, 78s missing"},
		{40 * time.Second, "40s look, 40s heard, 99s look, 100s look, 100s heard, 159s look, 160s look", "40s missing, 40s back, 100s missing, 100s back, 160s missing"},
		{time.Hour, "1h look, 1h heard, 1h59m look, 2h look", "1h missing, 1h back, 2h missing"},
		{time.Millisecond, "1ms look, 2ms heard, 10s look, 10002ms look", "1ms missing, 2ms back, 10002ms missing"},
		{0, "0s look, 1s heard, 2s look", "0s missing, 1s back"}, // the tunnel alone
	} {
		start := time.Unix(1000, 0)
		n := NewNative(tt.after, start)
		missing := false
		var got []string
		for step := range strings.SplitSeq(tt.steps, ", ") {
			at, what, _ := strings.Cut(step, " ")
			d, err := time.ParseDuration(at)
			if err != nil {
				t.Fatal(err)
			}
			switch now := start.Add(d); {
			case what == "heard" && n.Heard(now):
				got, missing = append(got, at+" back"), false
			case what == "look" && n.Silent(now):
				got, missing = append(got, at+" missing"), true
			}
			if n.Missing() != missing {
				t.Errorf("%s: missing %v", step, n.Missing())
			}
		}
		if s := strings.Join(got, ", "); s != strings.TrimPrefix(tt.want, "-") {
			t.Errorf("after %v, %s: %s, want %s", tt.after, tt.steps, s, tt.want)
		}
	}
}

func TestLook(t *testing.T) {
	var got []time.Duration
	for _, after := range []time.Duration{0, 1, 20 * time.Millisecond, time.Second, time.Hour} {
		got = append(got, Look(after))
	}
	if s := fmt.Sprint(got); s != "[1ms 1ms 20ms 1s 1s]" {
		t.Error(s)
	}
}
