// Package netlab gives tests real hosts on Linux: network namespaces joined by
// veth pairs and by bridges that snoop on IGMP and MLD, with captures of what
// crosses the wire and readers of what each kernel recorded. It needs no
// privileges and no hardware, and leaves nothing behind.
//
//	func TestJoin(t *testing.T) {
//		netlab.Run(t, func(l *netlab.Lab) {
//			a, b := l.Host("a"), l.Host("b")
//			l.Switch(a, b)                // each has eth0 now, with addresses
//			wire := b.Capture("eth0")
//			b.Do(func() { /* open sockets, join */ })
//			a.Send(t, "eth0", a.Addr4("eth0"), to, "hello")
//			wire.WantRecord(t, netlab.AllowNewSources, group, source)
//		})
//	}
//
// # How it runs
//
// [Run] starts the test binary once more, for that one test, in a user and a
// network namespace of its own. There the function runs; here the test takes
// over its result. All of the test belongs into the function: what stands
// before or after Run is executed twice, once of it outside of the lab.
//
// The kernel frees the namespaces, and the interfaces in them, when the last
// process in them is gone. Nothing is ever sent outside of them.
//
// Where the lab cannot be built (another system, no user namespaces, no ip
// command), the test is skipped and says why. With MCAST_LAB=require in the
// environment it fails instead, on Linux: a CI in which it is skipped proves
// nothing.
//
// # Threads and hosts
//
// On Linux a network namespace belongs to a thread. A socket stays in the
// namespace it was opened in, whoever uses it; but what looks at interfaces
// (net.InterfaceByName, a netlink socket, /proc/thread-self/net) sees those of
// the thread it runs on. So do these in [Host.Do]. A goroutine started in Do
// is not in Do: it runs in the namespace of [Lab.Local]. Code that starts
// goroutines which look at interfaces is tested on that host.
//
// No two interfaces of a lab have the same index, not even on different
// hosts, so that an index used on the wrong host is an error and not luck.
// Package net caches interface names per process, for a minute: write IPv6
// zones as numbers.
package netlab

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	envChild   = "MCAST_NETLAB"         // "child" in the process that Run started
	envOutside = "MCAST_NETLAB_OUTSIDE" // the namespace that process must not be in
	envRequire = "MCAST_LAB"            // "require": a lab that cannot be built fails the test
)

// A Lab is a set of hosts. Its methods, and those of its hosts, fail the
// current test when something cannot be done: call them from the test's
// goroutine, or inside [Host.Do].
type Lab struct {
	mu        sync.Mutex
	t         *testing.T // the current one
	hosts     map[string]*Host
	links     []*link
	lastIndex int
	switches  int
}

// Run runs f in a lab of its own. It may only be called by a top-level test
// function, and only once.
func Run(t *testing.T, f func(l *Lab)) {
	t.Helper()
	if strings.Contains(t.Name(), "/") {
		t.Fatal("netlab: Run belongs into a top-level test: use Lab.Run for subtests")
	}
	if os.Getenv(envChild) == "child" {
		runChild(t, f)
		return
	}
	if runtime.GOOS != "linux" {
		t.Skip("netlab: network namespaces are a Linux thing")
	}
	if _, err := tool("ip"); err != nil {
		unavailable(t, err)
	}
	runParent(t)
}

// unavailable ends a test whose lab cannot be built.
func unavailable(t testing.TB, reason any) {
	t.Helper()
	if os.Getenv(envRequire) == "require" {
		t.Fatalf("netlab: no lab, but %s=require: %v", envRequire, reason)
	}
	t.Skipf("netlab: no lab: %v", reason)
}

func runChild(t *testing.T, f func(l *Lab)) {
	t.Helper()
	// Whoever sets the variable by hand must not get a lab in his own network.
	outside := os.Getenv(envOutside)
	if ns, err := namespaceID(); err != nil || outside == "" || ns == outside {
		t.Fatalf("netlab: %s is set, but this is no lab: namespace %q, outside %q (%v)", envChild, ns, outside, err)
	}
	l := &Lab{t: t, hosts: make(map[string]*Host), lastIndex: 10}
	l.probe()
	f(l)
}

func runParent(t *testing.T) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		unavailable(t, err)
	}
	outside, err := namespaceID()
	if err != nil {
		unavailable(t, err)
	}
	env := append(os.Environ(), envChild+"=child", envOutside+"="+outside)
	if race := os.Getenv("GORACE"); !strings.Contains(race, "atexit_sleep_ms") {
		// A race detector would have every lab sleep for a second at its end.
		env = append(env, "GORACE="+strings.TrimSpace(race+" atexit_sleep_ms=20"))
	}
	var out bytes.Buffer
	// The child dies with the thread that started it: keep that thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	wait, err := startChild(func() *exec.Cmd {
		cmd := exec.Command(exe, childArgs(t)...)
		cmd.Env, cmd.Stdout, cmd.Stderr = env, &out, &out
		cmd.WaitDelay = time.Second // for daemons that kept our pipe
		return cmd
	})
	if err != nil {
		unavailable(t, err)
	}
	err = wait()
	text := quote(out.String())
	result := func(word string) bool { return strings.Contains("\n"+out.String(), "\n--- "+word+": "+t.Name()+" (") }
	switch {
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		t.Fatalf("in the lab: %v\n%s", err, text)
	case result("SKIP"):
		t.Skipf("in the lab:\n%s", text)
	case !result("PASS"):
		t.Fatalf("in the lab: the test did not run\n%s", text)
	case testing.Verbose():
		t.Logf("in the lab:\n%s", text)
	}
}

// quote marks another process's output, so that no line of it is taken for a
// result of this one.
func quote(s string) string {
	s = strings.TrimRight(s, "\n")
	return "| " + strings.ReplaceAll(s, "\n", "\n| ")
}

// childArgs are the arguments that make the test binary run this one test, as
// this process would run it.
func childArgs(t *testing.T) []string {
	run := "^" + t.Name() + "$"
	var args, own []string
	flag.Visit(func(f *flag.Flag) {
		value := f.Value.String()
		switch name, isTest := strings.CutPrefix(f.Name, "test."); {
		case !isTest:
			own = append(own, "-"+f.Name+"="+value)
		case name == "run":
			// The part that selects subtests.
			if _, sub, ok := strings.Cut(value, "/"); ok && !strings.Contains(value, "|") {
				run += "/" + sub
			}
		case name == "short", name == "skip", name == "failfast", name == "parallel":
			args = append(args, "-"+f.Name+"="+value)
		case name == "gocoverdir" && value != "":
			// Counters of many processes may share this directory: whoever
			// reads it adds them up. A -test.coverprofile would be overwritten.
			args = append(args, "-"+f.Name+"="+value)
		}
	})
	// The child is to find out first that it takes too long: it can say where.
	timeout := time.Duration(0)
	if deadline, ok := t.Deadline(); ok {
		timeout = time.Until(deadline)
		timeout = max(timeout-min(5*time.Second, timeout/10), time.Millisecond)
	}
	args = append(args, "-test.run="+run, "-test.v=true", "-test.count=1", "-test.timeout="+timeout.String())
	return append(args, own...)
}

// tool finds a command that an ordinary user may not have in PATH.
func tool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", err
}

// T returns the current test: the one given to [Run], or that of the
// innermost [Lab.Run].
func (l *Lab) T() *testing.T {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.t
}

// Run runs f as a subtest. While it runs, failures of the lab's methods are
// its failures; so it must not call t.Parallel.
func (l *Lab) Run(name string, f func(t *testing.T)) bool {
	outer := l.T()
	return outer.Run(name, func(t *testing.T) {
		l.setT(t)
		defer l.setT(outer)
		f(t)
	})
}

func (l *Lab) setT(t *testing.T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t = t
}

// probe ends the test when there is nothing to build a lab from.
func (l *Lab) probe() {
	l.T().Helper()
	h, err := l.newHost("probe", true)
	if err != nil {
		unavailable(l.T(), err)
	}
	if _, err := h.run("ip", "link", "add", "name", "probe0", "type", "veth", "peer", "name", "probe1"); err != nil {
		unavailable(l.T(), err)
	}
	h.stop() // and the namespace with all that is in it is gone
}

// Host makes a new host: a network namespace with nothing but a loopback
// interface, which is up. Interfaces that come to it later are usable at once
// (no duplicate address detection), and drop nothing for its source address
// (no rp_filter).
func (l *Lab) Host(name string) *Host {
	l.T().Helper()
	return l.host(name, true)
}

// Local is the host on which all goroutines of the test run that are not in
// [Host.Do] of another one. Its name is "local".
func (l *Lab) Local() *Host {
	l.T().Helper()
	l.mu.Lock()
	h := l.hosts["local"]
	l.mu.Unlock()
	if h != nil {
		return h
	}
	return l.host("local", false)
}

func (l *Lab) host(name string, isNew bool) *Host {
	t := l.T()
	t.Helper()
	// Host names are interface names too: those of the ports of a switch.
	if name == "" || len(name) > 15 || strings.ContainsAny(name, "/ ") {
		t.Fatalf("netlab: host name %q", name)
	}
	l.mu.Lock()
	_, exists := l.hosts[name]
	l.mu.Unlock()
	if exists {
		t.Fatalf("netlab: there is a host %q already", name)
	}
	h, err := l.newHost(name, isNew)
	if err != nil {
		t.Fatalf("netlab: host %s: %v", name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hosts[name] = h
	return h
}

// newIndex returns an interface index that no interface of the lab has had.
func (l *Lab) newIndex() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastIndex++
	return l.lastIndex
}

// A link is a veth pair.
type link struct {
	ends [2]*end
}

// An end is one interface of a veth pair and what the lab did to it.
type end struct {
	host   *Host
	name   string
	index  int
	master string         // the bridge it is a port of
	addrs  []netip.Prefix // in the order they were added
}

// find returns the link and which of its ends that interface is.
func (l *Lab) find(h *Host, ifname string) (*link, int, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.links {
		for i, e := range k.ends {
			if e.host == h && e.name == ifname {
				return k, i, true
			}
		}
	}
	return nil, 0, false
}

// Veth joins two hosts by a veth pair, a cable with an interface at each end,
// and brings both up.
func (l *Lab) Veth(a *Host, aName string, b *Host, bName string) {
	l.T().Helper()
	k := &link{ends: [2]*end{
		{host: a, name: aName, index: l.newIndex()},
		{host: b, name: bName, index: l.newIndex()},
	}}
	l.add(k)
}

func (l *Lab) add(k *link) {
	l.T().Helper()
	l.mu.Lock()
	l.links = append(l.links, k)
	l.mu.Unlock()
	l.create(k)
}

// create makes the pair, with all that is known of it.
func (l *Lab) create(k *link) {
	t := l.T()
	t.Helper()
	a, b := k.ends[0], k.ends[1]
	if _, err := a.host.runWith(b.host.ns, "ip", "link", "add", "name", a.name, "index", fmt.Sprint(a.index), "type", "veth",
		"peer", "name", b.name, "index", fmt.Sprint(b.index), "netns", "/proc/self/fd/3"); err != nil {
		t.Fatalf("netlab: host %s: %v", a.host.name, err)
	}
	for _, e := range k.ends {
		if e.master != "" {
			e.host.IP("link", "set", "dev", e.name, "master", e.master)
		}
		e.host.Up(e.name)
	}
	for _, e := range k.ends {
		e.host.Readdress(e.name)
	}
}
