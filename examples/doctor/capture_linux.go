package main

import (
	"encoding/binary"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A capture sees packets that an interface gets or sends, or all do (packet(7)).
type capture struct {
	fd   int
	stop atomic.Bool
	done sync.WaitGroup
}

// A frame is where a packet was seen.
type frame struct {
	index int  // of the interface
	vlan  int  // its tag; 0: none
	sent  bool // by this host
}

// openCapture starts a capture of what a filter lets through, on an interface,
// or on all for 0. It takes CAP_NET_RAW.
func openCapture(index int, filter []bpf.Instruction, note func(packet, frame)) (*capture, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) // 0: nothing before bind
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := prepareCapture(fd, index, filter); err != nil {
		unix.Close(fd)
		return nil, err
	}
	c := &capture{fd: fd}
	c.done.Go(func() { c.read(note) })
	return c, nil
}

func (c *capture) close() {
	c.stop.Store(true)
	c.done.Wait()
	unix.Close(c.fd)
}

func prepareCapture(fd, index int, instructions []bpf.Instruction) error {
	raw, err := bpf.Assemble(instructions)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		return os.NewSyscallError("SO_ATTACH_FILTER", err)
	}
	unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1) // without it, no VLAN is known
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		return os.NewSyscallError("SO_RCVTIMEO", err)
	}
	// All protocols: for one alone, the kernel does not show what is sent.
	at := &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}), Ifindex: index}
	return os.NewSyscallError("bind", unix.Bind(fd, at))
}

// groupFilter lets through what is sent to the group, and what may be IGMP
// or MLD. The packet begins with its IP header.
func groupFilter(group netip.Addr) []bpf.Instruction {
	const keep = 2048
	ins := []bpf.Instruction{bpf.LoadExtension{Num: bpf.ExtProto}}
	if group.Is4() {
		a := group.As4()
		return append(ins,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IP, SkipTrue: 5},
			bpf.LoadAbsolute{Off: 16, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(a[:]), SkipTrue: 2},
			bpf.LoadAbsolute{Off: 9, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_IGMP, SkipTrue: 1},
			bpf.RetConstant{Val: keep},
			bpf.RetConstant{Val: 0},
		)
	}
	a := group.As16()
	// MLD has a hop-by-hop header: RFC 3810 section 5.
	return append(ins,
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IPV6, SkipTrue: 11},
		bpf.LoadAbsolute{Off: 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 8},
		bpf.LoadAbsolute{Off: 24, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(a[0:]), SkipTrue: 7},
		bpf.LoadAbsolute{Off: 28, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(a[4:]), SkipTrue: 5},
		bpf.LoadAbsolute{Off: 32, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(a[8:]), SkipTrue: 3},
		bpf.LoadAbsolute{Off: 36, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(a[12:]), SkipTrue: 1},
		bpf.RetConstant{Val: keep},
		bpf.RetConstant{Val: 0},
	)
}

// udpFilter lets through datagrams to any group.
func udpFilter(group netip.Addr) []bpf.Instruction {
	const keep = 128 // the headers
	ethertype, protocol, to, mask, multicast := uint32(unix.ETH_P_IP), uint32(9), uint32(16), uint32(0xf0), uint32(0xe0)
	if group.Is6() {
		ethertype, protocol, to, mask, multicast = unix.ETH_P_IPV6, 6, 24, 0xff, 0xff
	}
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtProto},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: ethertype, SkipTrue: 6},
		bpf.LoadAbsolute{Off: protocol, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 4},
		bpf.LoadAbsolute{Off: to, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: multicast, SkipTrue: 1},
		bpf.RetConstant{Val: keep},
		bpf.RetConstant{Val: 0},
	}
}

func (c *capture) read(note func(packet, frame)) {
	b, oob := make([]byte, 2048), make([]byte, 256)
	for !c.stop.Load() {
		n, oobn, _, from, err := unix.Recvmsg(c.fd, b, oob, 0)
		if err == unix.EAGAIN || err == unix.EINTR || err == unix.ENETDOWN {
			continue // ENETDOWN: the interface went down
		}
		if err != nil {
			return
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if p, parsed := parsePacket(b[:n]); ok && parsed {
			note(p, frame{ll.Ifindex, vlan(oob[:oobn]), ll.Pkttype == unix.PACKET_OUTGOING})
		}
	}
}

// vlan is the tag that the frame came with, or 0.
func vlan(oob []byte) int {
	ms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range ms {
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < int(unsafe.Sizeof(unix.TpacketAuxdata{})) {
			continue
		}
		// struct tpacket_auxdata: status, len, snaplen, mac, net, vlan_tci
		if ne := binary.NativeEndian; ne.Uint32(m.Data)&unix.TP_STATUS_VLAN_VALID != 0 {
			return int(ne.Uint16(m.Data[16:]) & 0xfff)
		}
	}
	return 0
}

// A groupWatch sees the datagrams of one group, and the IGMP or MLD messages, on
// an interface.
type groupWatch struct {
	*capture
	group netip.Addr

	mu      sync.Mutex
	flows   map[flow]int // by flow without its count
	queries map[query]bool
	reports map[report]bool
}

const maxFlows = 1000

func watchGroup(index int, group netip.Addr) (w *groupWatch, err error) {
	w = &groupWatch{group: group, flows: map[flow]int{}, queries: map[query]bool{}, reports: map[report]bool{}}
	w.capture, err = openCapture(index, groupFilter(group), w.note)
	return w, err
}

func (c *groupWatch) note(p packet, at frame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case p.query != 0:
		if at.vlan == 0 {
			c.queries[query{p.from, p.query, at.sent}] = true
		}
	case p.report != 0:
		if at.sent && slices.Contains(p.groups, c.group) {
			c.reports[report{p.report}] = true
		}
	case p.to == c.group:
		k := flow{Source: p.from, Port: p.port, VLAN: at.vlan, Sent: at.sent}
		if len(c.flows) < maxFlows || c.flows[k] > 0 {
			c.flows[k]++
		}
	}
}

// wire returns what was seen so far.
func (c *groupWatch) wire() *wire {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := &wire{Flows: []flow{}, Queries: []query{}, Reports: []report{}}
	for x, n := range c.flows {
		x.Count = n
		w.Flows = append(w.Flows, x)
	}
	slices.SortFunc(w.Flows, func(a, b flow) int { return b.Count - a.Count })
	for q := range c.queries {
		w.Queries = append(w.Queries, q)
	}
	slices.SortFunc(w.Queries, func(a, b query) int { return a.Version - b.Version })
	for r := range c.reports {
		w.Reports = append(w.Reports, r)
	}
	slices.SortFunc(w.Reports, func(a, b report) int { return a.Version - b.Version })
	return w
}

// An aroundWatch sees, on all interfaces, what goes to a group, comes from a
// source, or is for a port.
type aroundWatch struct {
	*capture
	group, source netip.Addr
	port          uint16

	mu   sync.Mutex
	seen map[seenAt]int
}

type seenAt struct {
	index    int
	from, to netip.Addr
	port     uint16
}

func watchAround(f *facts) (w *aroundWatch, err error) {
	w = &aroundWatch{group: f.Group, source: f.Source, port: f.Port, seen: map[seenAt]int{}}
	w.capture, err = openCapture(0, udpFilter(f.Group), w.note)
	return w, err
}

func (c *aroundWatch) note(p packet, at frame) {
	if at.sent || at.vlan != 0 || p.port == 0 || p.to != c.group && p.from != c.source && p.port != c.port {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k := seenAt{at.index, p.from, p.to, p.port}
	if len(c.seen) < maxFlows || c.seen[k] > 0 {
		c.seen[k]++
	}
}

// sightings returns what was seen. Capturing has ended.
func (c *aroundWatch) sightings(name func(index int) string) (all []sighting) {
	for k, n := range c.seen {
		all = append(all, sighting{name(k.index), k.from, k.to, k.port, n})
	}
	return all
}
