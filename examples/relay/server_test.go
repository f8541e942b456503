package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/looptest"
)

// A site is a relay that is served.
type site struct {
	*relay
	*network
	url  string
	stop func() error // shuts it down
}

func newSite(t testing.TB, o options, channels ...string) *site {
	t.Helper()
	r, n := newTestRelay(t, o, channels...)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.serve(ctx, []net.Listener{l}) }()
	stopped := false
	s := &site{relay: r, network: n, url: "http://" + l.Addr().String()}
	s.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(looptest.Patience):
			return errors.New("it does not end")
		}
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *site) get(t testing.TB, path string) *http.Response {
	t.Helper()
	resp, err := http.Get(s.url + path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func (s *site) text(t testing.TB, path string) (code int, header http.Header, body string) {
	t.Helper()
	resp := s.get(t, path)
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode, resp.Header, string(b)
}

func mustRead(t testing.TB, r io.Reader, n int) string {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatalf("%d bytes were wanted: %v", n, err)
	}
	return string(b)
}

// The forms that players' lists have lead to the channel, and viewers share it.
func TestServeStream(t *testing.T) {
	const ssm, six = "10.0.0.1@232.1.1.1:5000", "fd00::1@[ff3e::8000:1]:5000"
	s := newSite(t, options{}, ssm, "239.1.1.1", six)
	for _, tt := range []struct{ path, ch string }{
		{"/udp/10.0.0.1@232.1.1.1:5000", ssm},
		{"/rtp/10.0.0.1@232.1.1.1:5000", ssm},
		{"/udp/232.1.1.1:5000", ssm},
		{"/udp/@232.1.1.1:5000", ssm},
		{"/udp/232.1.1.1:5000/", ssm},
		{"/udp/232.1.1.1:5000?sources=10.0.0.1", ssm},
		{"/udp/232.1.1.1%3A5000?fcc=1.2.3.4:5&x;y", ssm},
		{"/rtp/239.1.1.1:1234", "239.1.1.1"},
		{"/udp/239.1.1.1", "239.1.1.1"},
		{"/udp/fd00::1@[ff3e::8000:1]:5000", six},
		{"/udp/%5Bff3e::8000:1%5D:5000", six},
	} {
		resp := s.get(t, tt.path)
		h := resp.Header
		if resp.StatusCode != 200 || h.Get("Content-Type") != "video/mp2t" || h.Get("Cache-Control") != "no-store" || len(resp.TransferEncoding) > 0 || resp.ContentLength != -1 {
			t.Fatalf("%s: %s %v %v", tt.path, resp.Status, h, resp.TransferEncoding)
		}
		f := s.fake(t, tt.ch)
		f.in <- []byte(tt.path)
		if got := mustRead(t, resp.Body, len(tt.path)); got != tt.path {
			t.Errorf("%s: %q", tt.path, got)
		}
		resp.Body.Close()
	}
	if s.joins != 3 {
		t.Errorf("%d joins of 3 channels", s.joins)
	}
	eventually(t, "all viewers gone", func() bool { return s.counts.viewers.Load() == 0 })
	for _, c := range s.all() {
		if v := c.snapshot().viewers; v != 0 {
			t.Errorf("%v has %d viewers", c.ch, v)
		}
	}
}

func TestRefused(t *testing.T) {
	s := newSite(t, options{viewers: 1}, "239.1.1.1:5000")
	for _, tt := range []struct {
		path string
		code int
		text string
	}{
		{"/udp/239.1.1.2:5000", 403, "-allow"},
		{"/udp/239.1.1.1:5001", 403, "-allow"},
		{"/udp/239.1.1.1%25lo:5000", 403, "-allow"},
		{"/udp/10.0.0.1@239.1.1.1:5000", 403, "-allow"},
		{"/udp/10.0.0.1:5000", 400, "multicast"},
		{"/udp/239.1.1.1:99999", 400, "port"},
		{"/udp/", 400, "want /udp/"},
		{"/udp", 400, "want /udp/"},
		{"/other", 404, ""},
		{"/page/index.html", 404, ""},
	} {
		code, _, body := s.text(t, tt.path)
		if code != tt.code || !strings.Contains(body, tt.text) {
			t.Errorf("%s: %d %s, want %d …%s…", tt.path, code, body, tt.code, tt.text)
		}
	}
	resp, err := http.Post(s.url+"/udp/239.1.1.1:5000", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", resp.Status)
	}
	resp, err = http.Head(s.url + "/udp/239.1.1.1:5000")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "video/mp2t" {
		t.Errorf("HEAD: %s", resp.Status)
	}
	if s.joins != 0 {
		t.Errorf("%d joins", s.joins)
	}
	s.get(t, "/udp/239.1.1.1:5000")
	code, h, body := s.text(t, "/udp/239.1.1.1:5000")
	if code != 503 || h.Get("Retry-After") == "" || !strings.Contains(body, "-viewers") || h.Get("Content-Type") == "video/mp2t" {
		t.Errorf("one viewer too many: %d %v %s", code, h, body)
	}
}

func TestJoinRefused(t *testing.T) {
	s := newSite(t, options{}, "239.1.1.1:5000")
	s.fail(&mcast.OpError{Op: "Join", Err: fmt.Errorf("%w: 20 groups a socket", mcast.ErrLimit)})
	if code, _, body := s.text(t, "/udp/239.1.1.1:5000"); code != 503 || !strings.Contains(body, "20 groups a socket") {
		t.Errorf("%d %s", code, body)
	}
}

// -allow is for requests that no list has.
func TestAllow(t *testing.T) {
	s := newSite(t, options{rules: rules{prefixes: []netip.Prefix{netip.MustParsePrefix("239.7.0.0/16")}, ifname: "eth1"}})
	s.get(t, "/udp/239.7.1.1:5000")
	s.fake(t, "239.7.1.1%eth1:5000")
	s.get(t, "/udp/10.0.0.1@239.7.1.1:5000")
	s.fake(t, "10.0.0.1@239.7.1.1%eth1:5000")
	for _, path := range []string{"/udp/239.8.1.1:5000", "/udp/239.7.1.1%25eth0:5000", "/udp/239.7.1.1%25*:5000"} {
		if code, _, body := s.text(t, path); code != 403 {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	if s.joins != 2 {
		t.Errorf("%d joins", s.joins)
	}
}

// numberedBlock is a datagram's payload with its number.
func numberedBlock(b []byte, n int) []byte {
	copy(b, fmt.Sprintf("%08d", n))
	return b
}

// A viewer that stops reading costs the others nothing, and skips ahead when it
// goes on.
func TestSlowViewer(t *testing.T) {
	s := newSite(t, options{}, "239.1.1.1:5000")
	good, slow := s.get(t, "/udp/239.1.1.1:5000"), s.get(t, "/udp/239.1.1.1:5000")
	f := s.fake(t, "239.1.1.1:5000")
	const size, burst = 8 << 10, 64
	out := make([]byte, size)
	n := 0
	send := func() {
		t.Helper()
		for i := range burst {
			f.in <- numberedBlock(make([]byte, size), n+i)
		}
		for range burst {
			if _, err := io.ReadFull(good.Body, out); err != nil || string(out[:8]) != fmt.Sprintf("%08d", n) {
				t.Fatalf("datagram %d is %q, %v", n, out[:8], err)
			}
			n++
		}
	}
	// More than its connection and the hub can hold.
	for n*size < hubSize+64<<20 {
		send()
	}
	last := -1
	for s.counts.skipped.Load() == 0 {
		for range burst {
			if _, err := io.ReadFull(slow.Body, out); err != nil {
				t.Fatal(err)
			}
			var got int
			if _, err := fmt.Sscanf(string(out[:8]), "%d", &got); err != nil || got <= last {
				t.Fatalf("%q after %d, %v", out[:8], last, err)
			}
			last = got
		}
		send()
	}
	if skipped := s.counts.skipped.Load(); skipped%size != 0 {
		t.Errorf("%d bytes skipped: half a datagram", skipped)
	}
	if c := s.all()[0].snapshot(); c.viewers != 2 || int(c.totals.datagrams) != n || s.counts.dropped.Load() != 0 {
		t.Errorf("%d viewers, %d datagrams of %d, %d dropped", c.viewers, c.totals.datagrams, n, s.counts.dropped.Load())
	}
}

// A viewer that takes nothing any more is dropped.
func TestDroppedViewer(t *testing.T) {
	s := newSite(t, options{patience: 200 * time.Millisecond}, "239.1.1.1:5000")
	s.get(t, "/udp/239.1.1.1:5000")
	f := s.fake(t, "239.1.1.1:5000")
	b := make([]byte, 8<<10)
	eventually(t, "the one that never reads is dropped", func() bool {
		for range 64 {
			f.in <- b
		}
		return s.counts.dropped.Load() == 1
	})
	eventually(t, "it is gone", func() bool { return s.counts.viewers.Load() == 0 && s.all()[0].snapshot().viewers == 0 })
	if !s.all()[0].snapshot().joined {
		t.Error("the channel was left at once")
	}
	// One that goes by itself is no failure.
	resp := s.get(t, "/udp/239.1.1.1:5000")
	resp.Body.Close()
	eventually(t, "it is gone too", func() bool { return s.counts.viewers.Load() == 0 })
	if s.counts.dropped.Load() != 1 {
		t.Errorf("%d dropped", s.counts.dropped.Load())
	}
}

func TestServePlaylist(t *testing.T) {
	s := newSite(t, options{}, "10.0.0.1@232.1.1.1%eth0:5000", "rtp://@239.1.1.1:5004")
	code, h, body := s.text(t, "/playlist.m3u")
	want := "#EXTM3U\n#EXTINF:-1,10.0.0.1@232.1.1.1%eth0:5000\n" + s.url + "/udp/10.0.0.1@232.1.1.1:5000\n#EXTINF:-1,239.1.1.1:5004\n" + s.url + "/rtp/239.1.1.1:5004\n"
	if code != 200 || body != want || !strings.HasPrefix(h.Get("Content-Type"), "audio/x-mpegurl") {
		t.Errorf("%d %v\n%s\nwant\n%s", code, h, body, want)
	}
	// A player that does not say what it took the address for.
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /playlist.m3u HTTP/1.0\r\n\r\n")
	if b, err := io.ReadAll(c); err != nil || !strings.HasSuffix(string(b), want) {
		t.Errorf("HTTP/1.0: %v %s", err, b)
	}
}

// The page has all it needs, says where it may load from, and loads nothing from
// elsewhere.
func TestServePage(t *testing.T) {
	s := newSite(t, options{}, "239.1.1.1:5000")
	for path, kind := range map[string]string{"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"} {
		code, h, body := s.text(t, path)
		if code != 200 || !strings.HasPrefix(h.Get("Content-Type"), kind) || len(body) < 1000 {
			t.Errorf("%s: %d %v, %d bytes", path, code, h, len(body))
		}
		if strings.Contains(body, "http://") || strings.Contains(body, "https://") {
			t.Errorf("%s names something elsewhere", path)
		}
		if !strings.HasPrefix(h.Get("Content-Security-Policy"), "default-src 'none'; script-src 'self';") || h.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %v", path, h)
		}
	}
}

// Viewers get what is there when the program ends, pages end, and what was
// joined is left.
func TestShutdown(t *testing.T) {
	s := newSite(t, options{}, "239.1.1.1:5000")
	stream, events := s.get(t, "/udp/239.1.1.1:5000"), s.get(t, "/events")
	f := s.fake(t, "239.1.1.1:5000")
	f.in <- []byte("hello")
	mustRead(t, stream.Body, 5)
	if code, _, body := s.text(t, "/healthz"); code != 200 || body != "ok\n" {
		t.Errorf("healthz: %d %s", code, body)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(stream.Body); err != nil || len(rest) != 0 {
		t.Errorf("the stream ends with %q %v", rest, err)
	}
	if _, err := io.ReadAll(events.Body); err != nil {
		t.Errorf("the page's events end with %v", err)
	}
	if !f.closed() {
		t.Error("the channel was not left")
	}
	w := httptest.NewRecorder()
	s.handler(newBoard(s.relay)).ServeHTTP(w, httptest.NewRequest("GET", "/healthz", nil))
	if w.Code != 503 {
		t.Errorf("healthz afterwards: %d", w.Code)
	}
	w = httptest.NewRecorder()
	s.handler(newBoard(s.relay)).ServeHTTP(w, httptest.NewRequest("GET", "/udp/239.1.1.1:5000", nil))
	if w.Code != 503 || s.joins != 1 {
		t.Errorf("a viewer afterwards: %d, %d joins", w.Code, s.joins)
	}
}

// A viewer that does not read holds up the end for a while only.
func TestShutdownStuck(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes as long as viewers are waited for")
	}
	t.Parallel()
	s := newSite(t, options{}, "239.1.1.1:5000")
	resp := s.get(t, "/udp/239.1.1.1:5000")
	f := s.fake(t, "239.1.1.1:5000")
	b := make([]byte, 8<<10)
	for end := 0; end < 5; { // until nothing is sent any more
		sent := s.counts.sent.Load()
		for range 64 {
			f.in <- b
		}
		time.Sleep(3 * pace)
		if end++; s.counts.sent.Load() > sent {
			end = 0
		}
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if !f.closed() {
		t.Error("the channel was not left")
	}
	eventually(t, "the viewer is gone", func() bool { return s.counts.viewers.Load() == 0 })
	resp.Body.Close()
}

// A header that does not come ends the connection.
func TestHeaderTime(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes as long as a header is waited for")
	}
	t.Parallel()
	s := newSite(t, options{}, "239.1.1.1:5000")
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
	c.SetReadDeadline(time.Now().Add(looptest.Patience))
	if b, err := io.ReadAll(c); err != nil || strings.Contains(string(b), "200") {
		t.Errorf("%q %v", b, err)
	}
	code, _, _ := s.text(t, "/"+strings.Repeat("x", 2*headerBytes))
	if code != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a long header: %d", code)
	}
}

// eventsOf reads the events of a page.
func (s *site) eventsOf(t testing.TB) func() update {
	t.Helper()
	resp := s.get(t, "/events")
	if h := resp.Header; resp.StatusCode != 200 || h.Get("Content-Type") != "text/event-stream" || h.Get("Cache-Control") != "no-store" {
		t.Fatalf("%s %v", resp.Status, h)
	}
	r := bufio.NewReader(resp.Body)
	return func() (u update) {
		t.Helper()
		line, err := r.ReadString('\n')
		data, ok := strings.CutPrefix(line, "data: ")
		blank, _ := r.ReadString('\n')
		if err != nil || !ok || blank != "\n" {
			t.Fatalf("%q %q %v", line, blank, err)
		}
		if err := json.Unmarshal([]byte(data), &u); err != nil {
			t.Fatal(err)
		}
		return u
	}
}

// Server-sent events: all at first, then what has changed, each second.
func TestServeEvents(t *testing.T) {
	s := newSite(t, options{linger: time.Nanosecond}, "239.1.1.1%eth0:5000", "10.0.0.1@232.1.1.2:5000")
	next := s.eventsOf(t)
	u := next()
	if len(u.Rows) != 2 || len(u.Order) != 2 || u.Limit != 100 || u.Rows[0].Name != "239.1.1.1%eth0:5000" || u.Rows[0].State != "idle" || u.Rows[1].Source != "10.0.0.1" {
		t.Fatalf("%+v", u)
	}
	resp := s.get(t, "/udp/239.1.1.1:5000")
	f := s.fake(t, "239.1.1.1%eth0:5000")
	f.in <- tsPacket(1, 1)
	f.in <- tsPacket(1, 3)
	for u = next(); len(u.Rows) != 1 || u.Rows[0].Lost == nil || u.Rows[0].Mbits == nil; u = next() {
		if len(u.Rows) > 1 || len(u.Order) > 0 {
			t.Fatalf("what is the same came again: %+v", u)
		}
	}
	r := u.Rows[0]
	if r.State != "live" || *r.Lost != 1 || r.Unit != "TS packets" || r.Viewers != 1 || r.Interface != "eth0" || r.From != "10.0.0.1" || r.Heard == 0 || len(r.History) == 0 || u.Viewers != 1 || r.Dropped != 3 {
		t.Errorf("%+v", r)
	}
	f.happen(true, mcast.Event{Kind: mcast.EventPending, Group: f.ch.Group, Name: "eth0"})
	for u = next(); len(u.Rows) == 0 || u.Rows[0].State != "pending"; u = next() {
	}
	if u.Rows[0].Why != "there is no usable interface eth0" {
		t.Errorf("%+v", u.Rows[0])
	}
	// A page that comes later gets the whole plot.
	if late := s.eventsOf(t)(); len(late.Rows) != 2 || len(late.Rows[0].History) < len(r.History) {
		t.Errorf("%+v", late)
	}
	resp.Body.Close()
	for u = next(); len(u.Rows) == 0 || u.Rows[0].State != "idle"; u = next() {
	}
	if r := u.Rows[0]; r.Mbits != nil || r.Lost == nil || *r.Lost != 1 {
		t.Errorf("%+v", r)
	}
}

func TestPageLimit(t *testing.T) {
	s := newSite(t, options{}, "239.1.1.1:5000")
	s.counts.pages.Store(pageViewers)
	if code, _, _ := s.text(t, "/events"); code != 503 {
		t.Errorf("one page too many: %d", code)
	}
	s.counts.pages.Store(0)
	s.eventsOf(t)()
}
