package mcast_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"

	"example.com/mcast"
)

// A Listener is what a program needs of a [mcast.Conn] or a [mcast.Pool]: it
// declares that itself, and its tests need no socket.
type Listener interface {
	JoinSource(g mcast.Group, source netip.Addr) error
	Messages(ctx context.Context, size int) iter.Seq2[*mcast.Message, error]
}

var _, _ Listener = (*mcast.Conn)(nil), (*mcast.Pool)(nil)

// Longest is the program's own code: it joins a channel, and says how long its
// longest datagram was.
func Longest(ctx context.Context, l Listener, ch mcast.Channel) (longest int, err error) {
	if err := l.JoinSource(ch.Group, ch.Source); err != nil {
		return 0, err
	}
	for m, err := range l.Messages(ctx, 1500) {
		if err != nil {
			return longest, err
		}
		longest = max(longest, m.N)
	}
	return longest, nil
}

// A Fake is a Listener that hears what a test gives it. Its Filter refuses and
// lets through what that of a Conn does.
type Fake struct {
	mcast.Filter
	Arriving []mcast.Message
}

func (f *Fake) JoinSource(g mcast.Group, source netip.Addr) error {
	return f.Apply(mcast.Request{Op: mcast.OpJoinSource, Group: g, Source: source})
}

func (f *Fake) Messages(context.Context, int) iter.Seq2[*mcast.Message, error] {
	return func(yield func(*mcast.Message, error) bool) {
		for i := range f.Arriving {
			m := &f.Arriving[i]
			if f.Allows(m.Group, m.Source.Addr()) && !yield(m, nil) {
				return
			}
		}
	}
}

// A test without a network: an interface on the consumer's side, and a fake
// that has a Filter.
func Example_testing() {
	ch, _ := mcast.ParseChannel("10.0.0.1@232.1.1.1%eth0:5000")
	fake := &Fake{Arriving: []mcast.Message{
		{N: 100, Group: ch.Group, Source: netip.MustParseAddrPort("10.0.0.1:9")},
		{N: 200, Group: ch.Group, Source: netip.MustParseAddrPort("10.0.0.1:9")},
		{N: 300, Group: ch.Group, Source: netip.MustParseAddrPort("10.0.0.2:9")}, // not joined
	}}
	fmt.Println(Longest(context.Background(), fake, ch))
	_, err := Longest(context.Background(), fake, ch)
	fmt.Println("again, joined already:", errors.Is(err, mcast.ErrJoined))
	// Output:
	// 200 <nil>
	// again, joined already: true
}
