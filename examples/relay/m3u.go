package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"example.com/mcast"
)

// A playlist is an M3U file. What is not about channels of this relay is kept as
// it is.
type playlist struct {
	lines []playlistLine
}

type playlistLine struct {
	text  string
	entry *entry // of a URL of a channel; else nil
}

// An entry is a channel with what a list says of it.
type entry struct {
	ch     mcast.Channel
	scheme string // "udp" or "rtp"
	name   string
}

const (
	mostPlaylist = 8 << 20 // bytes
	fetchTime    = 20 * time.Second
)

// readPlaylist reads a list from a file or an HTTP server.
func readPlaylist(ctx context.Context, from string) (playlist, error) {
	if !strings.HasPrefix(from, "http://") && !strings.HasPrefix(from, "https://") {
		f, err := os.Open(from)
		if err != nil {
			return playlist{}, err
		}
		defer f.Close()
		return parsePlaylist(f)
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return playlist{}, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return playlist{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return playlist{}, fmt.Errorf("%s: %s", from, resp.Status)
	}
	return parsePlaylist(resp.Body)
}

// parsePlaylist parses a list. URLs that are not multicast stay what they are.
func parsePlaylist(r io.Reader) (p playlist, err error) {
	limited := &io.LimitedReader{R: r, N: mostPlaylist + 1}
	sc := bufio.NewScanner(limited)
	sc.Buffer(nil, mostPlaylist)
	name := ""
	for sc.Scan() {
		text := strings.TrimSpace(strings.TrimPrefix(sc.Text(), "\ufeff"))
		line := playlistLine{text: text}
		switch {
		case strings.HasPrefix(text, "#EXTINF:"):
			name = titleOf(text)
		case text == "" || strings.HasPrefix(text, "#"):
		default:
			if isMulticastURL(text) {
				if ch, err := parseTarget(text); err == nil {
					line.entry = &entry{ch: ch, scheme: scheme(text), name: name}
				}
			}
			name = ""
		}
		p.lines = append(p.lines, line)
	}
	if err := sc.Err(); err != nil {
		return p, err
	}
	if limited.N <= 0 {
		return p, errors.New("the list is too long")
	}
	return p, nil
}

// isMulticastURL reports whether a line could be a channel's.
func isMulticastURL(s string) bool {
	scheme, _, _ := strings.Cut(s, "://")
	return strings.EqualFold(scheme, "udp") || strings.EqualFold(scheme, "rtp")
}

// titleOf returns what stands behind the first comma of a line that is not in
// quotes: attributes may have commas.
func titleOf(extinf string) string {
	quoted := false
	for i, c := range extinf {
		switch {
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			return strings.TrimSpace(extinf[i+1:])
		}
	}
	return ""
}

// entries yields the channels of the list.
func (p *playlist) entries(yield func(*entry) bool) {
	for _, l := range p.lines {
		if l.entry != nil && !yield(l.entry) {
			return
		}
	}
}

// add appends a channel.
func (p *playlist) add(e *entry) {
	name := e.name
	if name == "" {
		name = e.ch.String()
	}
	p.lines = append(p.lines, playlistLine{text: "#EXTINF:-1," + name}, playlistLine{text: e.ch.String(), entry: e})
}

// write writes the list, in which channels are where url says.
func (p *playlist) write(w io.Writer, url func(*entry) string) error {
	b := bufio.NewWriter(w)
	if len(p.lines) == 0 || !strings.HasPrefix(p.lines[0].text, "#EXTM3U") {
		b.WriteString("#EXTM3U\n")
	}
	for _, l := range p.lines {
		text := l.text
		if l.entry != nil {
			text = url(l.entry)
		}
		b.WriteString(text)
		b.WriteByte('\n')
	}
	return b.Flush()
}
