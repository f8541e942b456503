// Relay puts multicast groups and channels behind HTTP, for players and phones,
// with a page to watch them. Run it with -h.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"example.com/mcast/examples/internal/cli"
	"example.com/mcast/examples/internal/incoming"
)

const usage = `Usage: relay [flags] [CHANNEL...]

Puts multicast groups and channels behind HTTP, for players:

  relay -list channels.m3u                           http://127.0.0.1:4022/ shows them
  relay -listen :4022 -list http://tv.lan/list.m3u   for the whole network
  relay 10.0.0.1@232.1.1.1:5000 239.1.1.1:5000       these two
  relay -i eth1 -allow 239.1.0.0/16                  any group of these, by eth1

  /udp/GROUP:PORT, /udp/SOURCE@GROUP:PORT, /rtp/...   a stream, as of udpxy
  /playlist.m3u   the list, with this relay's addresses
  /               a page that shows what arrives, and what is wrong
  /metrics        the same for Prometheus
  /healthz        200 while viewers are taken

A channel is joined for its first viewer and left after its last one. Requests
can join what is given, in the list or allowed, and nothing else. A group without
an interface (GROUP%eth1, or -i) is joined where the routing table says. A socket
that systemd passes on is used in place of -listen.

Where the network has no multicast, -amt receives each channel that is watched
through a tunnel to a relay of AMT (RFC 7450): to the one that is named, or, with
auto, to one that is looked for (RFC 8777) after 5s without a datagram. When the
network brings the channel after all, it is left in the tunnel, until the network
is silent for 10s; the next time for 20s, and never longer than a minute, or than
-amt-after.
`

func main() { cli.Main("relay", run) }

func parse(args []string, stdout io.Writer) (o options, err error) {
	fs := flag.NewFlagSet("relay", flag.ContinueOnError)
	fs.StringVar(&o.listen, "listen", "127.0.0.1:4022", "serve HTTP on this `address`; :4022 is for everyone who can reach this machine")
	fs.StringVar(&o.list, "list", "", "take channels from this M3U `file or URL`: udp:// and rtp://, names and logos are kept")
	fs.Func("allow", "let requests join the groups of this `prefix`, too; may be repeated, or a list with commas", func(s string) error {
		for one := range strings.SplitSeq(s, ",") {
			p, err := parsePrefix(strings.TrimSpace(one))
			if err != nil {
				return err
			}
			o.rules.prefixes = append(o.rules.prefixes, p)
		}
		return nil
	})
	fs.StringVar(&o.rules.ifname, "i", "", "join by this `interface` where none is named; it may come later")
	fs.StringVar(&o.amt, "amt", "", "receive through tunnels to this `relay` (name, address or ADDRESS:PORT) of AMT; auto: look for one")
	cli.Duration(fs, &o.after, "amt-after", "with -amt: hear the network, and after that `time` of silence a tunnel; 0: only the tunnel (default 0, with auto 5s)")
	o.linger, o.patience = 5*time.Second, viewerTime
	cli.Duration(fs, &o.linger, "linger", "leave a channel that `time` after its last viewer (default 5s)")
	fs.IntVar(&o.viewers, "viewers", 250, "serve at most this `number` of viewers")
	fs.IntVar(&o.channels, "channels", 50, "join at most this `number` of channels at once")
	channels, err := cli.Parse(fs, args, usage, stdout)
	if err != nil {
		return o, err
	}
	if o.amt == incoming.Auto && !cli.Given(fs, "amt-after") {
		o.after = 5 * time.Second
	}
	switch {
	case cli.Given(fs, "amt") && o.amt == "":
		return o, cli.Usagef("-amt is a relay, or auto")
	case cli.Given(fs, "amt-after") && o.amt == "":
		return o, cli.Usagef("-amt-after is for -amt")
	case o.amt != "" && o.after == 0 && o.rules.ifname != "":
		return o, cli.Usagef("a tunnel has no interface: leave out -i, or hear the network too (-amt-after)")
	case o.viewers < 1 || o.channels < 1:
		return o, cli.Usagef("-viewers and -channels are at least 1")
	case len(channels) == 0 && o.list == "" && len(o.rules.prefixes) == 0:
		return o, cli.Usagef("want channels, -list or -allow: nothing else can be watched")
	}
	for _, arg := range channels {
		ch, err := parseTarget(arg)
		if err != nil {
			return o, cli.Usagef("%w", err)
		}
		o.given = append(o.given, entry{ch: ch, scheme: scheme(arg)})
	}
	return o, nil
}

func run(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) error {
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	var list playlist
	if o.list != "" {
		if list, err = readPlaylist(ctx, o.list); err != nil {
			return fmt.Errorf("-list: %w", err)
		}
	}
	r := newRelay(o, list, slog.New(slog.NewTextHandler(stderr, nil)))
	if len(r.channels) == 0 && len(r.prefixes) == 0 {
		return errors.New("-list: there are no channels in it, udp:// or rtp://")
	}
	listeners, err := inherited()
	if err != nil {
		return err
	}
	if len(listeners) == 0 {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", o.listen)
		if err != nil {
			return fmt.Errorf("-listen %s: %w", o.listen, err)
		}
		listeners = append(listeners, l)
	}
	for _, l := range listeners {
		fmt.Fprintf(stdout, "serving %d channels on http://%s/\n", len(r.channels), l.Addr())
	}
	return r.serve(ctx, listeners)
}

// shutdownTime is how long viewers have to read the rest when the program ends.
const shutdownTime = 5 * time.Second

// serve serves until the context ends, and then shuts down: channels are left,
// viewers get what is there of them, and their connections end.
func (r *relay) serve(ctx context.Context, listeners []net.Listener) error {
	b := newBoard(r)
	server := &http.Server{
		Handler:           r.handler(b),
		ReadHeaderTimeout: headerTime,
		ReadTimeout:       replyTime,
		WriteTimeout:      replyTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    headerBytes,
		ErrorLog:          slog.NewLogLogger(r.log.Handler(), slog.LevelDebug),
	}
	var tasks sync.WaitGroup
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		tasks.Go(func() {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
			}
		})
	}
	tasks.Go(func() { b.run(r.ending) })
	r.tell("READY=1\nSTATUS=Serving")
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	r.tell("STOPPING=1")
	close(r.ending)
	r.close()
	over, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	if server.Shutdown(over) != nil {
		server.Close() // somebody does not read
	}
	tasks.Wait()
	return err
}

// tell tells systemd, which need not be there.
func (r *relay) tell(state string) {
	if err := notify(state); err != nil {
		r.log.Warn("cannot notify systemd", "error", err)
	}
}
