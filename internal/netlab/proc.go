package netlab

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// A Member is a group that a host is a member of on one interface: a line of
// /proc/net/igmp or /proc/net/igmp6.
type Member struct {
	Index   int    // of the interface
	Device  string // the interface's name
	Version int    // the IGMP version that the interface speaks; 0 from igmp6
	Group   netip.Addr
	Users   int // sockets, mostly; the kernel itself is one
}

// A SourceFilter is a source of a group on one interface: a line of
// /proc/net/mcfilter or /proc/net/mcfilter6.
type SourceFilter struct {
	Index   int
	Device  string // the first six characters of the interface's name
	Group   netip.Addr
	Source  netip.Addr
	Include int // memberships that list the source in INCLUDE mode
	Exclude int // and in EXCLUDE mode
}

// ParseIGMP parses /proc/net/igmp of this machine.
func ParseIGMP(text string) ([]Member, error) { return parseIGMP(text, binary.NativeEndian) }

func parseIGMP(text string, order binary.ByteOrder) ([]Member, error) {
	// Idx	Device    : Count Querier	Group    Users Timer	Reporter
	// 1	lo        :     1      V3
	// 				010000E0     1 0:00000000		0
	var members []Member
	var device Member
	for i, line := range lines(text) {
		fields := strings.Fields(line)
		var err error
		if !strings.HasPrefix(line, "\t") {
			device = Member{}
			name, rest, ok := strings.Cut(line, ":")
			head := strings.Fields(name)
			tail := strings.Fields(rest)
			if !ok || len(head) != 2 || len(tail) != 2 || !strings.HasPrefix(tail[1], "V") {
				return nil, fmt.Errorf("line %d: %q", i, line)
			}
			device.Device = head[1]
			if device.Index, err = strconv.Atoi(head[0]); err == nil {
				device.Version, err = strconv.Atoi(tail[1][1:])
			}
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", i, err)
			}
			continue
		}
		if len(fields) < 2 || device.Index == 0 {
			return nil, fmt.Errorf("line %d: %q", i, line)
		}
		m := device
		// The kernel prints the group's four bytes as one number of the host's
		// byte order (net/ipv4/igmp.c, igmp_mc_seq_show).
		group, err := strconv.ParseUint(fields[0], 16, 32)
		if err == nil {
			var b [4]byte
			order.PutUint32(b[:], uint32(group))
			m.Group = netip.AddrFrom4(b)
			m.Users, err = strconv.Atoi(fields[1])
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i, err)
		}
		members = append(members, m)
	}
	return members, nil
}

// ParseIGMP6 parses /proc/net/igmp6.
func ParseIGMP6(text string) ([]Member, error) {
	// 1    lo              ff020000000000000000000000000001     1 0000000C 0
	var members []Member
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		fields := strings.Fields(line)
		if line == "" && text == "" {
			break
		}
		if len(fields) < 4 {
			return nil, fmt.Errorf("line %d: %q", i+1, line)
		}
		m := Member{Device: fields[1]}
		var err error
		if m.Index, err = strconv.Atoi(fields[0]); err == nil {
			if m.Group, err = parseHex6(fields[2]); err == nil {
				m.Users, err = strconv.Atoi(fields[3])
			}
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		members = append(members, m)
	}
	return members, nil
}

// ParseMCFilter parses /proc/net/mcfilter.
func ParseMCFilter(text string) ([]SourceFilter, error) {
	// Idx Device        MCA        SRC    INC    EXC
	//   2   eth0 0xe8010101 0x0a000001      1      0
	return parseMCFilter(text, func(s string) (netip.Addr, error) {
		// Unlike in igmp: the address as a number, ntohl'ed (igmp_mcf_seq_show).
		n, err := strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 32)
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(n))
		return netip.AddrFrom4(b), err
	})
}

// ParseMCFilter6 parses /proc/net/mcfilter6.
func ParseMCFilter6(text string) ([]SourceFilter, error) {
	return parseMCFilter(text, parseHex6)
}

func parseMCFilter(text string, address func(string) (netip.Addr, error)) ([]SourceFilter, error) {
	var filters []SourceFilter
	for i, line := range lines(text) {
		fields := strings.Fields(line)
		if len(fields) != 6 {
			return nil, fmt.Errorf("line %d: %q", i, line)
		}
		f := SourceFilter{Device: fields[1]}
		var err error
		if f.Index, err = strconv.Atoi(fields[0]); err == nil {
			if f.Group, err = address(fields[2]); err == nil {
				if f.Source, err = address(fields[3]); err == nil {
					if f.Include, err = strconv.Atoi(fields[4]); err == nil {
						f.Exclude, err = strconv.Atoi(fields[5])
					}
				}
			}
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i, err)
		}
		filters = append(filters, f)
	}
	return filters, nil
}

func parseHex6(s string) (netip.Addr, error) {
	b, err := hex.DecodeString(s)
	if err != nil {
		return netip.Addr{}, err
	}
	if len(b) != 16 {
		return netip.Addr{}, fmt.Errorf("%q is no IPv6 address", s)
	}
	return netip.AddrFrom16([16]byte(b)), nil
}

// lines yields the lines after the heading, counted from 2.
func lines(text string) func(yield func(int, string) bool) {
	return func(yield func(int, string) bool) {
		for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
			if i > 0 && !yield(i+1, line) {
				return
			}
		}
	}
}
