package amt_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/netip"
	"os/signal"
	"syscall"
	"time"

	"example.com/mcast"
	"example.com/mcast/amt"
)

// A receiver is what a program needs that takes multicast from the network or
// out of a tunnel.
type receiver interface {
	Join(mcast.Group) error
	JoinSource(mcast.Group, netip.Addr) error
	Block(mcast.Group, netip.Addr) error
	Unblock(mcast.Group, netip.Addr) error
	Leave(mcast.Group) error
	LeaveSource(mcast.Group, netip.Addr) error
	SetFilter(mcast.Group, mcast.Mode, ...netip.Addr) error
	Memberships() []mcast.Membership
	ReadMessage(*mcast.Message) error
	ReadBatch([]mcast.Message) (int, error)
	SetReadDeadline(time.Time) error
	Close() error
}

var (
	_ receiver = (*mcast.Conn)(nil)
	_ receiver = (*amt.Gateway)(nil)
)

// A program that receives a channel through a relay until it is interrupted.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ch, err := mcast.ParseChannel("10.0.0.1@232.1.1.1:5000")
	if err != nil {
		log.Fatal(err)
	}

	dialling, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	g, err := amt.Dial(dialling, "relay.example.net", &amt.Config{
		Ports:   []int{ch.Port},
		OnEvent: func(e amt.Event) { log.Print(e.Kind, " ", e.Relay) },
	})
	if errors.Is(err, amt.ErrNoRelay) {
		log.Fatal("nobody answers there: ", err)
	}
	if err != nil {
		log.Fatal(err)
	}
	defer g.Close()
	if err := g.JoinSource(ch.Group, ch.Source); err != nil {
		log.Print(err)
		return
	}
	for m, err := range g.Messages(ctx, 1500) {
		if err != nil {
			log.Print(err)
			return
		}
		fmt.Printf("%d bytes from %v\n", m.N, m.Channel())
	}
}

// Without a relay's name, one is looked for with the first source.
func ExampleDial() {
	g, err := amt.Dial(context.Background(), "", &amt.Config{Methods: []amt.Method{amt.SourceRecord, amt.Anycast}})
	if err != nil {
		log.Fatal(err)
	}
	defer g.Close()
	group, err := mcast.ParseGroup("232.1.1.1")
	if err != nil {
		log.Fatal(err)
	}
	if err := g.JoinSource(group, netip.MustParseAddr("198.51.100.10")); err != nil {
		log.Fatal(err)
	}
	fmt.Println(g.Memberships()) // [232.1.1.1%amt INCLUDE{198.51.100.10} pending]
}
