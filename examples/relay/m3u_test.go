package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const list = "\ufeff#EXTM3U url-tvg=\"http://guide.example/g.xml\"\r\n" +
	"#EXTINF:-1 tvg-id=\"one\" tvg-logo=\"http://logos.example/1.png\" group-title=\"News, local\",One, the first\r\n" +
	"udp://@239.1.1.1:5000\r\n" +
	"\r\n" +
	"#EXTINF:-1,Two\r\n" +
	"#EXTVLCOPT:network-caching=500\r\n" +
	"rtp://10.0.0.1@232.1.1.1:5004?pkt_size=1328\r\n" +
	"#EXTINF:-1,Elsewhere\r\n" +
	"https://tv.example/live.m3u8\r\n" +
	"#EXTINF:-1,Unicast\r\n" +
	"udp://10.0.0.9:5000\r\n" +
	"udp://239.1.1.2\r\n" +
	"#EXTINF:0,Six\r\n" +
	"udp://fd00::1@[ff3e::8000:1%eth0]:5000"

func TestPlaylist(t *testing.T) {
	p, err := parsePlaylist(strings.NewReader(list))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for e := range p.entries {
		got = append(got, e.scheme+" "+e.ch.String()+" "+e.name)
	}
	if want := []string{
		"udp 239.1.1.1:5000 One, the first", "rtp 10.0.0.1@232.1.1.1:5004 Two", "udp 239.1.1.2:1234 ", "udp fd00::1@[ff3e::8000:1%eth0]:5000 Six",
	}; !slices.Equal(got, want) {
		t.Errorf("entries %q, want %q", got, want)
	}
	var b strings.Builder
	if err := p.write(&b, func(e *entry) string { return "http://relay" + pathOf(e.scheme, e.ch) }); err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer("\ufeff", "", "\r", "",
		"udp://@239.1.1.1:5000", "http://relay/udp/239.1.1.1:5000",
		"rtp://10.0.0.1@232.1.1.1:5004?pkt_size=1328", "http://relay/rtp/10.0.0.1@232.1.1.1:5004",
		"udp://239.1.1.2", "http://relay/udp/239.1.1.2:1234",
		"udp://fd00::1@[ff3e::8000:1%eth0]:5000", "http://relay/udp/fd00::1@%5Bff3e::8000:1%25eth0%5D:5000",
	).Replace(list) + "\n"
	if b.String() != want {
		t.Errorf("written\n%s\nwant\n%s", b.String(), want)
	}
}

// Channels that are given have lines too, and a list always has its first one.
func TestPlaylistOfGiven(t *testing.T) {
	var p playlist
	p.add(&entry{ch: channelOf(t, "239.1.1.1:5000"), scheme: "udp"})
	var b strings.Builder
	p.write(&b, func(e *entry) string { return pathOf(e.scheme, e.ch) })
	if want := "#EXTM3U\n#EXTINF:-1,239.1.1.1:5000\n/udp/239.1.1.1:5000\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}

func TestTitle(t *testing.T) {
	for in, want := range map[string]string{
		"#EXTINF:-1,Name": "Name", "#EXTINF:-1 a=\"x,y\" , N, M ": "N, M", "#EXTINF:-1": "", "#EXTINF:-1 a=\"x,y": "",
	} {
		if got := titleOf(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestReadPlaylist(t *testing.T) {
	file := filepath.Join(t.TempDir(), "list.m3u")
	if err := os.WriteFile(file, []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/list.m3u":
			http.ServeFile(w, r, file)
		case "/long.m3u":
			for range mostPlaylist / 1024 {
				w.Write([]byte(strings.Repeat("#", 1023) + "\n"))
			}
			w.Write([]byte("udp://239.1.1.1:5000\n"))
		default:
			http.NotFound(w, r)
		}
	}))
	defer s.Close()
	for _, from := range []string{file, s.URL + "/list.m3u"} {
		p, err := readPlaylist(t.Context(), from)
		n := 0
		for range p.entries {
			n++
		}
		if err != nil || n != 4 {
			t.Errorf("%s: %d channels, %v", from, n, err)
		}
	}
	for from, want := range map[string]string{s.URL + "/none.m3u": "404", s.URL + "/long.m3u": "too long", file + "x": "no such file"} {
		if _, err := readPlaylist(t.Context(), from); err == nil || !strings.Contains(err.Error(), want) && !os.IsNotExist(err) {
			t.Errorf("%s: %v, want %s", from, err, want)
		}
	}
}

func FuzzPlaylist(f *testing.F) {
	f.Add(list)
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePlaylist(strings.NewReader(s))
		if err != nil {
			return
		}
		write := func(p *playlist) string {
			var b strings.Builder
			p.write(&b, func(e *entry) string { return e.scheme + "://" + e.ch.String() })
			return b.String()
		}
		once := write(&p)
		again, err := parsePlaylist(strings.NewReader(once))
		if twice := write(&again); err != nil || once != twice {
			t.Fatalf("%v: %q, then %q", err, once, twice)
		}
	})
}
