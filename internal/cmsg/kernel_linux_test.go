package cmsg_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.com/mcast/internal/cmsg"
	"golang.org/x/sys/unix"
)

// hostFormat is that of the kernel that runs the tests.
func hostFormat() *cmsg.Format {
	f := cmsg.Linux(strconv.IntSize/8, binary.NativeEndian)
	f.SocketLevel = unix.SOL_SOCKET
	return f
}

func TestSocketLevel(t *testing.T) {
	want := 1
	if strings.HasPrefix(runtime.GOARCH, "mips") {
		want = 0xffff
	}
	if unix.SOL_SOCKET != want {
		t.Errorf("SOL_SOCKET is %d, want %d", unix.SOL_SOCKET, want)
	}
}

// TestSizes: the size of a header and its alignment are those that package unix
// has for this system.
func TestSizes(t *testing.T) {
	f := hostFormat()
	b, _ := f.AppendSend(nil, false, 1, netip.Addr{})
	b6, _ := f.AppendSend(nil, true, 1, netip.Addr{})
	segment, _ := f.AppendSegment(nil, 1)
	got := [...]int{len(b), len(b6), len(segment)}
	want := [...]int{unix.CmsgSpace(unix.SizeofInet4Pktinfo), unix.CmsgSpace(unix.SizeofInet6Pktinfo), unix.CmsgSpace(2)}
	if got != want {
		t.Errorf("messages have %d bytes, want %d", got, want)
	}
}

// room is what all messages at once need: at most 120 bytes.
const room = 128

// TestKernel has the kernel send datagrams over loopback, and tell all that can
// be asked about them at once.
func TestKernel(t *testing.T) {
	f := hostFormat()
	for ipv6, address := range map[bool]string{false: "127.0.0.1", true: "::1"} {
		t.Run(address, func(t *testing.T) {
			to := netip.MustParseAddr(address)
			receiver := listen(t, to)
			for _, options := range [][]cmsg.Option{f.PacketInfo(ipv6), f.HopLimit(ipv6), f.Coalesce()} {
				for _, o := range options {
					set(t, receiver, o)
				}
			}
			for i, o := range f.Timestamp() {
				set(t, receiver, o)
				sender := listen(t, to)
				if err := setTTL(sender, ipv6, 7+i); err != nil {
					t.Fatal(err)
				}

				before := time.Now()
				// Two datagrams of 3 bytes and one of 2, which the receiver gets as one.
				control, ok := f.AppendSegment(nil, 3)
				if !ok {
					t.Fatal("no message for the size of segments")
				}
				payload, info, _ := exchange(t, f, sender, receiver, ipv6, "abcdefgh", control)
				if payload != "abcdefgh" || info.Segment != 3 || cmsg.Count(len(payload), info.Segment) != 3 {
					t.Errorf("%q in segments of %d, want abcdefgh of 3", payload, info.Segment)
				}
				check(t, info, to, 7+i, before)

				// One datagram is no several.
				payload, info, _ = exchange(t, f, sender, receiver, ipv6, "abc", nil)
				if payload != "abc" || info.Segment != 0 {
					t.Errorf("%q in segments of %d, want abc of 0", payload, info.Segment)
				}
				check(t, info, to, 7+i, before)
			}
		})
	}
}

func check(t *testing.T, info cmsg.Info, to netip.Addr, hops int, before time.Time) {
	t.Helper()
	if info.Dst != to || info.Index != loopback(t) || info.HopLimit != hops {
		t.Errorf("%+v, want %v on interface %d, hop limit %d", info, to, loopback(t), hops)
	}
	if d := info.Time.Sub(before); d < -time.Second || d > 10*time.Second {
		t.Errorf("it arrived at %v, %v after it was sent", info.Time, d)
	}
}

// TestKernelOptionsAlone: each option brings what it is for, and nothing else.
func TestKernelOptionsAlone(t *testing.T) {
	f := hostFormat()
	for ipv6, address := range map[bool]string{false: "127.0.0.1", true: "::1"} {
		to := netip.MustParseAddr(address)
		sets := map[string][]cmsg.Option{
			"nothing":  nil,
			"info":     f.PacketInfo(ipv6),
			"hops":     f.HopLimit(ipv6),
			"time new": f.Timestamp()[:1],
			"time old": f.Timestamp()[1:],
			"coalesce": f.Coalesce(),
		}
		for name, options := range sets {
			t.Run(address+" "+name, func(t *testing.T) {
				receiver, sender := listen(t, to), listen(t, to)
				for _, o := range options {
					set(t, receiver, o)
				}
				_, got, _ := exchange(t, f, sender, receiver, ipv6, "abc", nil)
				if strings.HasPrefix(name, "time") == got.Time.IsZero() {
					t.Errorf("time %v", got.Time)
				}
				got.Time = time.Time{}
				want := cmsg.Info{}
				switch name {
				case "info":
					want.Dst, want.Index = to, loopback(t)
				case "hops":
					want.HopLimit = 64
				}
				if got != want {
					t.Errorf("got %+v, want %+v", got, want)
				}
			})
		}
	}
}

// TestKernelSend: the message picks the source address, the interface, or both.
func TestKernelSend(t *testing.T) {
	f := hostFormat()
	tests := []struct {
		to, bind string // bind: of the sender
		index    int
		from     string
		want     string // source address; "": the kernel refuses
	}{
		{to: "127.0.0.1", bind: "0.0.0.0", want: "127.0.0.1"},
		{to: "127.0.0.1", bind: "0.0.0.0", from: "127.0.0.2", want: "127.0.0.2"},
		{to: "127.0.0.1", bind: "0.0.0.0", from: "127.0.0.2", index: loopback(t), want: "127.0.0.2"},
		{to: "127.0.0.1", bind: "0.0.0.0", index: loopback(t), want: "127.0.0.1"},
		{to: "127.0.0.1", bind: "0.0.0.0", index: 1 << 30},    // no such interface
		{to: "127.0.0.1", bind: "0.0.0.0", from: "192.0.2.1"}, // not ours
		{to: "::1", bind: "::", from: "::1", want: "::1"},
		{to: "::1", bind: "::", index: loopback(t), want: "::1"},
		{to: "::1", bind: "::", index: loopback(t), from: "::1", want: "::1"},
		{to: "::1", bind: "::", index: 1 << 30},
		{to: "::1", bind: "::", from: "2001:db8::1"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s by %d from %s", tt.to, tt.index, tt.from), func(t *testing.T) {
			to := netip.MustParseAddr(tt.to)
			receiver, sender := listen(t, to), listen(t, netip.MustParseAddr(tt.bind))
			var from netip.Addr
			if tt.from != "" {
				from = netip.MustParseAddr(tt.from)
			}
			control, ok := f.AppendSend(nil, to.Is6(), tt.index, from)
			if !ok {
				t.Fatal("not ok")
			}
			if tt.want == "" {
				if err := unix.Sendmsg(sender, []byte("abc"), control, name(t, receiver), 0); err == nil {
					t.Error("it was sent")
				}
				return
			}
			if _, _, got := exchange(t, f, sender, receiver, to.Is6(), "abc", control); got != netip.MustParseAddr(tt.want) {
				t.Errorf("it came from %v, want %s", got, tt.want)
			}
		})
	}
}

// TestKernelSendBoth sends segments from an address, with two messages.
func TestKernelSendBoth(t *testing.T) {
	f := hostFormat()
	receiver, sender := listen(t, netip.MustParseAddr("127.0.0.1")), listen(t, netip.IPv4Unspecified())
	set(t, sender, cmsg.Option{Level: unix.IPPROTO_UDP, Name: unix.UDP_SEGMENT, Value: make([]byte, 4)})
	control, _ := f.AppendSend(nil, false, 0, netip.MustParseAddr("127.0.0.2"))
	control, _ = f.AppendSegment(control, 2)
	want := []string{"ab", "cd", "e"}
	payload, _, from := exchange(t, f, sender, receiver, false, "abcde", control)
	for i := range want {
		if payload != want[i] || from != netip.MustParseAddr("127.0.0.2") {
			t.Errorf("%q from %v, want %q from 127.0.0.2", payload, from, want[i])
		}
		if i < len(want)-1 {
			payload, _, from = receive(t, f, receiver, false)
		}
	}
}

// exchange sends a datagram and receives it.
func exchange(t *testing.T, f *cmsg.Format, sender, receiver int, ipv6 bool, payload string, control []byte) (string, cmsg.Info, netip.Addr) {
	t.Helper()
	if err := unix.Sendmsg(sender, []byte(payload), control, name(t, receiver), 0); err != nil {
		t.Fatalf("sendmsg with %x: %v", control, err)
	}
	return receive(t, f, receiver, ipv6)
}

func receive(t *testing.T, f *cmsg.Format, receiver int, ipv6 bool) (payload string, info cmsg.Info, from netip.Addr) {
	t.Helper()
	b, control := make([]byte, 100), make([]byte, room)
	n, controls, flags, sa, err := unix.Recvmsg(receiver, b, control, 0)
	if err != nil || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		t.Fatalf("recvmsg: %v, flags %#x", err, flags)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		from = netip.AddrFrom4(sa.Addr)
	case *unix.SockaddrInet6:
		from = netip.AddrFrom16(sa.Addr)
	}
	return string(b[:n]), f.Parse(control[:controls], ipv6), from
}

// listen opens a socket with a port of its own, which gives up after a while.
func listen(t *testing.T, a netip.Addr) int {
	t.Helper()
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: a.As16()})
	if a.Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: a.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == unix.EAFNOSUPPORT {
		t.Skip("this kernel has no IPv6")
	} else if err != nil {
		t.Fatal(os.NewSyscallError("socket", err))
	}
	t.Cleanup(func() { unix.Close(fd) })
	timeout := unix.NsecToTimeval(int64(5 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		t.Fatal(os.NewSyscallError("setsockopt", err))
	}
	if err := unix.Bind(fd, sa); err == unix.EADDRNOTAVAIL && a.Is6() {
		t.Skip("this host has no IPv6")
	} else if err != nil {
		t.Fatal(os.NewSyscallError("bind", err))
	}
	return fd
}

func name(t *testing.T, fd int) unix.Sockaddr {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(os.NewSyscallError("getsockname", err))
	}
	return sa
}

func loopback(t *testing.T) int {
	t.Helper()
	ifi, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	return ifi.Index
}

func setTTL(fd int, ipv6 bool, n int) error {
	if ipv6 {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, n)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, n)
}

// set sets an option. Not every kernel has each: UDP_SEGMENT came with 4.18,
// UDP_GRO with 5.0, SO_TIMESTAMPNS_NEW with 5.1.
func set(t *testing.T, fd int, o cmsg.Option) {
	t.Helper()
	switch err := unix.SetsockoptString(fd, o.Level, o.Name, string(o.Value)); err {
	case nil:
	case unix.ENOPROTOOPT:
		t.Skipf("this kernel has no option %d at level %d", o.Name, o.Level)
	default:
		t.Fatalf("option %d at level %d: %v", o.Name, o.Level, err)
	}
}
