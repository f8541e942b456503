package main

import (
	"strings"

	"example.com/mcast"
)

// Groups and senders go by these names. The script and the oracle know no
// others; the lab has their addresses.
var (
	groupNames  = [numGroups]string{"G", "S"}
	senderNames = [numSenders]string{"A", "B", "C"}
)

const (
	anySource  = 0 // G
	ssm        = 1 // S
	numGroups  = 2
	numSenders = 3
)

// A request of the script.
type request struct {
	verb    string // a method of mcast.Conn, or "": none
	group   int
	sources string     // "A", of SetFilter also "", "AB", …; "G": the group, which is no source
	mode    mcast.Mode // of SetFilter
}

func (r request) String() string {
	switch {
	case r.verb == "":
		return "(none)"
	case r.verb == "SetFilter":
		return "SetFilter " + groupNames[r.group] + " " + r.mode.String() + "{" + r.sources + "}"
	case r.sources == "":
		return r.verb + " " + groupNames[r.group]
	}
	return r.verb + " " + r.sources + "@" + groupNames[r.group]
}

// A set of senders.
type set [numSenders]bool

// members gives the set of the senders in a string such as "AC".
func members(s string) (in set) {
	for i, name := range senderNames {
		in[i] = strings.Contains(s, name)
	}
	return in
}

// String returns the set as "AC".
func (in set) String() (s string) {
	for i, name := range senderNames {
		if in[i] {
			s += name
		}
	}
	return s
}

// A part of the script has a title.
type part struct {
	title    string
	requests []request
}

// A is the sender that every machine has, so that the script is about A first.
var script = []part{
	{"Without a membership nobody is heard, though the witness hears them all.", []request{
		{},
		{verb: "Block", group: anySource, sources: "A"},
		{verb: "LeaveSource", group: ssm, sources: "A"},
	}},
	{"A group from any source, less those that are blocked.", []request{
		{verb: "Join", group: anySource},
		{verb: "Join", group: anySource},
		{verb: "Block", group: anySource, sources: "A"},
		{verb: "Block", group: anySource, sources: "A"},
		{verb: "Unblock", group: anySource, sources: "B"},
		{verb: "Block", group: anySource, sources: "B"},
		{verb: "Unblock", group: anySource, sources: "A"},
		{verb: "Unblock", group: anySource, sources: "B"},
		{verb: "JoinSource", group: anySource, sources: "A"},
		{verb: "LeaveSource", group: anySource, sources: "A"},
	}},
	{"Channels, a group from one source each, beside it.", []request{
		{verb: "Join", group: ssm},
		{verb: "JoinSource", group: ssm, sources: "A"},
		{verb: "JoinSource", group: ssm, sources: "A"},
		{verb: "Leave", group: anySource},
		{verb: "Leave", group: anySource},
		{verb: "JoinSource", group: ssm, sources: "B"},
		{verb: "LeaveSource", group: ssm, sources: "C"},
		{verb: "Join", group: ssm},
		{verb: "Block", group: ssm, sources: "A"},
		{verb: "Unblock", group: ssm, sources: "A"},
		{verb: "LeaveSource", group: ssm, sources: "A"},
		{verb: "JoinSource", group: ssm, sources: "A"},
		{verb: "LeaveSource", group: ssm, sources: "B"},
		{verb: "LeaveSource", group: ssm, sources: "A"},
		{verb: "LeaveSource", group: ssm, sources: "A"},
	}},
	{"A whole filter at once, whatever it was.", []request{
		{verb: "SetFilter", group: anySource, mode: mcast.Exclude, sources: "A"},
		{verb: "SetFilter", group: anySource, mode: mcast.Include, sources: "AC"},
		{verb: "SetFilter", group: ssm, mode: mcast.Include, sources: "B"},
		{verb: "SetFilter", group: anySource, mode: mcast.Exclude},
		{verb: "SetFilter", group: ssm, mode: mcast.Include, sources: "ABC"},
		{verb: "SetFilter", group: anySource, mode: mcast.Include},
		{verb: "Leave", group: ssm},
	}},
	{"Requests that cannot be.", []request{
		{verb: "Join", group: ssm},
		{verb: "SetFilter", group: ssm, mode: mcast.Exclude, sources: "A"},
		{verb: "JoinSource", group: anySource, sources: "G"},
	}},
}
