//go:build !plan9

package kerneltest

import (
	"net/netip"
	"slices"
	"syscall"
)

// A record is what a BSD host knows of one group on one interface, all sockets
// together: struct in_multi. It counts in 16 bits and never looks at the sockets
// again, so a count that is wrong once stays wrong.
type record struct {
	dev     *device
	group   netip.Addr // link-local ones with their interface, as the kernel keeps them
	state   [2]recordState
	sources []recordSource // sorted

	requests int  // memberships, and a leave that is not reported yet
	attached bool // the host receives the group

	// What is said of it to the network.
	member   memberState
	again    int // copies of the report still to send
	timer    int // runs until the next
	packets  []packet
	leavings int // leaves whose reports keep the record
}

// A recordState is how many sockets have which filter, before or after a change:
// struct inm_st.
type recordState struct {
	mode    bsdMode
	any     uint16 // EXCLUDE()
	exclude uint16
	include uint16
}

// A recordSource is how many sockets exclude and include one source: struct
// ip_msource.
type recordSource struct {
	source netip.Addr
	state  [2]struct{ exclude, include uint16 }
}

// mode is ims_get_mode: a source is excluded if all exclude it, and included if one
// includes it and none excludes it.
func (r *record) mode(s *recordSource, t int) bsdMode {
	switch {
	case r.state[t].exclude > 0 && r.state[t].exclude == s.state[t].exclude:
		return exclude
	case s.state[t].include > 0 && s.state[t].exclude == 0:
		return include
	}
	return undefined
}

// record returns the attached record of a group on a device.
func (k *Kernel) record(d *device, group netip.Addr) *record {
	for _, r := range k.records {
		if r.dev == d && r.group == group {
			return r
		}
	}
	return nil
}

// acquire is in_getmulti.
func (k *Kernel) acquire(d *device, group netip.Addr) *record {
	r := k.record(d, group)
	if r == nil {
		r = &record{dev: d, group: group, attached: true}
		k.records = slices.Insert(k.records, 0, r)
	}
	r.requests++
	return r
}

// release is in_multi_detach.
func (k *Kernel) release(r *record) {
	if r.requests == 0 {
		k.panics("the record of %v%%%d is released once more than it was taken", r.group, r.dev.index)
		return
	}
	if r.requests--; r.requests == 0 {
		r.attached = false
		k.records = slices.DeleteFunc(k.records, func(x *record) bool { return x == r })
	}
}

// source returns the place of a source and makes one where there is room:
// inm_get_source. It is -1 where there is none.
func (r *record) source(a netip.Addr, most int) int {
	i, ok := slices.BinarySearchFunc(r.sources, a, func(s recordSource, a netip.Addr) int {
		return s.source.Compare(a)
	})
	if !ok {
		if len(r.sources) >= most {
			return -1
		}
		r.sources = slices.Insert(r.sources, i, recordSource{source: a})
	}
	return i
}

// move counts a source out of one mode and into another, n times: ims_merge.
func (s *recordSource) move(from, to bsdMode, n uint16) {
	now := &s.state[1]
	switch from {
	case exclude:
		now.exclude -= n
	case include:
		now.include -= n
	}
	switch to {
	case exclude:
		now.exclude += n
	case include:
		now.include += n
	}
}

// merge counts what changed in a socket's filter: inm_merge. Where the sources of
// all sockets reach the limit it fails, having counted some of them: XNU then takes
// back the wrong ones, and FreeBSD goes by a pointer that may never have been set.
func (k *Kernel) merge(r *record, f *bsdFilter) syscall.Errno {
	var before, after, changed int
	last := -1
	for _, e := range f.entries {
		if e.mode[0] == f.mode[0] {
			before++
		}
		if e.mode[1] == f.mode[1] {
			after++
		}
		if e.mode[0] == e.mode[1] {
			continue
		}
		changed++
		i := r.source(e.source, k.MaxGroup)
		if i < 0 {
			r.unmerge(last)
			r.reap()
			if k.sys == freebsd {
				k.harm(Undefined, "%d sources of %v%%%d are known and %v is one more", len(r.sources), r.group, r.dev.index, e.source)
			}
			return bsdENOSPC
		}
		last = i
		r.sources[i].move(e.mode[0], e.mode[1], 1)
	}
	now := &r.state[1]
	if f.mode == [2]bsdMode{include, include} && after == 0 {
		now.include--
	}
	if f.mode[0] != f.mode[1] {
		switch f.mode[0] {
		case exclude:
			now.exclude--
		case include:
			now.include--
		}
		switch {
		case f.mode[1] == exclude:
			now.exclude++
		case f.mode[1] == include && after > 0:
			now.include++
		}
	}
	switch {
	case now.exclude > 0:
		now.mode = exclude
	case now.include > 0:
		now.mode = include
	default:
		now.mode = undefined
	}
	if f.mode[0] == exclude && before == 0 && (f.mode[1] != exclude || after > 0) {
		now.any--
	}
	if f.mode[1] == exclude && after == 0 {
		now.any++
	}
	if changed > 0 {
		r.reap()
	}
	return 0
}

// unmerge is how a failed merge is taken back: it walks from the last source that
// was counted to the first of the record, not of the filter, and reads each as if
// it were a filter's entry. The two modes of that entry are then the two bytes of
// how many sockets excluded the source before.
func (r *record) unmerge(last int) {
	for i := last; i >= 0; i-- {
		count := r.sources[i].state[0].exclude
		from, to := bsdMode(count&0xff), bsdMode(count>>8)
		if from != to {
			r.sources[i].move(from, to, ^uint16(0))
		}
	}
}

// commit makes what is asked for what was reported: inm_commit.
func (r *record) commit() {
	for i := range r.sources {
		r.sources[i].state[0] = r.sources[i].state[1]
	}
	r.state[0] = r.state[1]
}

// reap forgets sources that nobody has or had: inm_reap.
func (r *record) reap() {
	r.sources = slices.DeleteFunc(r.sources, func(s recordSource) bool {
		return s.state[0].exclude == 0 && s.state[0].include == 0 && s.state[1].exclude == 0 && s.state[1].include == 0
	})
}

// panics notes that the real kernel would be no more.
func (k *Kernel) panics(format string, args ...any) {
	k.dead = true
	k.harm(Panic, format, args...)
}
