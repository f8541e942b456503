//go:build !plan9

package kerneltest

import (
	"net/netip"
	"slices"
)

// What a socket of a BSD system holds: a row of memberships, each with a filter
// whose every part is kept twice, as it was before a request (t0) and as the
// request would have it (t1). Most of the strange answers come from there.

// A bsdMode is a filter's mode, or that of one entry in it.
type bsdMode uint8

const (
	undefined bsdMode = iota // MCAST_UNDEFINED: no filter, an entry that is not there
	include                  // MCAST_INCLUDE
	exclude                  // MCAST_EXCLUDE
)

func (m bsdMode) String() string { return [...]string{"nothing", "INCLUDE", "EXCLUDE"}[m] }

// A bsdEntry is one source in a socket's filter: struct in_msource.
type bsdEntry struct {
	source netip.Addr
	mode   [2]bsdMode // before and after
}

// A bsdFilter is a socket's filter of one membership: struct in_mfilter. Entries
// are sorted by source, and one of the mode that is not in force drops its source.
type bsdFilter struct {
	mode    [2]bsdMode
	entries []bsdEntry
}

func newBSDFilter(mode bsdMode) *bsdFilter {
	return &bsdFilter{mode: [2]bsdMode{undefined, mode}}
}

func (f *bsdFilter) find(source netip.Addr) (int, bool) {
	return slices.BinarySearchFunc(f.entries, source, func(e bsdEntry, a netip.Addr) int {
		return e.source.Compare(a)
	})
}

// entry returns the entry of a source, nil if there is none: imo_match_source. Its
// mode does not matter.
func (f *bsdFilter) entry(source netip.Addr) *bsdEntry {
	if i, ok := f.find(source); ok {
		return &f.entries[i]
	}
	return nil
}

// graft adds a source: imf_graft and imf_get_source.
func (f *bsdFilter) graft(source netip.Addr, mode bsdMode) {
	i, ok := f.find(source)
	if !ok {
		f.entries = slices.Insert(f.entries, i, bsdEntry{source: source})
	}
	f.entries[i].mode[1] = mode
}

// leave makes the filter INCLUDE() after the request: imf_leave.
func (f *bsdFilter) leave() {
	for i := range f.entries {
		f.entries[i].mode[1] = undefined
	}
	f.mode[1] = include
}

// commit makes what the request asked for what is.
func (f *bsdFilter) commit() {
	for i := range f.entries {
		f.entries[i].mode[0] = f.entries[i].mode[1]
	}
	f.mode[0] = f.mode[1]
}

// rollback forgets what the request asked for.
func (f *bsdFilter) rollback() {
	for i := range f.entries {
		f.entries[i].mode[1] = f.entries[i].mode[0]
	}
	f.mode[1] = f.mode[0]
	f.reap()
}

// reap removes entries that are neither there before nor after.
func (f *bsdFilter) reap() {
	f.entries = slices.DeleteFunc(f.entries, func(e bsdEntry) bool { return e.mode == [2]bsdMode{} })
}

// listed are the sources that the mode in force is about.
func (f *bsdFilter) listed() (sources []netip.Addr) {
	for _, e := range f.entries {
		if e.mode[0] == f.mode[1] {
			sources = append(sources, e.source)
		}
	}
	return sources
}

// bsdOptions are a socket's multicast options of one family: struct ip_moptions. A
// slot past the last membership is free, but what lies in it need not be gone.
type bsdOptions struct {
	records []*record // one a membership
	filters []*bsdFilter
}

// find is imo_match_group: the oldest membership of the group on the device, or on
// any where the device is nil; -1 if there is none.
func (o *bsdOptions) find(d *device, group netip.Addr) int {
	return slices.IndexFunc(o.records, func(r *record) bool {
		return r.group == group && (d == nil || r.dev == d)
	})
}

// slot is the filter that the next membership will have.
func (o *bsdOptions) slot() *bsdFilter {
	if len(o.filters) == len(o.records) {
		o.filters = append(o.filters, newBSDFilter(exclude))
	}
	return o.filters[len(o.records)]
}

// remove closes the gap that a membership leaves. Only the slot that becomes free
// is made new.
func (o *bsdOptions) remove(i int) {
	n := len(o.records)
	copy(o.filters[i:n], o.filters[i+1:n])
	o.filters[n-1] = newBSDFilter(exclude)
	o.records = slices.Delete(o.records, i, i+1)
}
