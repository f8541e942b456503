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

// A capture sees the datagrams of one group and the IGMP or MLD messages that
// an interface gets or sends (packet(7)).
type capture struct {
	fd    int
	group netip.Addr
	stop  atomic.Bool
	done  sync.WaitGroup

	mu      sync.Mutex
	flows   map[flow]int // by flow without its count
	queries map[query]bool
	reports map[report]bool
}

const maxFlows = 1000

// openCapture starts a capture. It takes CAP_NET_RAW.
func openCapture(index int, group netip.Addr) (*capture, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) // 0: nothing before bind
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := prepareCapture(fd, index, group); err != nil {
		unix.Close(fd)
		return nil, err
	}
	c := &capture{fd: fd, group: group, flows: map[flow]int{}, queries: map[query]bool{}, reports: map[report]bool{}}
	c.done.Go(c.read)
	return c, nil
}

func prepareCapture(fd, index int, group netip.Addr) error {
	raw, err := bpf.Assemble(captureFilter(group))
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

// captureFilter lets through what is sent to the group, and what may be IGMP
// or MLD. The packet begins with its IP header.
func captureFilter(group netip.Addr) []bpf.Instruction {
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

func (c *capture) read() {
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
			c.note(p, ll.Pkttype == unix.PACKET_OUTGOING, vlan(oob[:oobn]))
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

func (c *capture) note(p packet, sent bool, tag int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case p.query != 0:
		if tag == 0 {
			c.queries[query{p.from, p.query, sent}] = true
		}
	case p.report != 0:
		if sent && slices.Contains(p.groups, c.group) {
			c.reports[report{p.report}] = true
		}
	case p.to == c.group:
		k := flow{Source: p.from, Port: p.port, VLAN: tag, Sent: sent}
		if len(c.flows) < maxFlows || c.flows[k] > 0 {
			c.flows[k]++
		}
	}
}

// wire returns what was seen so far.
func (c *capture) wire() *wire {
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

func (c *capture) close() {
	c.stop.Store(true)
	c.done.Wait()
	unix.Close(c.fd)
}
