// Package incoming has the interfaces of a program that takes multicast from the
// network or out of a tunnel, whichever there is.
package incoming

import (
	"context"
	"iter"
	"net/netip"
	"time"

	"example.com/mcast"
	"example.com/mcast/amt"
)

// Auto is the relay of -amt that is looked for.
const Auto = "auto"

// DialAgain is how long a relay is left alone that did not answer.
const DialAgain = 30 * time.Second

// Relay is what to dial for the value of -amt.
func Relay(flag string) string {
	if flag == Auto {
		return ""
	}
	return flag
}

// Requests say what is to be heard.
type Requests interface {
	Join(g mcast.Group) error
	JoinSource(g mcast.Group, source netip.Addr) error
	Block(g mcast.Group, source netip.Addr) error
	Unblock(g mcast.Group, source netip.Addr) error
	Leave(g mcast.Group) error
	LeaveSource(g mcast.Group, source netip.Addr) error
	SetFilter(g mcast.Group, mode mcast.Mode, sources ...netip.Addr) error
	Memberships() []mcast.Membership
}

// Join joins a channel, or a group from any source.
func Join(r Requests, ch mcast.Channel) error {
	if ch.Source.IsValid() {
		return r.JoinSource(ch.Group, ch.Source)
	}
	return r.Join(ch.Group)
}

// A Receiver is where datagrams come from.
type Receiver interface {
	Requests
	ReadMessage(m *mcast.Message) error
	ReadBatch(ms []mcast.Message) (int, error)
	Messages(ctx context.Context, size int) iter.Seq2[*mcast.Message, error]
	SetReadDeadline(t time.Time) error
	Repair() error
	Close() error
}

var (
	_ Receiver = (*mcast.Conn)(nil)
	_ Receiver = (*mcast.Pool)(nil)
	_ Receiver = (*amt.Gateway)(nil)
	_ Requests = (*mcast.Members)(nil)
)
