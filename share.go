package mcast

import (
	"errors"
	"net/netip"
	"slices"
)

// shares reports whether a group, of which this socket has so many memberships
// with this one, has others in a kernel that applies the filter of one to what
// comes in by all interfaces.
func (q *requests) shares(g Group, had bool, on int) bool {
	if q.via != nil || !q.ipv6 || !q.kernel.oneFilter {
		return false
	}
	return had && on > 1 || !had && on > 0 || q.wide[g]
}

// share changes one of several memberships of a group where the kernel applies
// one filter to all. Each gets the union of all, so that none loses what it
// lets through; the read path tells the interfaces apart.
func (q *requests) share(m Membership) (err error) {
	var before, then []Membership
	had := Membership{Group: m.Group}
	for _, i := range q.filter.interfaces(m.Group.Addr) {
		switch x := q.filter.membership(Group{m.Group.Addr, i}); {
		case x.Pending:
		case i == m.Group.Interface:
			had, before = x, append(before, x)
		default:
			before, then = append(before, x), append(then, x)
		}
	}
	if !m.none() {
		then = append(then, m)
	}
	// On the way the others have both filters. What they have too much does no
	// harm, and so it is no error if they keep it.
	was, is := union(before), union(then)
	both := union([]Membership{was, is})
	var done []Group
	for _, x := range before {
		if x.Group == m.Group {
			continue
		}
		err := q.tell(x.Group, was, both)
		if err != nil && !errors.Is(err, ErrInterface) { // of an interface that is gone nothing is heard
			for _, g := range done {
				q.tell(g, both, was)
			}
			return err
		}
		if err == nil {
			done = append(done, x.Group)
		}
	}
	from, to := was, is
	if had.none() {
		from = Membership{}
	}
	if m.none() {
		to = Membership{}
	}
	if err = q.tell(m.Group, from, to); err != nil {
		is = was
	}
	for _, g := range done {
		q.tell(g, both, is)
	}
	return err
}

// tell replaces what the kernel has of a group.
func (q *requests) tell(g Group, from, to Membership) (err error) {
	from.Group, to.Group = g, g
	if to.none() {
		delete(q.wide, g)
		return q.kernel.leave(g, false)
	}
	if q.wide[g] {
		switch from, err = q.kernel.full(g); {
		case errors.Is(err, errors.ErrUnsupported): // start anew
			q.kernel.undo(g)
			from = Membership{Group: g}
		case err != nil:
			return q.kernel.explainFull(to, err)
		}
	}
	now, err := q.kernel.setFull(from, to, q.filter.len())
	switch {
	case err == nil:
		delete(q.wide, g)
	case now.none(): // not made, or lost on the way
		q.filter.Set(Membership{Group: g})
		delete(q.places, g)
		delete(q.wide, g)
	default:
		if q.wide == nil {
			q.wide = make(map[Group]bool)
		}
		q.wide[g] = true
	}
	return err
}

// union is the filter that lets through what any of the memberships does (RFC
// 3376 section 3.2).
func union(ms []Membership) (u Membership) {
	for _, m := range ms {
		both := func(s netip.Addr) bool { return slices.Contains(u.Sources, s) }
		switch {
		case u.none():
			u = Membership{Mode: m.Mode, Sources: slices.Clone(m.Sources)}
		case u.Mode == Include && m.Mode == Include:
			u.Sources = append(u.Sources, m.Sources...)
		case u.Mode == Include: // all but those blocked that are not in the other
			u = Membership{Mode: Exclude, Sources: slices.DeleteFunc(slices.Clone(m.Sources), both)}
		case m.Mode == Include:
			u.Sources = slices.DeleteFunc(u.Sources, func(s netip.Addr) bool { return slices.Contains(m.Sources, s) })
		default:
			u.Sources = slices.DeleteFunc(slices.Clone(m.Sources), func(s netip.Addr) bool { return !both(s) })
		}
	}
	slices.SortFunc(u.Sources, netip.Addr.Compare)
	u.Sources = slices.Compact(u.Sources)
	return u
}

// after is a membership after a request.
func after(m Membership, r Request) Membership {
	var f Filter
	f.Set(m)
	f.Apply(r)
	return f.membership(m.Group)
}
