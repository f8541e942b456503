package netlab

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A Host is a network namespace with a thread of its own.
type Host struct {
	lab  *Lab
	name string
	ns   *os.File // the namespace: a new thread can enter it

	mu     sync.Mutex
	work   chan *job
	thread int // its ID
}

type job struct {
	f    func()
	done chan outcome
}

type outcome struct {
	exited   bool // by runtime.Goexit, which t.Fatal calls
	panicked any
	stack    []byte
}

// newHost makes a namespace, or uses the one of this process.
func (l *Lab) newHost(name string, isNew bool) (*Host, error) {
	h := &Host{lab: l, name: name}
	enter := func() (err error) {
		if isNew {
			if err := newNamespace(); err != nil {
				return err
			}
		}
		h.ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	}
	if err := h.start(enter); err != nil {
		return nil, err
	}
	if _, err := h.run("ip", "link", "set", "dev", "lo", "up"); err != nil {
		return nil, err
	}
	settings := [][2]string{
		// A new namespace may inherit these from the machine (net.core.devconf_inherit_init_net).
		{"net.ipv4.conf.all.rp_filter", "0"},
		{"net.ipv4.conf.default.rp_filter", "0"},
	}
	if h.HasIPv6() {
		// The kernel takes the larger accept_dad of all and the interface (ip-sysctl.rst).
		for _, c := range []string{"all", "default"} {
			settings = append(settings,
				[2]string{"net.ipv6.conf." + c + ".disable_ipv6", "0"},
				[2]string{"net.ipv6.conf." + c + ".accept_dad", "0"},
				[2]string{"net.ipv6.conf." + c + ".accept_ra", "0"},
				[2]string{"net.ipv6.conf." + c + ".router_solicitations", "0"})
		}
	}
	var err error
	h.Do(func() {
		for _, s := range settings {
			if err = os.WriteFile(sysctlPath(s[0]), []byte(s[1]), 0); err != nil {
				return
			}
		}
	})
	return h, err
}

// start starts the host's thread; enter puts it into the namespace.
func (h *Host) start(enter func() error) error {
	work := make(chan *job)
	ready := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine and is not used
		// for anything else.
		runtime.LockOSThread()
		if err := enter(); err != nil {
			ready <- err
			return
		}
		h.thread = threadID()
		ready <- nil
		for j := range work {
			j.run()
		}
	}()
	err := <-ready
	h.work = work
	return err
}

func (j *job) run() {
	normal := false
	defer func() {
		var o outcome
		if !normal {
			if o.panicked = recover(); o.panicked != nil {
				buf := make([]byte, 64<<10)
				o.stack = buf[:runtime.Stack(buf, false)]
			} else {
				o.exited = true // and so does this goroutine, with its thread
			}
		}
		j.done <- o
	}()
	j.f()
	normal = true
}

// stop ends the host's thread.
func (h *Host) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.work)
	h.ns.Close()
}

// Name returns the host's name.
func (h *Host) Name() string { return h.name }

// Do runs f on this host: in its namespace, on its thread. f may end the test
// (t.Fatal, t.Skip), and may call Do of this host again, or of another one.
// One f runs at a time on a host: do not wait in it for another.
func (h *Host) Do(f func()) {
	// No goroutine but the host's own is ever on that thread.
	h.mu.Lock()
	thread := h.thread
	h.mu.Unlock()
	if threadID() == thread {
		f()
		return
	}
	j := &job{f: f, done: make(chan outcome, 1)}
	h.mu.Lock()
	work := h.work
	h.mu.Unlock()
	work <- j
	o := <-j.done
	switch {
	case o.panicked != nil:
		panic(fmt.Sprintf("on host %s: %v\n%s", h.name, o.panicked, o.stack))
	case o.exited:
		// Clean-up functions will want the host again.
		h.mu.Lock()
		err := h.start(func() error { return enterNamespace(h.ns) })
		h.mu.Unlock()
		if err != nil {
			panic(err)
		}
		runtime.Goexit()
	}
}

// Command prepares a command; one that [Host.Start] starts runs on this host.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	path, err := tool(name)
	if err != nil {
		h.lab.T().Helper()
		h.lab.T().Fatalf("netlab: host %s: %v", h.name, err)
	}
	return exec.Command(path, args...)
}

// Start starts the command on this host. It is killed when the test ends, at
// the latest with the lab.
func (h *Host) Start(cmd *exec.Cmd) {
	t := h.lab.T()
	t.Helper()
	var err error
	killWithParent(cmd)
	h.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatalf("netlab: host %s: %v: %v", h.name, cmd.Args, err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait() // an error if the test has waited itself
	})
}

// Run runs a command on this host and returns what it wrote to its standard
// output. The test fails if the command does, with all that it wrote.
func (h *Host) Run(name string, args ...string) string {
	t := h.lab.T()
	t.Helper()
	out, err := h.run(name, args...)
	if err != nil {
		t.Fatalf("netlab: host %s: %v", h.name, err)
	}
	return out
}

// IP runs the ip command on this host, like [Host.Run]. Write "dev" before an
// interface's name: ip takes a short one for an abbreviated keyword.
func (h *Host) IP(args ...string) string {
	h.lab.T().Helper()
	return h.Run("ip", args...)
}

func (h *Host) run(name string, args ...string) (string, error) { return h.runWith(nil, name, args...) }

// runWith runs a command that has file as its descriptor 3.
func (h *Host) runWith(file *os.File, name string, args ...string) (string, error) {
	path, err := tool(name)
	if err != nil {
		return "", err
	}
	cmd := exec.Command(path, args...)
	killWithParent(cmd)
	if file != nil {
		cmd.ExtraFiles = []*os.File{file}
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	h.Do(func() { err = cmd.Start() })
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s%s", name, strings.Join(args, " "), err, stderr.Bytes(), stdout.Bytes())
	}
	return stdout.String(), nil
}

// sysctlPath is the file of "net.ipv4.igmp_max_msf", or of
// "net/ipv4/conf/eth0.1/mc_forwarding" where a dot is not a separator.
func sysctlPath(name string) string {
	if !strings.Contains(name, "/") {
		name = strings.ReplaceAll(name, ".", "/")
	}
	return "/proc/sys/" + name
}

// Sysctl sets one of the host's net.* variables.
func (h *Host) Sysctl(name, value string) {
	t := h.lab.T()
	t.Helper()
	var err error
	h.Do(func() { err = os.WriteFile(sysctlPath(name), []byte(value), 0) })
	if err != nil {
		t.Fatalf("netlab: host %s: %s = %s: %v", h.name, name, value, err)
	}
}

// ReadSysctl returns one of the host's net.* variables.
func (h *Host) ReadSysctl(name string) string {
	h.lab.T().Helper()
	return strings.TrimSpace(h.readFile(sysctlPath(name)))
}

// readFile reads a file as the host's thread sees it.
func (h *Host) readFile(name string) string {
	t := h.lab.T()
	t.Helper()
	var data []byte
	var err error
	h.Do(func() { data, err = os.ReadFile(name) })
	if err != nil {
		t.Fatalf("netlab: host %s: %v", h.name, err)
	}
	return string(data)
}

// HasIPv6 reports whether the kernel speaks IPv6.
func (h *Host) HasIPv6() (has bool) {
	h.Do(func() {
		_, err := os.Stat("/proc/sys/net/ipv6/conf")
		has = err == nil
	})
	return has
}

// Interface returns what package net says about one of the host's interfaces.
func (h *Host) Interface(ifname string) *net.Interface {
	t := h.lab.T()
	t.Helper()
	var ifi *net.Interface
	var err error
	h.Do(func() { ifi, err = net.InterfaceByName(ifname) })
	if err != nil {
		t.Fatalf("netlab: host %s: %s: %v", h.name, ifname, err)
	}
	return ifi
}

// Index returns the index of one of the host's interfaces.
func (h *Host) Index(ifname string) int {
	h.lab.T().Helper()
	return h.Interface(ifname).Index
}

// Addrs returns the addresses of one of the host's interfaces.
func (h *Host) Addrs(ifname string) []netip.Prefix {
	t := h.lab.T()
	t.Helper()
	var addrs []net.Addr
	ifi := h.Interface(ifname)
	var err error
	h.Do(func() { addrs, err = ifi.Addrs() })
	if err != nil {
		t.Fatalf("netlab: host %s: %s: %v", h.name, ifname, err)
	}
	var prefixes []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			prefixes = append(prefixes, p)
		}
	}
	return prefixes
}

// Addr4 returns the first IPv4 address of one of the host's interfaces.
func (h *Host) Addr4(ifname string) netip.Addr {
	h.lab.T().Helper()
	return h.addr(ifname, "IPv4", netip.Addr.Is4)
}

// Addr6 returns an IPv6 address of one of the host's interfaces that is not
// link-local: of those that the lab added, the first.
func (h *Host) Addr6(ifname string) netip.Addr {
	h.lab.T().Helper()
	if k, i, ok := h.lab.find(h, ifname); ok {
		for _, p := range k.ends[i].addrs {
			if p.Addr().Is6() {
				return p.Addr()
			}
		}
	}
	return h.addr(ifname, "IPv6", func(a netip.Addr) bool { return a.Is6() && !a.IsLinkLocalUnicast() })
}

// LinkLocal returns the IPv6 link-local address of one of the host's
// interfaces, without a zone. The kernel makes it some time after the interface
// has come up, and lets nobody send from it while it is tentative, even without
// duplicate address detection: that is waited for.
func (h *Host) LinkLocal(ifname string) netip.Addr {
	t := h.lab.T()
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		// fe8000000000000000000000000000aa 0b 40 20 80 eth0: address, index,
		// length of the prefix, scope, flags, name.
		for line := range strings.Lines(h.readFile("/proc/thread-self/net/if_inet6")) {
			f := strings.Fields(line)
			if len(f) != 6 || f[3] != "20" || f[5] != ifname {
				continue
			}
			flags, err := strconv.ParseUint(f[4], 16, 32)
			b, err2 := hex.DecodeString(f[0])
			if err != nil || err2 != nil || len(b) != 16 {
				t.Fatalf("netlab: host %s: if_inet6: %q", h.name, line)
			}
			const tentative = 0x40 // IFA_F_TENTATIVE
			if flags&tentative == 0 {
				return netip.AddrFrom16([16]byte(b))
			}
		}
	}
	t.Fatalf("netlab: host %s: %s gets no link-local address: %v", h.name, ifname, h.Addrs(ifname))
	return netip.Addr{}
}

func (h *Host) addr(ifname, what string, f func(netip.Addr) bool) netip.Addr {
	t := h.lab.T()
	t.Helper()
	addrs := h.Addrs(ifname)
	for _, p := range addrs {
		if f(p.Addr()) {
			return p.Addr()
		}
	}
	t.Fatalf("netlab: host %s: %s has no %s address, but %v", h.name, ifname, what, addrs)
	return netip.Addr{}
}

// AddAddr adds an address ("10.0.0.1/24") to one of the host's interfaces.
func (h *Host) AddAddr(ifname, addr string) {
	t := h.lab.T()
	t.Helper()
	p, err := netip.ParsePrefix(addr)
	if err != nil {
		t.Fatalf("netlab: host %s: %s: %v", h.name, ifname, err)
	}
	h.addAddr(ifname, p)
	if k, i, ok := h.lab.find(h, ifname); ok && !slices.Contains(k.ends[i].addrs, p) {
		h.lab.mu.Lock()
		defer h.lab.mu.Unlock()
		k.ends[i].addrs = append(k.ends[i].addrs, p)
	}
}

func (h *Host) addAddr(ifname string, p netip.Prefix) {
	h.lab.T().Helper()
	args := []string{"addr", "replace", p.String(), "dev", ifname}
	if p.Addr().Is6() {
		args = append(args, "nodad")
	}
	h.IP(args...)
}

// Readdress adds the addresses again that the interface got from the lab or
// by [Host.AddAddr]. The kernel drops all of them when an interface moves to
// another host, and the IPv6 ones when it goes down.
func (h *Host) Readdress(ifname string) {
	h.lab.T().Helper()
	if k, i, ok := h.lab.find(h, ifname); ok {
		for _, p := range k.ends[i].addrs {
			h.addAddr(ifname, p)
		}
	}
}

// Up brings an interface up.
func (h *Host) Up(ifname string) {
	h.lab.T().Helper()
	h.IP("link", "set", "dev", ifname, "up")
}

// Down takes an interface down, as an administrator does. Its routes and its
// IPv6 addresses are gone then.
func (h *Host) Down(ifname string) {
	h.lab.T().Helper()
	h.IP("link", "set", "dev", ifname, "down")
}

// Carrier pulls the cable out of an interface, or plugs it in again: the
// other end of its veth pair goes down or up. A switch at that end forgets
// what it knew of the port.
func (h *Host) Carrier(ifname string, on bool) {
	h.lab.T().Helper()
	_, peer := h.ends(ifname)
	if on {
		peer.host.Up(peer.name)
		peer.host.Readdress(peer.name)
	} else {
		peer.host.Down(peer.name)
	}
}

func (h *Host) ends(ifname string) (own, peer *end) {
	t := h.lab.T()
	t.Helper()
	k, i, ok := h.lab.find(h, ifname)
	if !ok {
		t.Fatalf("netlab: host %s: %s is not an end of a veth pair of the lab", h.name, ifname)
	}
	return k.ends[i], k.ends[1-i]
}

// Delete deletes an interface, and with it the other end of its veth pair.
func (h *Host) Delete(ifname string) {
	h.lab.T().Helper()
	h.IP("link", "del", "dev", ifname)
}

// Recreate puts a new veth pair in the place of one that was deleted (or
// still is there), with the same names, addresses and bridge. The interface
// gets its old index or, as would a device that is plugged in anew, another.
func (h *Host) Recreate(ifname string, sameIndex bool) {
	h.lab.T().Helper()
	own, peer := h.ends(ifname)
	h.run("ip", "link", "del", "dev", ifname) // it may be gone already
	if !sameIndex {
		own.index = h.lab.newIndex()
	}
	peer.index = h.lab.newIndex()
	h.lab.create(&link{ends: [2]*end{own, peer}})
}

// Move moves an interface to another host. It keeps its index, is down there
// and has no addresses: see [Host.Up] and [Host.Readdress].
func (h *Host) Move(ifname string, to *Host) {
	t := h.lab.T()
	t.Helper()
	own, _ := h.ends(ifname)
	if _, err := h.runWith(to.ns, "ip", "link", "set", "dev", ifname, "netns", "/proc/self/fd/3"); err != nil {
		t.Fatalf("netlab: host %s: %v", h.name, err)
	}
	h.lab.mu.Lock()
	defer h.lab.mu.Unlock()
	own.host = to
}

// IGMP returns the host's IPv4 memberships: /proc/net/igmp.
func (h *Host) IGMP() []Member {
	h.lab.T().Helper()
	return readProc(h, "igmp", ParseIGMP)
}

// IGMP6 returns the host's IPv6 memberships: /proc/net/igmp6.
func (h *Host) IGMP6() []Member {
	h.lab.T().Helper()
	return readProc(h, "igmp6", ParseIGMP6)
}

// SourceFilters returns the host's IPv4 source filters: /proc/net/mcfilter.
// It is no proof that there are none: the kernel shows nothing of a device
// whose newest group has no sources.
func (h *Host) SourceFilters() []SourceFilter {
	h.lab.T().Helper()
	return readProc(h, "mcfilter", ParseMCFilter)
}

// SourceFilters6 returns the host's IPv6 source filters: /proc/net/mcfilter6,
// with the same reservation as [Host.SourceFilters].
func (h *Host) SourceFilters6() []SourceFilter {
	h.lab.T().Helper()
	return readProc(h, "mcfilter6", ParseMCFilter6)
}

// Users returns how many memberships the host's sockets have in a group on an
// interface, by /proc/net/igmp or igmp6.
func (h *Host) Users(ifname string, group netip.Addr) int {
	h.lab.T().Helper()
	members := h.IGMP
	if group.Is6() {
		members = h.IGMP6
	}
	for _, m := range members() {
		if m.Device == ifname && m.Group == group {
			return m.Users
		}
	}
	return 0
}

func readProc[T any](h *Host, name string, parse func(string) ([]T, error)) []T {
	t := h.lab.T()
	t.Helper()
	// /proc/net is the process's, that is its first thread's.
	text := h.readFile("/proc/thread-self/net/" + name)
	entries, err := parse(text)
	if err != nil {
		t.Fatalf("netlab: host %s: %s: %v\n%s", h.name, name, err, text)
	}
	return entries
}
