package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"example.com/mcast/examples/internal/looptest"
	"example.com/mcast/examples/internal/mpegts"
	"example.com/mcast/examples/internal/numbered"
	"example.com/mcast/examples/internal/rtp"
)

// packets makes packets of a transport stream.
func packets(first, n int) []byte {
	b := make([]byte, n*mpegts.Size)
	for i := range n {
		copy(b[i*mpegts.Size:], []byte{0x47, 1, 0, 0x10 | byte(first+i)&15})
	}
	return b
}

// What cannot be counted is not said to be 0: it is not there, or "-".
func TestUnknown(t *testing.T) {
	rtpOf := func(seq uint16, stamp uint32, payload []byte) []byte {
		return append(rtp.Header{Type: rtp.PayloadTS, Seq: seq, Timestamp: stamp, SSRC: 1}.Append(nil), payload...)
	}
	for _, tt := range []struct {
		name       string
		in         [][]byte
		format     string
		lost, ts   string // "": not known
		jitter     bool
		line, text string // of the second, and of the stream
	}{
		{"plain", [][]byte{[]byte("a"), []byte("b")}, "", "", "", false, "lost -  dropped", "not numbered, - lost"},
		{"numbered", [][]byte{datagram(1, 0, ""), datagram(1, 2, "")}, "numbered", "1", "", false, "lost 1  dropped", "stream 00000001, 1 lost, 0 late, 0 duplicate"},
		{"TS", [][]byte{packets(0, 7), packets(14, 7)}, "ts", "", "7", false, "lost -  TS lost 7  dropped", "transport stream, - lost, 7 TS packets lost"},
		{"RTP", [][]byte{rtpOf(1, 0, packets(0, 7)), rtpOf(5, 90, packets(28, 7))}, "rtp/ts", "3", "5", true, "lost 3  TS lost 5  dropped", "RTP with a transport stream, 3 lost, 0 late, 0 duplicate, 5 TS packets lost, jitter "},
	} {
		for _, flag := range []string{"-json", "-v"} {
			t.Run(tt.name+flag, func(t *testing.T) {
				t.Parallel() // each waits for a second to be over
				port := looptest.Port(t)
				p := start(t, flag, fmt.Sprintf("%s:%d", group, port))
				s := looptest.NewSender(t)
				for _, b := range tt.in {
					s.Send(group, port, b)
				}
				p.stdout.Wait(t, looptest.Source.String())
				p.interrupt()
				p.end(t)
				if flag == "-v" {
					for _, want := range []string{tt.line, tt.text, ", TTL 1\n"} {
						if !strings.Contains(p.stdout.String(), want) {
							t.Errorf("no %q in\n%s", want, p.stdout)
						}
					}
					return
				}
				summary := parseJSON(t, p.stdout.String()).summary
				if len(summary.Streams) != 1 {
					t.Fatal(p.stdout)
				}
				stream := summary.Streams[0]
				for _, c := range []reportCounts{summary.reportCounts, stream.reportCounts} {
					if number(c.Lost) != orDash(tt.lost) || number(c.TSLost) != orDash(tt.ts) || (c.Late == nil) != (tt.lost == "") || (c.Duplicate == nil) != (tt.lost == "") {
						t.Error(p.stdout)
					}
				}
				if stream.Format != tt.format || (stream.Jitter != nil) != tt.jitter || stream.TTLMax != 0 {
					t.Error(p.stdout)
				}
				if tt.lost == "" && strings.Contains(p.stdout.String(), `"lost"`) {
					t.Error(p.stdout)
				}
			})
		}
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// The end of a stream shows what is missing at its tail; it is no datagram.
func TestEnded(t *testing.T) {
	port := looptest.Port(t)
	p := start(t, "-json", fmt.Sprintf("%s:%d", group, port))
	s := looptest.NewSender(t)
	end := numbered.Header{Stream: 0xabc, Seq: 10, End: true}.Append(nil)
	s.Send(group, port, numbered.Header{Stream: 0xdef, Seq: 10, End: true}.Append(nil)) // of nothing that was heard
	s.Send(group, port, datagram(0xabc, 0, ""))
	s.Send(group, port, datagram(0xabc, 1, ""))
	s.Send(group, port, end)
	s.Send(group, port, end)
	p.stdout.Wait(t, `"ended"`)
	p.interrupt()
	p.end(t)
	x := parseJSON(t, p.stdout.String())
	if len(x.ended) != 1 || x.ended[0].Stream != "00000abc" || *x.ended[0].Sent != 10 || *x.ended[0].Lost != 8 {
		t.Errorf("%s", p.stdout)
	}
	if x.summary.Datagrams != 2 || x.summary.missing() != "8 lost, 0 late, 0 duplicate" || len(x.summary.Streams) != 1 {
		t.Errorf("%s", p.stdout)
	}
	if s := x.summary.Streams[0].String(); !strings.HasSuffix(s, "2 datagrams, 32 bytes; stream 00000abc, 8 lost, 0 late, 0 duplicate; 10 were sent") {
		t.Error(s)
	}
	var text bytes.Buffer
	d := display{w: &text}
	d.ended(x.summary.Streams[0])
	if !strings.Contains(text.String(), "stream 00000abc from 127.0.0.1:") || !strings.Contains(text.String(), " ended: 10 sent, 8 lost\n") {
		t.Error(text.String())
	}
}

// A note is shown once for as long as it holds.
func TestNotes(t *testing.T) {
	var b bytes.Buffer
	d := display{w: &b, json: true}
	for _, texts := range [][]string{nil, {"a"}, {"a", "b"}, {"b"}, {"a"}} {
		d.notes(texts)
	}
	var got []string
	for line := range strings.Lines(b.String()) {
		var n newsReport
		if err := json.Unmarshal([]byte(line), &n); err != nil || n.Event != "note" {
			t.Errorf("%s: %v", line, err)
		}
		got = append(got, n.Text)
	}
	if strings.Join(got, "") != "aba" {
		t.Errorf("%q", got)
	}
}
