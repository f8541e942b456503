package amt

import (
	"errors"
	"fmt"
	"net/netip"
)

// An EventKind says what happened to a tunnel.
type EventKind uint8

const (
	// EventRelayFound: a relay answered a Discovery, or was named by an AMTRELAY
	// record that needs none.
	EventRelayFound EventKind = iota + 1
	// EventTunnelUp: the relay takes memberships; it is told all of them.
	EventTunnelUp
	// EventRelayLost: the relay is silent, unreachable, or brings nothing; Err
	// says which. Another one is looked for, or the same one again.
	EventRelayLost
	// EventNewAddress: the relay sees the gateway at another address, Address,
	// than before. It is told all memberships again.
	EventNewAddress
	// EventRefused: the relay takes no new gateways (the L flag).
	EventRefused
)

var eventKinds = [...]string{"", "relay found", "tunnel up", "relay lost", "new address", "refused"}

// String returns a few words, such as "tunnel up".
func (k EventKind) String() string {
	if k == 0 || int(k) >= len(eventKinds) {
		return fmt.Sprintf("EventKind(%d)", uint8(k))
	}
	return eventKinds[k]
}

// An Event is something that happened to a tunnel.
type Event struct {
	Kind    EventKind
	Relay   netip.AddrPort
	Address netip.AddrPort // EventTunnelUp, EventNewAddress: where the relay sees the gateway; zero if it does not tell
	Err     error          // EventRelayLost, EventRefused: why
}

// What becomes of a relay.
var (
	// ErrRefused: the relay takes no new gateways.
	ErrRefused = errors.New("the relay takes no new gateways")
	// ErrNoRelay: no relay is known, or none of those that are answers.
	ErrNoRelay = errors.New("no relay")
)
