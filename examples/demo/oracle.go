package main

import "example.com/mcast"

// An oracle knows what should come of the script. It is the table in the
// library's documentation, written down once more; it shares no code with the
// library.
type oracle struct {
	speak  set // the senders that do send
	groups [numGroups]filter
}

// A filter is the membership of a group, as it should be.
type filter struct {
	state   string // "EXCLUDE", "INCLUDE", "": no membership
	sources set
}

// String returns the filter as "EXCLUDE{A}".
func (f filter) String() string {
	if f.state == "" {
		return ""
	}
	return f.state + "{" + f.sources.String() + "}"
}

// filters are those of all groups.
type filters [numGroups]string

// A hearing says who is heard on which group.
type hearing [numGroups]set

// ask returns what the answer should be. Only if that is nil has the filter
// changed.
func (o *oracle) ask(r request) error {
	f, err := o.groups[r.group].after(r)
	if err == nil {
		o.groups[r.group] = f
	}
	return err
}

func (f filter) after(r request) (filter, error) {
	if r.verb == "" {
		return f, nil
	}
	if r.sources == "G" {
		return f, mcast.ErrAddress
	}
	s := members(r.sources)
	in := false // the source, where there is one
	for i := range s {
		in = in || s[i] && f.sources[i]
	}
	put := func(in bool) (filter, error) {
		for i := range s {
			if s[i] {
				f.sources[i] = in
			}
		}
		if f.state == "INCLUDE" && f.sources == (set{}) {
			return filter{}, nil
		}
		return f, nil
	}
	switch r.verb + " on " + f.state {
	case "Join on ":
		if r.group == ssm {
			return f, mcast.ErrSSM
		}
		return filter{state: "EXCLUDE"}, nil
	case "Join on EXCLUDE":
		return f, mcast.ErrJoined

	case "JoinSource on ":
		return filter{"INCLUDE", s}, nil
	case "JoinSource on INCLUDE":
		if in {
			return f, mcast.ErrJoined
		}
		return put(true)
	case "LeaveSource on INCLUDE":
		if !in {
			return f, mcast.ErrNotJoined
		}
		return put(false)

	case "Block on EXCLUDE":
		if in {
			return f, mcast.ErrBlocked
		}
		return put(true)
	case "Unblock on EXCLUDE":
		if !in {
			return f, mcast.ErrNotBlocked
		}
		return put(false)

	case "Leave on EXCLUDE", "Leave on INCLUDE":
		return filter{}, nil

	case "Block on ", "Unblock on ", "Leave on ", "LeaveSource on ":
		return f, mcast.ErrNotJoined
	case "Join on INCLUDE", "Block on INCLUDE", "Unblock on INCLUDE",
		"JoinSource on EXCLUDE", "LeaveSource on EXCLUDE":
		return f, mcast.ErrMode

	case "SetFilter on ", "SetFilter on EXCLUDE", "SetFilter on INCLUDE":
		switch {
		case r.mode == mcast.Exclude && r.group == ssm:
			return f, mcast.ErrSSM
		case r.mode == mcast.Exclude:
			return filter{"EXCLUDE", s}, nil
		case s == set{}:
			return filter{}, nil
		}
		return filter{"INCLUDE", s}, nil
	}
	panic("the script has a request that the oracle does not know: " + r.verb)
}

// filters returns what the filters should be.
func (o *oracle) filters() (f filters) {
	for g := range o.groups {
		f[g] = o.groups[g].String()
	}
	return f
}

// hears returns who should be heard.
func (o *oracle) hears() (h hearing) {
	for g, f := range o.groups {
		for i := range h[g] {
			h[g][i] = o.speak[i] && (f.state == "EXCLUDE" && !f.sources[i] || f.state == "INCLUDE" && f.sources[i])
		}
	}
	return h
}
