package main

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"time"

	"example.com/mcast"
	"example.com/mcast/amt"
	"example.com/mcast/examples/internal/incoming"
)

// A tunnel is what came of asking a relay of AMT for the group.
type tunnel struct {
	Asked  string         `json:"asked"`           // name, address, or "auto": one that is looked for
	Relay  netip.AddrPort `json:"relay,omitzero"`  // that answered; invalid: none
	Source netip.Addr     `json:"source,omitzero"` // that was heard first; invalid: nothing was
	Port   uint16         `json:"port,omitempty"`  // that it sends to
	Error  string         `json:"error,omitempty"`
}

// relayTime is how long a relay has to answer.
const relayTime = 10 * time.Second

// askAll asks relays, after silence.
func (f *facts) askAll(ctx context.Context, relays []string, d time.Duration) {
	for _, relay := range relays {
		if f.Heard.Received == 0 && ctx.Err() == nil {
			f.Tunnels = append(f.Tunnels, f.ask(ctx, relay, d))
		}
	}
}

// ask joins through a tunnel, and listens until something is heard, or the time
// is over.
func (f *facts) ask(ctx context.Context, relay string, d time.Duration) (t tunnel) {
	t.Asked = relay
	up := make(chan netip.AddrPort, 1)
	cfg := &amt.Config{AnySource: true, OnEvent: func(e amt.Event) {
		if e.Kind == amt.EventTunnelUp {
			select {
			case up <- e.Relay:
			default:
			}
		}
	}}
	if f.Port != 0 {
		cfg.Ports = []int{int(f.Port)}
	}
	dialling, cancel := context.WithTimeout(ctx, relayTime)
	defer cancel()
	g, err := amt.Dial(dialling, incoming.Relay(relay), cfg)
	if err == nil {
		defer g.Close()
		err = incoming.Join(g, mcast.Channel{Group: mcast.Group{Addr: f.Group}, Source: f.Source})
	}
	if err != nil {
		var op *mcast.OpError
		if errors.As(err, &op) {
			err = op.Err // the operation does not help here
		}
		t.Error = err.Error()
		return t
	}
	select {
	case t.Relay = <-up:
	case <-dialling.Done():
		t.Error = amt.ErrNoRelay.Error()
		return t
	}
	g.SetReadDeadline(time.Now().Add(d))
	defer context.AfterFunc(ctx, func() { g.SetReadDeadline(time.Unix(1, 0)) })() // long ago: wakes the reader
	m := mcast.Message{Buf: make([]byte, 64)}                                     // the payload does not matter
	if g.ReadMessage(&m) == nil {
		t.Source, t.Port = m.Source.Addr(), uint16(m.Port)
	}
	return t
}

// checkTunnels says who would bring what the network does not.
func checkTunnels(f *facts) (all []finding) {
	for _, t := range f.Tunnels {
		if !t.Relay.IsValid() {
			all = append(all, say(note, nil, "no multicast here, and no tunnel by the relay %s: %s", t.Asked, t.Error)...)
			continue
		}
		if !t.Source.IsValid() {
			all = append(all, say(note, nil, "no multicast here; a relay answers at %v, but brings nothing of %s in %v either", t.Relay, f.channel(), f.duration())...)
			continue
		}
		to := netip.AddrPortFrom(f.Group, cmp.Or(f.Port, t.Port)).String()
		if f.Source.IsValid() || f.ssm() {
			to = t.Source.String() + "@" + to
		}
		fix := commands(shell("recv", "-amt", t.Relay.String(), to))
		all = append(all, say(note, fix, "no multicast here; a relay answers at %v, and brings what %v sends: receive through a tunnel", t.Relay, t.Source)...)
	}
	return all
}
