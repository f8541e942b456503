//go:build !plan9

package kerneltest

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// The vectors are what the option code of XNU 11417 and FreeBSD 13 answered, step by
// step. The models have to give the same answers, all of them.

// A step is one line of a file of vectors.
type step struct {
	Seq, Sock, Level, Name int
	Op                     string

	System, About           string // begin
	Reports                 bool
	Ifindexes               []int
	Groups                  json.RawMessage // begin: addresses; record: what is recorded
	Sources                 []netip.Addr
	IPv6                    bool   // socket
	Value, Answer, Note     string // setsockopt, getsockopt
	Errno                   int
	Count, Panic, Undefined bool
	Delivered               string // deliver
	Ifindex                 int    // gone, come
	Which                   string // timers
	Sent                    []string
	line                    int
}

// A recorded is what a record line says of one group on one interface.
type recorded struct {
	Ifindex  int
	Group    netip.Addr
	Requests int
	State    int
	T0, T1   int
	Exclude  int
	Include  int
	Sources  [][3]any // address, excluded by, included by
	Asks     string
}

// vectorWorld is the host that the vectors were recorded on.
func vectorWorld(s *step) *Kernel {
	k := Darwin()
	if s.System == "freebsd" {
		k = FreeBSD()
	}
	k.Reports = s.Reports
	k.Route = 2
	k.Interfaces = map[int]Interface{
		1: {Name: "lo0", Up: true, Loopback: true, Addrs: []netip.Addr{addr("127.0.0.1")}},
		2: {Name: "en0", Up: true, Addrs: []netip.Addr{addr("192.0.2.1")}},
		3: {Name: "en1", Up: true, Addrs: []netip.Addr{addr("198.51.100.1")}},
	}
	return k
}

// unpack reads hex in which "(n)" stands for n zero bytes.
func unpack(t *testing.T, text string) []byte {
	t.Helper()
	var v []byte
	for text != "" {
		if text[0] == '(' {
			number, rest, _ := strings.Cut(text[1:], ")")
			n, err := strconv.Atoi(number)
			if err != nil {
				t.Fatal(err)
			}
			v, text = append(v, make([]byte, n)...), rest
			continue
		}
		end := strings.IndexByte(text, '(')
		if end < 0 {
			end = len(text)
		}
		b, err := hex.DecodeString(text[:end])
		if err != nil {
			t.Fatal(err)
		}
		v, text = append(v, b...), text[end:]
	}
	return v
}

// A replay is one sequence on its way through a model. It ends at the first
// disagreement: what follows one says nothing.
type replay struct {
	k       *Kernel
	begin   *step
	groups  []netip.Addr
	away    map[int]Interface
	sockets map[int]*Socket
	words   map[int]string // the last deliver line of each socket
	asked   bool           // every socket was asked after the last request
	steps   []string
	wrong   string // the disagreement
	at      int    // and its line
}

// compared counts what was held against the model, by kind.
type compared map[string]int

func (c compared) String() string {
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(c)) {
		parts = append(parts, fmt.Sprintf("%d %s", c[kind], kind))
	}
	return strings.Join(parts, ", ")
}

func (r *replay) errorf(s *step, format string, args ...any) {
	if r.wrong == "" {
		r.wrong, r.at = fmt.Sprintf(format, args...), s.line
	}
}

// delivered asks a socket as the deliver lines do.
func (r *replay) delivered(sock int) string {
	var b strings.Builder
	for _, index := range r.begin.Ifindexes {
		for _, group := range r.groups {
			if b.Len() > 0 {
				b.WriteByte(' ')
			}
			for _, source := range r.begin.Sources {
				word := byte('0')
				if r.sockets[sock].Delivers(index, group, source) {
					word = '1'
				}
				b.WriteByte(word)
			}
		}
	}
	return b.String()
}

// replaySteps runs one sequence. delay draws the delays of macOS' reports.
func replaySteps(t *testing.T, steps []*step, n compared, delay func() int) *replay {
	t.Helper()
	begin := steps[0]
	r := &replay{
		k: vectorWorld(begin), begin: begin,
		away: make(map[int]Interface), sockets: make(map[int]*Socket), words: make(map[int]string),
	}
	r.k.RepeatReport = delay
	if err := json.Unmarshal(begin.Groups, &r.groups); err != nil {
		t.Fatal(err)
	}
	for _, s := range steps[1:] {
		r.step(t, s, n)
		if r.wrong != "" {
			break
		}
	}
	return r
}

func (r *replay) step(t *testing.T, s *step, n compared) {
	t.Helper()
	request := slices.Contains([]string{"setsockopt", "getsockopt", "close", "gone", "come"}, s.Op)
	if request && r.asked {
		for sock, words := range r.words { // those that no line was written for
			if got := r.delivered(sock); got != words {
				r.errorf(s, "before this step socket %d delivers\n     %s\nwant %s", sock, got, words)
			}
		}
	}
	if request {
		r.asked = s.Op != "getsockopt" && s.Errno == 0
	}
	r.steps = append(r.steps, fmt.Sprintf("%d: %s %d %s errno %d %s%s%s", s.line, s.Op, s.Sock, s.Note, s.Errno, s.Delivered, s.Which, s.Sent))
	switch s.Op {
	case "socket":
		r.sockets[s.Sock] = r.k.Socket(s.IPv6)
	case "close":
		r.sockets[s.Sock].Close()
		delete(r.words, s.Sock)
	case "setsockopt", "getsockopt":
		r.request(t, s)
		n["requests"]++
	case "deliver":
		if got := r.delivered(s.Sock); got != s.Delivered {
			r.errorf(s, "socket %d delivers\n     %s\nwant %s", s.Sock, got, s.Delivered)
		}
		r.words[s.Sock] = s.Delivered
		n["deliveries"]++
	case "gone":
		r.away[s.Ifindex] = r.k.Interfaces[s.Ifindex]
		r.k.RemoveInterface(s.Ifindex)
	case "come":
		r.k.AddInterface(s.Ifindex, r.away[s.Ifindex])
	case "timers":
		r.k.RunTimers()
		if s.Which == "all" {
			r.k.Advance(runInterval)
		}
	case "reports":
		sent := []string{}
		for _, report := range r.k.Sent() {
			sent = append(sent, report.String())
		}
		if !slices.Equal(sent, s.Sent) {
			r.errorf(s, "sent %q\nwant %q", sent, s.Sent)
		}
		n["reports"] += len(s.Sent)
	case "record":
		r.record(t, s)
		n["records"]++
	default:
		t.Fatalf("line %d: unknown step %q", s.line, s.Op)
	}
}

func (r *replay) request(t *testing.T, s *step) {
	t.Helper()
	value := unpack(t, s.Value)
	before := len(r.k.Harms())
	var err error
	if s.Op == "setsockopt" {
		err = r.sockets[s.Sock].Setsockopt(s.Level, s.Name, value)
	} else {
		_, err = r.sockets[s.Sock].Getsockopt(s.Level, s.Name, value)
	}
	for kind, want := range map[HarmKind]bool{Panic: s.Panic, Undefined: s.Undefined} {
		got := slices.ContainsFunc(r.k.Harms()[before:], func(h Harm) bool { return h.Kind == kind })
		if got != want {
			r.errorf(s, "%s: %v, want %v", kind, got, want)
		}
	}
	if s.Panic || s.Undefined {
		return
	}
	if want := asError(syscall.Errno(s.Errno)); err != want {
		r.errorf(s, "%s, want errno %d", answer(err), s.Errno)
	}
	if want := unpack(t, s.Answer); s.Op == "getsockopt" && s.Errno == 0 && !bytes.Equal(value, want) {
		r.errorf(s, "answers\n     %x\nwant %x", value, want)
	}
}

func (r *replay) record(t *testing.T, s *step) {
	t.Helper()
	var want []recorded
	if err := json.Unmarshal(s.Groups, &want); err != nil {
		t.Fatal(err)
	}
	got := []recorded{}
	for _, rec := range r.k.records {
		now := rec.state[1]
		one := recorded{
			rec.dev.index, unscoped(rec.group), rec.requests, int(rec.member), int(rec.state[0].mode), int(now.mode),
			int(int16(now.exclude)), int(int16(now.include)),
			[][3]any{},
			rec.asks(),
		}
		for _, source := range rec.sources {
			now := source.state[1]
			one.Sources = append(one.Sources, [3]any{source.source.String(), float64(int16(now.exclude)), float64(int16(now.include))})
		}
		got = append(got, one)
	}
	order := func(a, b recorded) int {
		return cmp.Or(cmp.Compare(a.Ifindex, b.Ifindex), a.Group.Compare(b.Group))
	}
	slices.SortFunc(got, order)
	slices.SortFunc(want, order)
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		r.errorf(s, "recorded\n     %s\nwant %s", g, w)
	}
}

// maxDelay is IGMP_URI_INIT: a report is repeated after one to that many runs of the
// report code. The kernel draws the number anew for each interface and run, and the
// vectors do not tell what it drew.
const maxDelay = 3

// replaySequence looks for delays with which the whole of a sequence agrees, and
// returns what was wrong with those that led furthest, "" if they are found.
func replaySequence(t *testing.T, steps []*step, total compared) string {
	t.Helper()
	var drawn []int
	var best *replay
	for try := 0; ; try++ {
		n := make(compared)
		used := 0
		r := replaySteps(t, steps, n, func() int {
			if used++; used > len(drawn) {
				drawn = append(drawn, 1)
			}
			return drawn[used-1]
		})
		if r.wrong == "" {
			for kind, m := range n {
				total[kind] += m
			}
			total["sequences"]++
			return ""
		}
		if best == nil || r.at > best.at {
			best = r
		}
		drawn = drawn[:used]
		for len(drawn) > 0 && drawn[len(drawn)-1] == maxDelay {
			drawn = drawn[:len(drawn)-1]
		}
		if len(drawn) == 0 || try == 10000 {
			break
		}
		drawn[len(drawn)-1]++
	}
	return fmt.Sprintf("line %d, sequence %d (%s): %s\nsteps:\n%s", best.at, best.begin.Seq, best.begin.About, best.wrong,
		strings.Join(best.steps[max(0, len(best.steps)-40):], "\n"))
}

// replayFile holds a model against one file.
func replayFile(t *testing.T, in io.Reader) {
	t.Helper()
	var sequences [][]*step
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for at := 1; lines.Scan(); at++ {
		s := &step{line: at}
		if err := json.Unmarshal(lines.Bytes(), s); err != nil {
			t.Fatalf("line %d: %v", at, err)
		}
		if s.Op == "begin" {
			sequences = append(sequences, nil)
		}
		last := len(sequences) - 1
		sequences[last] = append(sequences[last], s)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if len(sequences) == 0 {
		t.Error("no sequences")
	}
	n := make(compared)
	for _, steps := range sequences {
		if wrong := replaySequence(t, steps, n); wrong != "" {
			t.Error(wrong)
		}
	}
	t.Logf("of %d sequences the model agrees with: %v", len(sequences), n)
}

// vectorFiles are all there are.
var vectorFiles = []string{
	"freebsd-ipv4", "freebsd-ipv4-odd", "hazards", "macos-ipv4", "macos-ipv4-igmp", "macos-ipv4-interfaces",
	"macos-ipv4-odd", "macos-ipv6", "macos-ipv6-interfaces", "macos-ipv6-odd",
}

// A part of them goes with the test, wherever it runs.
//
//go:embed testdata/vectors/*.gz
var vectors embed.FS

// TestVectors replays the part that is kept in testdata, and all of the vectors where
// MCAST_VECTORS says where they are.
func TestVectors(t *testing.T) {
	for _, name := range vectorFiles {
		t.Run("part/"+name, func(t *testing.T) {
			packed, err := vectors.ReadFile("testdata/vectors/" + name + ".jsonl.gz")
			if err != nil {
				t.Fatal(err)
			}
			in, err := gzip.NewReader(bytes.NewReader(packed))
			if err != nil {
				t.Fatal(err)
			}
			replayFile(t, in)
		})
	}
	for _, name := range vectorFiles {
		t.Run("all/"+name, func(t *testing.T) {
			dir := os.Getenv("MCAST_VECTORS")
			if dir == "" {
				t.Skip("MCAST_VECTORS does not say where all the vectors are")
			}
			f, err := os.Open(filepath.Join(dir, name+".jsonl"))
			if err != nil {
				skip(t, "MCAST_VECTORS: %v", err)
			}
			defer f.Close()
			replayFile(t, f)
		})
	}
}

// skip skips a test that wants more than every machine has. Where all tests have to
// run, as in CI, it fails.
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("MCAST_LAB") == "require" {
		t.Fatalf("MCAST_LAB=require: "+format, args...)
	}
	t.Skipf(format, args...)
}

// TestVectorsTell changes one thing in a sequence and expects that the replay says so.
func TestVectorsTell(t *testing.T) {
	text := `{"seq":1,"op":"begin","system":"macos","reports":true,"ifindexes":[2,3],"groups":["239.1.1.1"],"sources":["10.0.0.1","10.0.0.2"]}
{"seq":1,"op":"socket","sock":0,"ipv6":false}
{"seq":1,"op":"setsockopt","sock":0,"level":0,"name":82,"value":"0200000010020000ef010101(120)100200000a000001(120)","errno":0}
{"seq":1,"op":"timers","which":"fast"}
{"seq":1,"op":"reports","sent":["2 TO_IN 239.1.1.1 10.0.0.1"]}
{"seq":1,"op":"record","groups":[{"ifindex":2,"group":"239.1.1.1","requests":1,"state":2,"t0":1,"t1":1,"exclude":0,"include":1,"sources":[["10.0.0.1",0,1]],"asks":"INCLUDE 10.0.0.1"}]}
{"seq":1,"op":"deliver","sock":0,"delivered":"10 00"}
{"seq":1,"op":"getsockopt","sock":0,"level":0,"name":74,"value":"0200000001000000010000000000000010020000ef010101(256)","errno":0,"answer":"0200000001000000010000000000000010020000ef010101(128)100200000a000001(120)"}
{"seq":1,"op":"setsockopt","sock":0,"level":0,"name":82,"value":"0200000010020000ef010101(120)100200000a000002(120)","errno":12,"count":true}
{"seq":1,"op":"timers","which":"fast"}
{"seq":1,"op":"setsockopt","sock":0,"level":0,"name":82,"value":"0200000010020000ef010101(120)100200000a000002(120)","errno":0}
{"seq":1,"op":"deliver","sock":0,"delivered":"11 00"}
`
	run := func(text string) string {
		var steps []*step
		for line := range strings.Lines(text) {
			s := new(step)
			if err := json.Unmarshal([]byte(line), s); err != nil {
				t.Fatal(err)
			}
			steps = append(steps, s)
		}
		return replaySequence(t, steps, make(compared))
	}
	if wrong := run(text); wrong != "" {
		t.Error(wrong)
	}
	for _, change := range [][2]string{
		{`"errno":12`, `"errno":16`},
		{`"errno":0}`, `"errno":1}`},
		{`"errno":0}`, `"panic":true}`},
		{`"errno":0}`, `"undefined":true}`},
		{"TO_IN", "TO_EX"},
		{`"requests":1`, `"requests":2`},
		{`"state":2`, `"state":9`},
		{`"t0":1`, `"t0":0`},
		{`[["10.0.0.1",0,1]]`, `[["10.0.0.1",0,2]]`},
		{`"asks":"INCLUDE 10.0.0.1"`, `"asks":"EXCLUDE"`},
		{`"10 00"`, `"11 00"`},
		{`"11 00"`, `"10 00"`},
		{`100200000a000001(120)"}`, `100200000a000001(119)01"}`},
		{`"answer":"02`, `"answer":"03`},
	} {
		changed := strings.Replace(text, change[0], change[1], 1)
		if changed == text {
			t.Fatalf("%q is not there", change[0])
		}
		if run(changed) == "" {
			t.Errorf("the replay does not see %q in place of %q", change[1], change[0])
		}
	}
}
