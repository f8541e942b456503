package cmsg_test

import (
	"bytes"
	"slices"
	"strconv"
	"testing"

	"example.com/mcast/internal/cmsg"
)

func TestSegment(t *testing.T) {
	tests := []struct {
		b       string
		segment int
		want    []string
	}{
		{"", 0, []string{""}},
		{"", 3, []string{""}},
		{"abc", 0, []string{"abc"}},
		{"abc", -1, []string{"abc"}},
		{"abc", 1, []string{"a", "b", "c"}},
		{"abc", 2, []string{"ab", "c"}},
		{"abc", 3, []string{"abc"}},
		{"abc", 4, []string{"abc"}},
		{"abcdef", 3, []string{"abc", "def"}},
		{"abcdefg", 3, []string{"abc", "def", "g"}},
		{"abc", 1<<(strconv.IntSize-1) - 1, []string{"abc"}},
	}
	for _, tt := range tests {
		if got := cmsg.Count(len(tt.b), tt.segment); got != len(tt.want) {
			t.Errorf("Count(%d, %d) = %d, want %d", len(tt.b), tt.segment, got, len(tt.want))
		}
		var got []string
		for at := 0; len(got) < 10; {
			payload, next := cmsg.Segment([]byte(tt.b), tt.segment, at)
			got = append(got, string(payload))
			if at = next; at >= len(tt.b) {
				break
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%q in segments of %d is %q, want %q", tt.b, tt.segment, got, tt.want)
		}
	}
	if got := cmsg.Count(1<<(strconv.IntSize-1)-1, 2); got != 1<<(strconv.IntSize-2) {
		t.Errorf("Count of the largest number is %d", got)
	}
}

// FuzzSegment: the payloads are as many as Count says, together they are the
// whole, and all but the last have the size of a segment.
func FuzzSegment(f *testing.F) {
	f.Add([]byte("abcdefg"), 3)
	f.Add([]byte{}, 0)
	f.Add([]byte("abc"), -1)
	f.Fuzz(func(t *testing.T, b []byte, segment int) {
		var whole []byte
		count := cmsg.Count(len(b), segment)
		at := 0
		for i := range count {
			payload, next := cmsg.Segment(b, segment, at)
			if i < count-1 && len(payload) != segment || next != at+len(payload) {
				t.Fatalf("%d bytes, segment %d: payload %d of %d has %d bytes, the next begins at %d", len(b), segment, i, count, len(payload), next)
			}
			whole, at = append(whole, payload...), next
		}
		if at != len(b) || !bytes.Equal(whole, b) {
			t.Fatalf("%d bytes, segment %d: %d payloads have %d bytes and end at %d", len(b), segment, count, len(whole), at)
		}
	})
}
