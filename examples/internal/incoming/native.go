package incoming

import "time"

// The least and the longest silence after which a channel is missing that the
// network has brought before.
const (
	leastAgain = 10 * time.Second
	mostAgain  = time.Minute
)

// Native is a channel's reception from the network, in a program that receives
// through a tunnel what is missing there. Its methods may not be called
// concurrently.
type Native struct {
	after   time.Duration // of silence at first
	wait    time.Duration // of silence now
	heard   time.Time     // last, or when reception began
	missing bool
}

// NewNative returns the reception of a channel that is missing after that time
// of silence, which begins now.
func NewNative(after time.Duration, now time.Time) *Native {
	return &Native{after: after, wait: after, heard: now}
}

// Missing reports whether the network does not bring the channel.
func (n *Native) Missing() bool { return n.missing }

// Heard notes a datagram from the network, and reports whether the channel was
// missing until then.
//
// Each time it was, a longer silence is needed next: a sender that pauses must
// not have the tunnel joined and left for each of its datagrams.
func (n *Native) Heard(now time.Time) bool {
	n.heard = now
	if !n.missing {
		return false
	}
	n.missing = false
	n.wait = max(n.after, min(max(2*n.wait, leastAgain), mostAgain))
	return true
}

// Silent reports whether the channel is missing from now on: it was not until
// now, and the silence is long enough.
func (n *Native) Silent(now time.Time) bool {
	if n.missing || now.Sub(n.heard) < n.wait {
		return false
	}
	n.missing = true
	return true
}

// Look is how often to ask whether a channel is silent.
func Look(after time.Duration) time.Duration {
	return max(min(after, time.Second), time.Millisecond)
}
