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
	indexes, _, local, err := lookUp(to, 0)
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
	capture *groupWatch
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
	if p.capture, err = watchGroup(f.Link.Index, f.Group); err != nil {
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
	names = append(names, "net.core.optmem_max", "net.core.rmem_max", "net.ipv4.udp_l3mdev_accept")
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

// procDir has the tables of the network namespace of this thread.
var procDir = "/proc/thread-self/net/"

// readNames reads which tables iptables-legacy has.
var readNames = os.ReadFile

// procNet reads a table.
func procNet(name string) (string, bool) {
	b, err := os.ReadFile(procDir + name)
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

// firewall asks nft, and iptables for what nft does not know: there are two of
// these, and the rules of iptables-legacy stand beside those of nf_tables.
func (p *probe) firewall(ctx context.Context) {
	f := p.f
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	family := "ip"
	if f.Group.Is6() {
		family = "ip6"
	}
	nft, installed, err := output(ctx, "nft", "-a", "list", "ruleset")
	seen := installed && err == nil
	failed, tables := []error{err}, parseNFT(nft)
	// Of tables that it may not see, iptables-legacy-save says nothing.
	names, err := readNames(procDir + family + "_tables_names")
	hidden := errors.Is(err, os.ErrPermission)
	legacy := false
	for _, name := range []string{family + "tables-save", family + "tables-legacy-save"} {
		version, found, _ := output(ctx, name, "-V")
		isNFT := strings.Contains(version, "nf_tables")
		if !found || isNFT && seen || !isNFT && legacy { // those are known already
			continue
		}
		installed = true
		// Only where there are two of them does the name say which.
		tool := strings.TrimSuffix(name, "-save")
		if strings.Contains(version, "legacy") {
			tool = family + "tables-legacy"
		}
		text, _, err := output(ctx, name)
		if failed = append(failed, err); err != nil {
			continue
		}
		tables = append(tables, parseIPTables(text, tool)...)
		seen, legacy = seen || isNFT || !hidden, legacy || !isNFT
	}
	const right = "the right to read its rules (root, or CAP_NET_ADMIN)"
	if f.Rules = seen; seen {
		f.Blocked = append(f.Blocked, checkFirewall(tables, f)...)
	}
	switch {
	case !installed:
		f.miss("the firewall", "nft or iptables-save, which are not installed")
	case !seen && (os.Geteuid() != 0 || hidden):
		f.miss("the firewall", right)
	case !seen:
		f.miss("the firewall", fmt.Sprintf("nft or iptables-save to work: %v", errors.Join(failed...)))
	case hidden:
		f.RulesHidden = true
		f.miss("the firewall's rules made by iptables-legacy", right)
	case !legacy && len(names) > 0:
		f.RulesHidden = true
		f.miss("the firewall's rules made by iptables-legacy, of which there are some", family+"tables-legacy-save, which is not installed")
	}
}

// toolDirs are folders that only root searches.
var toolDirs = []string{"/usr/sbin", "/sbin"}

// output runs a command.
func output(ctx context.Context, name string, args ...string) (out string, found bool, err error) {
	path, err := exec.LookPath(name)
	for _, dir := range toolDirs {
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
	text, _ := procNet("snmp6")
	parseCounters6(text, counts)
	return counts
}

// joined is called while the group is joined, after listening.
func (p *probe) joined() {
	f := p.f
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
	vrf := 0 // whose routing table counts
	if f.Link.Slave == "vrf" {
		vrf = f.indexes[f.Link.Master]
	}
	indexes, gateway, _, err := lookUp(source, vrf)
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

// watches reports whether it may capture.
func (p *probe) watches() bool { return p.capture != nil }

// watchAll looks at all interfaces until end is called, which returns what it
// saw.
func (p *probe) watchAll() (end func() []sighting) {
	if !p.watches() {
		return func() []sighting { return nil }
	}
	c, err := watchAround(p.f)
	if err != nil {
		return func() []sighting { return nil }
	}
	return func() []sighting {
		c.close()
		return c.sightings(interfaceName)
	}
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
	names := []string{"TcpExt:IPReversePathFilter", "Udp:InCsumErrors", "Udp:RcvbufErrors", "Ip:ReasmFails", "Ip:InHdrErrors"}
	if p.f.Group.Is6() {
		names = []string{"Udp6InCsumErrors", "Udp6RcvbufErrors", "Ip6ReasmFails", "Ip6InHdrErrors"}
	}
	for _, name := range names {
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
