package main

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"example.com/mcast"
)

// Times of the HTTP server.
const (
	headerTime = 5 * time.Second  // for a request's header
	replyTime  = 20 * time.Second // for all replies but streams
	idleTime   = time.Minute      // between two requests
	viewerTime = 10 * time.Second // a viewer, or page, that takes nothing for that long is dropped

	headerBytes = 16 << 10
	pageViewers = 100 // pages open at once, at most
)

//go:embed page/index.html page/page.css page/page.js
var page embed.FS

// Counters are what happened to requests since the program began.
type counters struct {
	viewers      atomic.Int64 // now
	pages        atomic.Int64 // now
	started      atomic.Uint64
	dropped      atomic.Uint64 // viewers that took nothing
	sent         atomic.Uint64 // bytes
	skipped      atomic.Uint64 // bytes that were not sent to viewers that are slow
	bad          atomic.Uint64 // requests, by why they were refused
	forbidden    atomic.Uint64
	busyViewers  atomic.Uint64
	busyChannels atomic.Uint64
	failed       atomic.Uint64
}

// handler answers requests.
func (r *relay) handler(b *board) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /udp/{channel...}", r.serveStream)
	mux.HandleFunc("GET /rtp/{channel...}", r.serveStream)
	mux.HandleFunc("GET /playlist.m3u", r.servePlaylist)
	mux.HandleFunc("GET /metrics", r.serveMetrics)
	mux.HandleFunc("GET /healthz", r.serveHealth)
	mux.HandleFunc("GET /events", b.serve)
	for path, file := range map[string]string{"/{$}": "page/index.html", "/page.css": "page/page.css", "/page.js": "page/page.js"} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Cache-Control", "no-cache")
			http.ServeFileFS(w, req, page, file)
		})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		mux.ServeHTTP(w, req)
	})
}

// refuse answers a request that is not served, in words.
func refuse(w http.ResponseWriter, code int, n *atomic.Uint64, err error) {
	n.Add(1)
	if code == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "5")
	}
	http.Error(w, err.Error(), code)
}

// serveStream is /udp/ and /rtp/, which are the same: a datagram shows what it
// is.
func (r *relay) serveStream(w http.ResponseWriter, req *http.Request) {
	asked := req.PathValue("channel")
	if s := req.URL.Query().Get("sources"); s != "" {
		asked += "?sources=" + url.QueryEscape(s)
	}
	ch, err := parseTarget("udp://" + asked)
	if err != nil {
		refuse(w, http.StatusBadRequest, &r.counts.bad, fmt.Errorf("want /udp/GROUP:PORT or /udp/SOURCE@GROUP:PORT: %w", err))
		return
	}
	if ch, err = r.resolve(ch); err != nil {
		refuse(w, http.StatusForbidden, &r.counts.forbidden, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "video/mp2t")
	h.Set("Cache-Control", "no-store")
	if req.Method == http.MethodHead {
		return
	}
	if r.counts.viewers.Add(1) > int64(r.options.viewers) {
		r.counts.viewers.Add(-1)
		h.Del("Cache-Control")
		refuse(w, http.StatusServiceUnavailable, &r.counts.busyViewers, errors.New("too many viewers: see -viewers"))
		return
	}
	defer r.counts.viewers.Add(-1)
	c, rx, err := r.watch(entry{ch: ch, scheme: strings.Split(req.URL.Path, "/")[1]})
	if err != nil {
		why := &r.counts.failed
		if errors.Is(err, errBusy) {
			why = &r.counts.busyChannels
		}
		refuse(w, http.StatusServiceUnavailable, why, err)
		return
	}
	defer c.release()
	r.counts.started.Add(1)
	if err := r.send(w, req, rx.hub); err != nil {
		r.counts.dropped.Add(1)
		c.log.Info("viewer dropped", "viewer", req.RemoteAddr, "error", err)
	}
}

// send sends a stream until the viewer goes, which is no error, takes nothing
// any more, or there is no more.
func (r *relay) send(w http.ResponseWriter, req *http.Request, h *hub) error {
	rc := http.NewResponseController(w)
	// As they are, until the connection ends: not all players know chunks.
	w.Header().Set("Transfer-Encoding", "identity")
	w.WriteHeader(http.StatusOK)
	write := func(b []byte) error {
		rc.SetWriteDeadline(time.Now().Add(r.options.patience))
		_, err := w.Write(b)
		if err == nil {
			err = rc.Flush()
		}
		return err
	}
	at := h.live()
	err := write(nil)
	for err == nil {
		b, skipped, more := h.read(at)
		switch {
		case b != nil:
			if err = write(b); err == nil {
				at += skipped + uint64(len(b))
				r.counts.sent.Add(uint64(len(b)))
				r.counts.skipped.Add(skipped)
			}
		case more == nil:
			return nil
		default:
			select {
			case <-more:
			case <-req.Context().Done():
				return nil
			}
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("it takes nothing any more")
	}
	return nil
}

// servePlaylist gives the list with this relay's addresses.
func (r *relay) servePlaylist(w http.ResponseWriter, req *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "audio/x-mpegurl; charset=utf-8")
	h.Set("Cache-Control", "no-cache")
	base := "http://" + req.Host
	if local, ok := req.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && req.Host == "" { // HTTP/1.0
		base = "http://" + local.String()
	}
	r.playlist.write(w, func(e *entry) string { return base + r.path(e) })
}

// path is where a channel of the list is.
func (r *relay) path(e *entry) string { return pathOf(e.scheme, r.short(e.ch)) }

// serveHealth says whether the relay takes viewers.
func (r *relay) serveHealth(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	closed := r.closed
	r.mu.Unlock()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if closed {
		w.WriteHeader(http.StatusServiceUnavailable)
		io.WriteString(w, "shutting down\n")
		return
	}
	io.WriteString(w, "ok\n")
}

var _ receiver = (*mcast.Conn)(nil)
