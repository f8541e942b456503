package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"example.com/mcast"
	"golang.org/x/sys/unix"
)

// choose asks the routing table, as the library does.
func choose(ch mcast.Channel) (index int, err error) {
	to := ch.Group.Addr
	if ch.Source.IsValid() {
		to = ch.Source
	}
	indexes, _, local, err := lookUp(to)
	if err != nil {
		return 0, fmt.Errorf("there is no route to %v: %w", to, err)
	}
	if local {
		if i, ok := owner(to); ok {
			return i, nil
		}
	}
	return indexes[0], nil
}

func owner(a netip.Addr) (index int, ok bool) {
	ifis, _ := net.Interfaces()
	for _, ifi := range ifis {
		if slices.ContainsFunc(newLink(ifi).Addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return ifi.Index, true
		}
	}
	return 0, false
}

// A probe looks at what only Linux shows.
type probe struct {
	f       *facts
	capture *capture
	start   map[string]int64
}

func newProbe(f *facts) *probe { return &probe{f: f} }

func (p *probe) before(ctx context.Context) {
	f := p.f
	readLink(f.Link)
	p.sysctls()
	p.members()
	p.sockets()
	p.firewall(ctx)
	p.start = counters()
	var err error
	if p.capture, err = openCapture(f.Link.Index, f.Group); err != nil {
		p.capture = nil
		needs := err.Error()
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			needs = "the right to capture (root, or CAP_NET_RAW)"
		}
		f.miss("queriers, reports and datagrams on the wire", needs)
	}
}

func (p *probe) sysctls() {
	f := p.f
	f.Knobs = map[string]int{}
	var names []string
	for _, of := range []string{"all", f.Link.Name} {
		if f.Group.Is4() {
			names = append(names, knob("ipv4", of, "rp_filter"), knob("ipv4", of, "force_igmp_version"))
		} else {
			names = append(names, knob("ipv6", of, "disable_ipv6"), knob("ipv6", of, "force_mld_version"))
		}
	}
	if f.Group.Is4() {
		names = append(names, "net.ipv4.igmp_max_memberships", "net.ipv4.igmp_max_msf", "net.ipv4.igmp_link_local_mcast_reports")
	} else {
		names = append(names, "net.ipv6.mld_max_msf")
	}
	names = append(names, "net.core.optmem_max", "net.core.rmem_max")
	for _, name := range names {
		// A dot and a slash change places, as in sysctl(8).
		path := strings.NewReplacer(".", "/", "/", ".").Replace(name)
		b, err := os.ReadFile("/proc/sys/" + path)
		if err != nil {
			continue
		}
		if n, err := strconv.Atoi(string(bytes.TrimSpace(b))); err == nil {
			f.Knobs[name] = n
		}
	}
}

// procNet reads a table of the network namespace of this thread.
func procNet(name string) (string, bool) {
	b, err := os.ReadFile("/proc/thread-self/net/" + name)
	return string(b), err == nil
}

func (p *probe) members() {
	f := p.f
	var all []member
	var seen bool
	var filters string
	if f.Group.Is4() {
		var text string
		var versions map[int]int
		text, seen = procNet("igmp")
		all, versions = parseIGMP(text, binary.NativeEndian)
		f.Version = versions[f.Link.Index]
		filters, _ = procNet("mcfilter")
	} else {
		var text string
		text, seen = procNet("igmp6")
		all = parseIGMP6(text)
		filters, _ = procNet("mcfilter6")
	}
	if !seen {
		f.miss("who has joined", "/proc/net/igmp and igmp6")
		return
	}
	f.Joined, f.Filters = 0, longestFilter(filters)
	for _, m := range all {
		f.Joined += m.Users
		if m.Group == f.Group {
			f.Members = append(f.Members, m)
		}
	}
}

func (p *probe) sockets() {
	f := p.f
	if f.Port == 0 {
		return
	}
	names := []string{"udp6"}
	if f.Group.Is4() {
		names = []string{"udp", "udp6"}
	}
	for _, name := range names {
		text, ok := procNet(name)
		if !ok {
			continue
		}
		for _, s := range parseUDP(text, f.Port, binary.NativeEndian) {
			// A socket for both families is on the IPv6 wildcard.
			if f.Group.Is4() && s.Local.Addr().Is6() && !s.Local.Addr().IsUnspecified() {
				continue
			}
			f.Sockets = append(f.Sockets, s)
		}
	}
}

// firewall asks nft, and iptables for what is its own.
func (p *probe) firewall(ctx context.Context) {
	f := p.f
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	nft, found, err := output(ctx, "nft", "-a", "list", "ruleset")
	tables := parseNFT(nft)
	save := "iptables-save"
	if f.Group.Is6() {
		save = "ip6tables-save"
	}
	ipt, foundIPT, errIPT := output(ctx, save)
	if errIPT == nil && hidden(f.Group.Is6()) {
		errIPT = os.ErrPermission
	}
	if errIPT == nil && !(err == nil && strings.Contains(ipt, "-nft-save")) { // nft has shown those
		tables = append(tables, parseIPTables(ipt, f.Group.Is6())...)
	}
	f.Rules = found && err == nil || foundIPT && errIPT == nil
	const right = "the right to read its rules (root, or CAP_NET_ADMIN)"
	if f.Rules {
		f.Blocked = append(f.Blocked, checkFirewall(tables, f)...)
	}
	switch {
	case f.Rules && errors.Is(errIPT, os.ErrPermission):
		f.miss("the firewall's rules made by iptables", right)
	case f.Rules:
	case !found && !foundIPT:
		f.miss("the firewall", "nft or iptables-save, which are not installed")
	case os.Geteuid() != 0 || errors.Is(errIPT, os.ErrPermission):
		f.miss("the firewall", right)
	default:
		f.miss("the firewall", fmt.Sprintf("nft or iptables-save to work: %v", errors.Join(err, errIPT)))
	}
}

// hidden reports whether iptables-save sees no tables because it may not, of
// which it says nothing.
func hidden(is6 bool) bool {
	name := "ip_tables_names"
	if is6 {
		name = "ip6_tables_names"
	}
	_, err := os.ReadFile("/proc/thread-self/net/" + name)
	return errors.Is(err, os.ErrPermission)
}

// output runs a command, which may be in a folder that only root searches.
func output(ctx context.Context, name string, args ...string) (out string, found bool, err error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, name))
		}
	}
	if err != nil {
		return "", false, err
	}
	b, err := exec.CommandContext(ctx, path, args...).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		line, _, _ := strings.Cut(strings.TrimSpace(string(exit.Stderr)), "\n")
		err = fmt.Errorf("%s: %s", name, line)
	}
	return string(b), true, err
}

func counters() map[string]int64 {
	counts := map[string]int64{}
	for _, name := range []string{"snmp", "netstat"} {
		text, _ := procNet(name)
		parseCounters(text, counts)
	}
	return counts
}

// joined is called while the group is joined, after listening.
func (p *probe) joined(source netip.Addr) {
	f := p.f
	if f.Source.IsValid() && !source.IsValid() {
		return // the witness
	}
	var sources []netip.Addr
	if f.Source.IsValid() {
		sources = append(sources, f.Source)
	} else {
		for _, x := range p.wire().incoming(func(x flow) bool { return x.VLAN == 0 }) {
			if a := x.Source; len(sources) < 8 && !slices.Contains(sources, a) {
				sources = append(sources, a)
			}
		}
	}
	f.Routes = []route{}
	for _, s := range sources {
		f.Routes = append(f.Routes, p.route(s))
	}
}

func (p *probe) route(source netip.Addr) route {
	f := p.f
	r := route{Source: source, Interface: []string{}}
	if source.IsLinkLocalUnicast() && source.Is6() {
		r.Interface = append(r.Interface, f.Link.Name) // on every link
		return r
	}
	indexes, gateway, _, err := lookUp(source)
	if err != nil {
		r.None = err.Error()
	}
	r.Gateway = gateway
	for _, i := range indexes {
		r.Interface = append(r.Interface, interfaceName(i))
	}
	r.Refused = source.Is4() && f.Link.Up && refused(source, f.Group, f.Link.Index)
	return r
}

func (p *probe) wire() *wire {
	if p.capture == nil {
		return nil
	}
	return p.capture.wire()
}

func (p *probe) after() {
	p.f.Wire = p.wire()
	p.f.Counts = map[string]int64{}
	end := counters()
	for _, name := range []string{"TcpExt:IPReversePathFilter", "Udp:InCsumErrors", "Udp:RcvbufErrors", "Ip:ReasmFails", "Ip6:Ip6ReasmFails"} {
		if n := end[name] - p.start[name]; n > 0 {
			p.f.Counts[name] = n
		}
	}
}

func (p *probe) close() {
	if p.capture != nil {
		p.capture.close()
	}
}
