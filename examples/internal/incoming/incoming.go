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
