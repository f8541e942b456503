package cmsg

// Count says how many datagrams n bytes are, if all but the last have segment
// bytes. A segment of 0 says that they are one.
func Count(n, segment int) int {
	if segment <= 0 || n <= segment {
		return 1
	}
	return (n-1)/segment + 1
}

// Segment gives the payload of the datagram that starts at a place in b, and
// where the one behind it does: at len(b) if there is none.
func Segment(b []byte, segment, at int) (payload []byte, next int) {
	next = len(b)
	if segment > 0 && segment < len(b)-at {
		next = at + segment
	}
	return b[at:next], next
}
