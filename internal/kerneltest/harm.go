//go:build !plan9

package kerneltest

import (
	"fmt"
	"slices"
)

// A HarmKind is what a request did that no program may do.
type HarmKind string

const (
	// Panic: the real kernel panics, and the machine with it.
	Panic HarmKind = "panic"

	// Undefined: the real kernel follows a pointer that was never set.
	Undefined HarmKind = "undefined"

	// Spoiled: a group was joined while its last leave was still unreported. Until
	// it is left again it answers no queries, or every request with a byte count.
	Spoiled HarmKind = "spoiled group"

	// LeftBehind: a membership of no sources remains, or was released: the count of
	// those who want the group is then wrong, and others lose it.
	LeftBehind HarmKind = "left behind"

	// Unaimed: a request names no interface, or one that there is not, so that it
	// reaches whichever membership comes first.
	Unaimed HarmKind = "unaimed"

	// Stolen: a request or a close changed what another socket has joined.
	Stolen HarmKind = "stolen"

	// Leaked: a membership outlives its socket.
	Leaked HarmKind = "leaked"

	// Overrun: the kernel writes past the end of the caller's memory.
	Overrun HarmKind = "overrun"

	// WrongMode: the mode of a filter changed before the request was judged.
	WrongMode HarmKind = "wrong mode"

	// Hidden: entries of the mode that is not in force remain and drop their sources.
	Hidden HarmKind = "hidden sources"

	// Unreliable: an option that does not work reliably on this system.
	Unreliable HarmKind = "unreliable"

	// Glued: an option that lets the system hand over several datagrams as one.
	Glued HarmKind = "glued"
)

// A Harm is a request that a program must never send to this system: one that
// loses a stream, touches what is another's, or takes the machine down.
type Harm struct {
	Kind HarmKind
	Text string
}

func (h Harm) String() string { return string(h.Kind) + ": " + h.Text }

func (k *Kernel) harm(kind HarmKind, format string, args ...any) {
	k.harms = append(k.harms, Harm{kind, fmt.Sprintf(format, args...)})
}

// Harms returns the harms done so far, in their order.
func (k *Kernel) Harms() []Harm {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.harms)
}

// Harmed returns Harms as text, each beginning with its kind; nil if there are none.
func (k *Kernel) Harmed() []string {
	var texts []string
	for _, h := range k.Harms() {
		texts = append(texts, h.String())
	}
	return texts
}
