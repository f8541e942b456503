package amt

import (
	"net/netip"
	"slices"
)

// A sourceFilter is what a tunnel is to bring of one group: all sources but
// these (EXCLUDE), or these alone (INCLUDE). INCLUDE without sources, the zero
// sourceFilter, is no membership (RFC 3376 section 3.1).
type sourceFilter struct {
	exclude bool
	sources []netip.Addr // sorted
}

func (f sourceFilter) none() bool { return !f.exclude && len(f.sources) == 0 }

// hears reports whether the filter lets a source through.
func (f sourceFilter) hears(source netip.Addr) bool {
	_, listed := slices.BinarySearchFunc(f.sources, source, netip.Addr.Compare)
	return listed != f.exclude
}

// memberships are the groups of one family that a tunnel is to bring, and what
// a relay has not been told of them often enough.
type memberships struct {
	filters map[netip.Addr]sourceFilter
	changes map[netip.Addr]*change
}

// A change is how often a group's state change is still to be reported (RFC
// 3376 section 5.1, RFC 3810 section 6.1): the filter mode with all sources, or
// single sources.
type change struct {
	mode    int
	sources map[netip.Addr]int
}

// set replaces the filter of a group, and notes what is to be reported of that.
func (ms *memberships) set(group netip.Addr, f sourceFilter, times int) {
	was := ms.filters[group]
	ms.store(group, f)
	ms.note(group, was, f, times)
}

// store replaces the filter of a group.
func (ms *memberships) store(group netip.Addr, f sourceFilter) {
	if ms.filters == nil {
		ms.filters = make(map[netip.Addr]sourceFilter)
	}
	ms.filters[group] = f
	if f.none() {
		delete(ms.filters, group)
	}
}

func (ms *memberships) note(group netip.Addr, was, f sourceFilter, times int) {
	c := ms.changes[group]
	if c == nil {
		c = &change{sources: make(map[netip.Addr]int)}
		if ms.changes == nil {
			ms.changes = make(map[netip.Addr]*change)
		}
		ms.changes[group] = c
	}
	if was.exclude != f.exclude || c.mode > 0 {
		// The report of the mode says the sources too.
		c.mode, c.sources = times, nil
		return
	}
	for _, s := range slices.Concat(was.sources, f.sources) {
		if was.hears(s) != f.hears(s) {
			if c.sources == nil {
				c.sources = make(map[netip.Addr]int)
			}
			c.sources[s] = times
		}
	}
	if len(c.sources) == 0 {
		delete(ms.changes, group)
	}
}

// noteAll makes the whole filter a change, for a relay that knows none of it.
func (ms *memberships) noteAll(times int) {
	for group, f := range ms.filters {
		ms.note(group, sourceFilter{}, f, times)
	}
}

// changeRecords returns what is to be reported of the changes, and counts that
// as done once.
func (ms *memberships) changeRecords() (records []record) {
	for _, group := range sortedKeys(ms.changes) {
		c, f := ms.changes[group], ms.filters[group]
		if c.mode > 0 {
			kind := toInclude
			if f.exclude {
				kind = toExclude
			}
			records = append(records, record{kind, group, f.sources})
			c.mode--
		} else {
			var allow, block []netip.Addr
			for _, s := range sortedKeys(c.sources) {
				if f.hears(s) {
					allow = append(allow, s)
				} else {
					block = append(block, s)
				}
				if c.sources[s]--; c.sources[s] == 0 {
					delete(c.sources, s)
				}
			}
			if len(allow) > 0 {
				records = append(records, record{allowNew, group, allow})
			}
			if len(block) > 0 {
				records = append(records, record{blockOld, group, block})
			}
		}
		if c.mode == 0 && len(c.sources) == 0 {
			delete(ms.changes, group)
		}
	}
	return records
}

// currentRecords returns the whole filter, as the answer to a general query
// (RFC 3376 section 5.2).
func (ms *memberships) currentRecords() (records []record) {
	for _, group := range sortedKeys(ms.filters) {
		f := ms.filters[group]
		kind := isInclude
		if f.exclude {
			kind = isExclude
		}
		records = append(records, record{kind, group, f.sources})
	}
	return records
}

// leaveRecords returns the end of all memberships.
func (ms *memberships) leaveRecords() []record {
	end := memberships{}
	for group, f := range ms.filters {
		end.note(group, f, sourceFilter{}, 1)
	}
	return end.changeRecords()
}

func sortedKeys[V any](m map[netip.Addr]V) []netip.Addr {
	keys := make([]netip.Addr, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, netip.Addr.Compare)
	return keys
}
