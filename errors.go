package mcast

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// A request that may not follow the ones before it matches, with [errors.Is],
// exactly one of these and the error number that the system's own
// documentation gives for it; see [Rules].
var (
	// ErrJoined: the group, or the source of it, is already joined.
	ErrJoined = errors.New("already joined")
	// ErrNotJoined: there is no such membership, or no such source in it.
	ErrNotJoined = errors.New("not joined")
	// ErrBlocked: the source is already blocked.
	ErrBlocked = errors.New("already blocked")
	// ErrNotBlocked: the source is not blocked.
	ErrNotBlocked = errors.New("not blocked")
	// ErrMode: the request is for the other kind of membership, any-source
	// (EXCLUDE) or source-specific (INCLUDE).
	ErrMode = errors.New("wrong filter mode")
)

// A request that cannot be carried out matches one of these.
var (
	// ErrAddress: not a group, not a source, of the wrong family, or not the
	// group that the socket is bound to.
	ErrAddress = errors.New("unusable address")
	// ErrInterface: no such interface, or it is not clear which one.
	ErrInterface = errors.New("unusable interface")
	// ErrSSM: an any-source join of a source-specific group (RFC 4607).
	ErrSSM = errors.New("source-specific group")
	// ErrLimit: a limit of the system is reached; the text names the knob.
	ErrLimit = errors.New("system limit reached")
)

// An OpError says which operation failed, on which group and source, and why.
// All errors of this package are OpErrors, but those of reading and writing,
// which are [net.OpError]s.
type OpError struct {
	Op     string     // the function or method: "JoinSource"
	Group  Group      // the zero Group if none is concerned
	Source netip.Addr // the zero Addr if none is concerned
	Err    error
}

// Error returns a text such as
//
//	mcast: JoinSource 10.0.0.1@232.1.1.1%eth0: already joined: …
func (e *OpError) Error() string {
	var b strings.Builder
	b.WriteString("mcast: ")
	b.WriteString(e.Op)
	if e.Group != (Group{}) || e.Source.IsValid() {
		b.WriteByte(' ')
		if e.Source.IsValid() {
			fmt.Fprintf(&b, "%v@", e.Source)
		}
		b.WriteString(e.Group.String())
	}
	b.WriteString(": ")
	b.WriteString(e.Err.Error())
	return b.String()
}

// Unwrap returns e.Err.
func (e *OpError) Unwrap() error { return e.Err }

// Timeout reports whether the operation ran into a deadline.
func (e *OpError) Timeout() bool {
	var t interface{ Timeout() bool }
	return errors.As(e.Err, &t) && t.Timeout()
}

// A reason is what is wrong: one of the sentinels above or another well-known
// error, the system's own error if there is one, and what to do instead.
type reason struct {
	kind, cause error
	text        string
}

func because(kind error, format string, args ...any) error {
	return &reason{kind: kind, text: fmt.Sprintf(format, args...)}
}

func (r *reason) Error() string {
	s := r.kind.Error()
	if r.text != "" {
		s += ": " + r.text
	}
	if r.cause != nil {
		s += " (" + r.cause.Error() + ")"
	}
	return s
}

func (r *reason) Unwrap() []error {
	if r.cause == nil {
		return []error{r.kind}
	}
	return []error{r.kind, r.cause}
}
