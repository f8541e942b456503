package main

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// The kernel's tables below /proc/net. Lines that are not understood are
// passed over: a diagnosis goes on without them.

// parseIGMP reads /proc/net/igmp: a line for each interface, and under it one
// for each group, whose address is a number in the host's byte order.
func parseIGMP(text string, order binary.ByteOrder) (ms []member, versions map[int]int) {
	versions = map[int]int{}
	var on member
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if !strings.HasPrefix(line, "\t") {
			if len(fields) < 3 {
				continue
			}
			index, err := strconv.Atoi(fields[0])
			if err != nil {
				continue
			}
			on = member{Index: index, Interface: strings.TrimSuffix(fields[1], ":")}
			on.Version, _ = strconv.Atoi(strings.TrimPrefix(fields[len(fields)-1], "V"))
			versions[index] = on.Version
			continue
		}
		if len(fields) < 2 {
			continue
		}
		m := on
		var err error
		if m.Group, err = hexAddr(fields[0], order); err != nil {
			continue
		}
		if m.Users, err = strconv.Atoi(fields[1]); err == nil {
			ms = append(ms, m)
		}
	}
	return ms, versions
}

// parseIGMP6 reads /proc/net/igmp6: index, name, address, users, flags, timer.
func parseIGMP6(text string) (ms []member) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			continue
		}
		index, err := strconv.Atoi(fields[0])
		b, e := hex.DecodeString(fields[2])
		users, e2 := strconv.Atoi(fields[3])
		if err != nil || e != nil || e2 != nil || len(b) != 16 {
			continue
		}
		ms = append(ms, member{Interface: fields[1], Index: index, Group: netip.AddrFrom16([16]byte(b)), Users: users})
	}
	return ms
}

// longestFilter reads /proc/net/mcfilter or mcfilter6, a line for each source:
// index, name, group, source, and how many include and exclude it.
func longestFilter(text string) (longest int) {
	counts := map[string]int{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) != 6 || fields[0] == "Idx" {
			continue
		}
		k := fields[0] + " " + fields[2]
		counts[k]++
		longest = max(longest, counts[k])
	}
	return longest
}

// parseUDP reads /proc/net/udp or udp6 and returns the sockets on the port
// that are not connected.
func parseUDP(text string, port uint16, order binary.ByteOrder) (ss []udpSocket) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 13 {
			continue
		}
		local, err := hexAddrPort(fields[1], order)
		remote, e := hexAddrPort(fields[2], order)
		if err != nil || e != nil || local.Port() != port || remote.Port() != 0 {
			continue
		}
		s := udpSocket{Local: local}
		s.UID, _ = strconv.Atoi(fields[7])
		s.Drops, _ = strconv.Atoi(fields[12])
		ss = append(ss, s)
	}
	return ss
}

// parseCounters reads /proc/net/snmp or netstat: pairs of lines with names and
// numbers behind a common prefix.
func parseCounters(text string, counts map[string]int64) {
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(names) != len(fields) || names[0] != fields[0] {
			names = fields
			continue
		}
		for i, name := range names[1:] {
			if n, err := strconv.ParseInt(fields[i+1], 10, 64); err == nil {
				counts[names[0]+name] = n
			}
		}
		names = nil
	}
}

// parseCounters6 reads /proc/net/snmp6: a name and a number a line.
func parseCounters6(text string, counts map[string]int64) {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) == 2 {
			if n, err := strconv.ParseInt(fields[1], 10, 64); err == nil {
				counts[fields[0]] = n
			}
		}
	}
}

func hexAddrPort(s string, order binary.ByteOrder) (netip.AddrPort, error) {
	a, p, _ := strings.Cut(s, ":")
	addr, err := hexAddr(a, order)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(p, 16, 16)
	return netip.AddrPortFrom(addr, uint16(port)), err
}

// hexAddr reads an address that is shown in words of the host's byte order.
func hexAddr(s string, order binary.ByteOrder) (netip.Addr, error) {
	b, err := hex.DecodeString(s)
	if err != nil {
		return netip.Addr{}, err
	}
	if len(b)%4 != 0 {
		return netip.Addr{}, fmt.Errorf("%q is not an address", s)
	}
	for i := 0; i < len(b); i += 4 {
		order.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return a, fmt.Errorf("%q is not an address", s)
	}
	return a, nil
}
