//go:build !plan9

package kerneltest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
)

// What a macOS host says of its groups to the network: bsd/netinet/igmp.c and
// bsd/netinet6/mld6.c of XNU 11417, IGMPv3 and MLDv2 without a querier.

// A memberState is IGMP_NOT_MEMBER and its like. Those that only queries and older
// versions lead to are left out.
type memberState uint8

const (
	notMember       memberState = 0 // answers no queries
	silentMember    memberState = 1 // never reported
	reportingMember memberState = 2
	leavingMember   memberState = 9 // answers no queries
)

// Types of group records, RFC 3376 section 4.2.12.
const (
	toInclude = 3
	toExclude = 4
	allow     = 5
	block     = 6
)

var reportTypes = []string{"", "IS_IN", "IS_EX", "TO_IN", "TO_EX", "ALLOW", "BLOCK"}

// A groupReport is one group record.
type groupReport struct {
	kind    int
	sources []netip.Addr
}

// A packet is the records that one report of a group holds.
type packet struct {
	reports []groupReport
	size    int
}

const (
	reportMTU     = 1500
	reportHeaders = 32 // IGMP_LEADINGSPACE
	recordHeader  = 8  // sizeof(struct igmp_grouprec)
	robustness    = 2  // IGMP_RV_INIT
)

// reported is whether the network is ever told of the group: igmp_isgroupreported.
// MLD leaves out what is less than link-local (RFC 3810 section 6).
func (r *record) reported() bool {
	if r.dev.loopback {
		return false
	}
	if r.group.Is6() {
		scope := r.group.As16()[1] & 0xf
		return scope > 1 && !allHosts(unscoped(r.group))
	}
	return !allHosts(r.group)
}

// changed tells the network of a change, or plans to: igmp_change_state. In IPv4 it
// answers with the bytes of the report where an errno is meant.
func (k *Kernel) changed(r *record) syscall.Errno {
	if !k.Reports {
		r.commit()
		return 0
	}
	switch {
	case r.state[1].mode == r.state[0].mode:
		return k.changeState(r)
	case r.state[0].mode == undefined:
		k.firstJoin(r)
		return 0
	case r.state[1].mode == undefined:
		k.lastLeave(r)
		return 0
	}
	return k.changeState(r)
}

// firstJoin is igmp_initial_join.
func (k *Kernel) firstJoin(r *record) {
	if !r.reported() {
		r.member = silentMember
		r.commit()
		return
	}
	if r.member == leavingMember {
		k.detached = append(k.detached, r)
	}
	r.member = reportingMember
	if r.enqueue() > 0 {
		r.again, r.timer = robustness, 1
		k.schedule()
	}
}

// changeState is igmp_handle_state_change.
func (k *Kernel) changeState(r *record) syscall.Errno {
	if !r.reported() {
		r.commit()
		return 0
	}
	n := r.enqueue()
	if n > 0 {
		r.again, r.timer = robustness, 1
		k.schedule()
	}
	if r.group.Is6() {
		return 0 // mld6.c answers with the error alone
	}
	return syscall.Errno(n)
}

// lastLeave is igmp_final_leave.
func (k *Kernel) lastLeave(r *record) {
	if r.member != reportingMember {
		r.commit()
		r.state[1].mode = undefined
		return
	}
	r.again = robustness
	r.requests++
	r.leavings++
	r.enqueue()
	r.member, r.timer = leavingMember, 1
	k.schedule()
}

// spoiled is whether the group has members and answers no queries.
func (k *Kernel) spoiled(r *record) bool {
	return k.Reports && r.state[1].mode != undefined && r.member != reportingMember && r.member != silentMember
}

// enqueue plans a state-change report and returns its bytes, as the kernel counts
// them: igmp_v3_enqueue_group_record. It counts each source of a change of mode
// twice.
func (r *record) enqueue() (bytes int) {
	r.packets = nil
	now := r.state[1].mode
	if now == r.state[0].mode {
		if r.state[0].any > 0 && r.state[1].any > 0 {
			return 0
		}
		return r.enqueueChange()
	}
	report := groupReport{kind: toInclude}
	if now == exclude {
		report.kind = toExclude
	}
	if now != undefined {
		for i := range r.sources {
			if r.mode(&r.sources[i], 1) == now {
				report.sources = append(report.sources, r.sources[i].source)
			}
		}
	}
	for first := true; first || len(report.sources) > 0; first = false {
		n := min(len(report.sources), (reportMTU-reportHeaders-recordHeader)/r.addressLen())
		size := recordHeader + r.addressLen()*n
		r.packets = append(r.packets, packet{[]groupReport{{report.kind, report.sources[:n]}}, size})
		report.sources = report.sources[n:]
		bytes += size
		if first {
			bytes += r.addressLen() * n
		}
	}
	return bytes
}

func (r *record) addressLen() int { return r.group.BitLen() / 8 }

// enqueueChange plans what changed in the list: igmp_v3_enqueue_filter_change. The
// bytes of a record are counted again with each that follows in its packet.
func (r *record) enqueueChange() (bytes int) {
	var lists [4][]netip.Addr // by the mode that the report is about
	var order []bsdMode
	for i := range r.sources {
		s := &r.sources[i]
		is, was := r.mode(s, 1), r.mode(s, 0)
		if is == was || is == include && r.state[1].mode == exclude {
			continue
		}
		if is == undefined {
			is = ^r.state[1].mode & 3
		}
		if len(lists[is]) == 0 {
			order = append(order, is)
		}
		lists[is] = append(lists[is], s.source)
	}
	counted := 0
	for _, mode := range order {
		kind := [...]int{0, allow, block, 0}[mode]
		for list := lists[mode]; len(list) > 0; {
			at := len(r.packets) - 1
			room := (reportMTU - reportHeaders - recordHeader) / r.addressLen()
			if at >= 0 && r.packets[at].size+recordHeader+r.addressLen() < reportMTU-reportHeaders {
				room = (reportMTU - r.packets[at].size - recordHeader) / r.addressLen()
			} else {
				r.packets = append(r.packets, packet{})
				at, counted = at+1, 0
			}
			n := min(len(list), room)
			p := &r.packets[at]
			p.reports = append(p.reports, groupReport{kind, list[:n]})
			p.size += recordHeader + r.addressLen()*n
			counted += recordHeader + r.addressLen()*n
			bytes += counted
			list = list[n:]
		}
	}
	return bytes
}

// report is one run of the report code over all records: igmp_timeout, with the
// interfaces from the youngest to the oldest.
func (k *Kernel) report() {
	order := slices.Clone(k.records)
	slices.SortStableFunc(order, func(a, b *record) int { return b.dev.serial - a.dev.serial })
	delays := make(map[*device]int)
	for _, r := range order {
		k.reportRecord(r, func() int {
			if delays[r.dev] == 0 {
				delays[r.dev] = k.repeat()
			}
			return delays[r.dev]
		})
	}
	for _, r := range k.detached { // igmp_flush_relq
		r.leavings--
		k.release(r)
	}
	k.detached = nil
}

// repeat is in how many runs a report is repeated: IGMP_URI_INIT is 3.
func (k *Kernel) repeat() int {
	if k.RepeatReport == nil {
		return 1
	}
	return k.RepeatReport()
}

// reportRecord is igmp_v3_process_group_timers.
func (k *Kernel) reportRecord(r *record, repeat func() int) {
	if r.timer == 0 {
		return
	}
	if r.timer--; r.timer > 0 {
		k.timers.running = true
		return
	}
	if r.member != reportingMember && r.member != leavingMember {
		return
	}
	if r.again--; r.again > 0 {
		r.timer = repeat()
		k.timers.running = true
	}
	for _, p := range r.packets {
		for _, report := range p.reports {
			k.sent = append(k.sent, Report{r.dev.index, unscoped(r.group), reportTypes[report.kind], report.sources})
		}
	}
	if r.again <= 0 {
		r.packets = nil
	}
	r.commit()
	if r.member == leavingMember && r.again == 0 {
		r.member = notMember
		k.detached = append(k.detached, r)
	}
}

// A Report is a group record that a macOS host sent.
type Report struct {
	Interface int
	Group     netip.Addr
	Type      string // of RFC 3376 section 4.2.12: "TO_IN", "ALLOW" and so on
	Sources   []netip.Addr
}

func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s %v", r.Interface, r.Type, r.Group)
	for _, a := range r.Sources {
		fmt.Fprintf(&b, " %v", a)
	}
	return b.String()
}

// Sent returns the group records sent since it was last asked.
func (k *Kernel) Sent() []Report {
	k.mu.Lock()
	defer k.mu.Unlock()
	sent := k.sent
	k.sent = nil
	return sent
}

// asks is what the record makes of the network.
func (r *record) asks() string {
	now := r.state[1].mode
	var b strings.Builder
	b.WriteString(now.String())
	for i := range r.sources {
		if now != undefined && r.mode(&r.sources[i], 1) == now {
			fmt.Fprintf(&b, " %v", r.sources[i].source)
		}
	}
	return b.String()
}

// Asked returns what a macOS or FreeBSD host asks of the network for a group on an
// interface, as "EXCLUDE", "INCLUDE 10.0.0.1" or "nothing", and whether it answers
// queries about it. What retries after a byte count leave behind shows here.
func (k *Kernel) Asked(ifindex int, group netip.Addr) (asks string, answers bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.device(ifindex)
	if d == nil {
		return undefined.String(), false
	}
	if group.Is6() {
		group = scoped(group, d)
	}
	r := k.record(d, group)
	if r == nil {
		return undefined.String(), false
	}
	return r.asks(), r.member == reportingMember
}
