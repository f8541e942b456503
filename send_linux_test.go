package mcast

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"example.com/mcast/internal/netlab"
	"golang.org/x/sys/unix"
)

// batchOf makes messages of those sizes to a group, each with its number in the
// first 4 bytes, as far as there are that many.
func batchOf(group netip.Addr, port int, sizes ...int) []Message {
	ms := make([]Message, len(sizes))
	for i, size := range sizes {
		ms[i] = Message{Buf: append(payload(uint32(i), size), 0xaa), N: size, Group: Group{Addr: group}, Port: port}
	}
	return ms
}

// expect reads what was sent, in its order for each group.
func expect(t *testing.T, c *Conn, sent []Message) {
	t.Helper()
	want := make(map[netip.Addr][]string)
	for _, m := range sent {
		want[m.Group.Addr] = append(want[m.Group.Addr], string(m.Buf[:m.N]))
	}
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	m := Message{Buf: make([]byte, largest)}
	for i := range sent {
		if err := c.ReadMessage(&m); err != nil {
			t.Fatalf("%d of %d: %v", i, len(sent), err)
		}
		next := want[m.Group.Addr]
		if len(next) == 0 || next[0] != string(m.Buf[:m.N]) || m.Truncated {
			t.Fatalf("%d of %d: %d bytes to %v, want others", i, len(sent), m.N, m.Group)
		}
		want[m.Group.Addr] = next[1:]
	}
	c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if err := c.ReadMessage(&m); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes more: %v", m.N, err)
	}
}

// repeated lists a size so often.
func repeated(size, count int) []int { return slices.Repeat([]int{size}, count) }

// TestWriteBatchSegments: datagrams of one size and destination are one call's
// one header, in which at most the last is shorter; where the kernel does not
// take them apart, each has its own. They arrive as they were all the same.
func TestWriteBatchSegments(t *testing.T) {
	notEmulated(t)
	groups := []netip.Addr{netip.MustParseAddr("239.1.1.1"), netip.MustParseAddr("239.1.1.2")}
	c, port := listenOn(t, "udp4", "", nil)
	for _, g := range groups {
		if err := c.Join(Group{g, loopback}); err != nil {
			t.Fatal(err)
		}
	}
	to := groups[0]
	from := loSender(t, "127.0.0.1:0")
	if n, err := from.WriteBatch(batchOf(to, port, 5)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	expect(t, c, batchOf(to, port, 5))
	able := from.reader.writer.segments
	if !able {
		t.Log("this kernel does not take datagrams apart (Linux 4.18)")
	}
	inTurn := batchOf(groups[0], port, repeated(100, 10)...)
	for i := range inTurn {
		inTurn[i].Group.Addr = groups[i%2]
	}
	named := batchOf(to, port, repeated(100, 10)...)
	for i := range named {
		named[i].Group.Interface = loopback
	}
	half := slices.Concat(batchOf(to, port, repeated(100, 5)...), named[5:])
	for _, v := range []struct {
		name    string
		ms      []Message
		headers int
	}{
		{"none", nil, -1},
		{"all alike", batchOf(to, port, repeated(100, 10)...), 1},
		{"as many as a kernel takes", batchOf(to, port, repeated(8, 64)...), 1},
		{"one more", batchOf(to, port, repeated(8, 65)...), 2},
		{"a shorter one ends it", batchOf(to, port, 100, 100, 99, 99, 100), 3},
		{"a longer one does not belong", batchOf(to, port, 100, 101, 101, 101), 2},
		{"a short one first", batchOf(to, port, 1, 100, 100), 2},
		{"without bytes", batchOf(to, port, 100, 0, 0, 100, 0), 5},
		{"two long ones are too much", batchOf(to, port, 40000, 40000, 25487), 2},
		{"as much as there may be", batchOf(to, port, repeated(1023, 65)...), 2},
		{"the longest", batchOf(to, port, 65507, 65507), 2},
		{"two groups in turn", inTurn, 10},
		{"an interface is named", named, 1},
		{"half of them name one", half, 2},
		{"more than a call has", batchOf(to, port, slices.Repeat([]int{20, 10}, 600)...), -1},
	} {
		t.Run(v.name, func(t *testing.T) {
			for _, segments := range []bool{true, false} {
				if segments && !able {
					continue
				}
				from.reader.writer.segments = segments
				n, err := from.WriteBatch(v.ms)
				if n != len(v.ms) || err != nil {
					t.Fatalf("%d of %d were sent: %v", n, len(v.ms), err)
				}
				want := v.headers
				if !segments {
					want = len(v.ms)
				}
				if got := from.reader.writer.n; got != want && v.headers >= 0 {
					t.Errorf("segments %v: %d headers, want %d", segments, got, want)
				}
				expect(t, c, v.ms)
			}
			from.reader.writer.segments = able
			if from.reader.writer.refused != 0 {
				t.Errorf("%d bytes were refused", from.reader.writer.refused)
			}
		})
	}

	t.Run("random", func(t *testing.T) {
		seed := uint64(time.Now().UnixNano())
		r := rand.New(rand.NewPCG(seed, 0))
		for range 100 {
			var ms []Message
			for range 1 + r.IntN(8) {
				run := batchOf(groups[r.IntN(2)], port, repeated([]int{0, 1, 8, 100, 1316, 1317, 9000}[r.IntN(7)], 1+r.IntN(20))...)
				if last := &run[len(run)-1]; r.IntN(2) == 0 && last.N > 0 {
					last.N = r.IntN(last.N)
				}
				ms = append(ms, run...)
			}
			if n, err := from.WriteBatch(ms); n != len(ms) || err != nil {
				t.Fatalf("seed %d: %d of %d were sent: %v", seed, n, len(ms), err)
			}
			expect(t, c, ms)
		}
	})
}

// TestWriteBatchErrors: n says how many were sent, and so whom the error is
// about, in the middle of a run too.
func TestWriteBatchErrors(t *testing.T) {
	notEmulated(t)
	group := netip.MustParseAddr("239.1.1.1")
	c, port := listenOn(t, "udp4", "", nil)
	if err := c.Join(Group{group, loopback}); err != nil {
		t.Fatal(err)
	}
	from := loSender(t, "127.0.0.1:0")
	for _, v := range []struct {
		name  string
		spoil func(m *Message)
		want  error
	}{
		{"more than there is", func(m *Message) { m.N = len(m.Buf) + 1 }, os.ErrInvalid},
		{"less than nothing", func(m *Message) { m.N = -1 }, os.ErrInvalid},
		{"no such port", func(m *Message) { m.Port = 65536 }, os.ErrInvalid},
		{"port 0", func(m *Message) { m.Port = 0 }, unix.EINVAL},
		{"no address", func(m *Message) { m.Group = Group{} }, ErrAddress},
		{"the other family", func(m *Message) { m.Group.Addr = netip.MustParseAddr("ff02::1") }, ErrAddress},
		{"no such interface", func(m *Message) { m.Group.Interface = "nosuch0" }, ErrInterface},
		{"every interface", func(m *Message) { m.Group.Interface = "*" }, ErrInterface},
		{"too long", func(m *Message) { m.Buf, m.N = make([]byte, 65508), 65508 }, unix.EMSGSIZE},
	} {
		for _, at := range []int{0, 1, 5, 9} {
			t.Run(fmt.Sprint(v.name, " at ", at), func(t *testing.T) {
				ms := batchOf(group, port, repeated(100, 10)...)
				v.spoil(&ms[at])
				n, err := from.WriteBatch(ms)
				if n != at || !errors.Is(err, v.want) {
					t.Errorf("%d were sent, %v, want %d, %v", n, err, at, v.want)
				}
				expect(t, c, ms[:at])
				if from.reader.writer.refused != 0 {
					t.Errorf("%d bytes were refused", from.reader.writer.refused)
				}
			})
		}
	}
}

// TestLabWriteBatchMTU: what is longer than the link takes must be cut into
// fragments, which the kernel refuses together with taking apart. It is sent
// one by one then, at once and from then on; shorter ones are not.
func TestLabWriteBatchMTU(t *testing.T) {
	netlab.Run(t, func(l *netlab.Lab) {
		local, far := l.Local(), l.Host("far")
		l.Veth(local, "eth0", far, "eth0")
		local.AddAddr("eth0", "10.1.0.1/24")
		far.AddAddr("eth0", "10.1.0.2/24")
		for _, v := range []struct{ network, group string }{{"udp4", "239.1.1.1"}, {"udp6", "ff0e::1"}} {
			l.Run(v.network, func(t *testing.T) {
				if v.network == "udp6" && !local.HasIPv6() {
					t.Skip("no IPv6")
				}
				group := netip.MustParseAddr(v.group)
				var c, from *Conn
				var err error
				far.Do(func() { c, err = Listen(v.network, ":0", nil) })
				if err == nil {
					defer c.Close()
					err = c.Join(Group{group, "eth0"})
				}
				if err == nil {
					local.Do(func() { from, err = Listen(v.network, ":0", nil) })
				}
				if err == nil {
					defer from.Close()
					err = from.SetMulticastInterface("eth0")
				}
				if err != nil {
					t.Fatal(err)
				}
				write := func(headers int, sizes ...int) {
					t.Helper()
					ms := batchOf(group, c.origin.port, sizes...)
					if n, err := from.WriteBatch(ms); n != len(ms) || err != nil {
						t.Fatalf("%d of %d were sent: %v", n, len(ms), err)
					}
					if from.reader.writer.segments && from.reader.writer.n != headers {
						t.Errorf("%d headers in the last call, want %d", from.reader.writer.n, headers)
					}
					expect(t, c, ms)
				}
				write(1, repeated(1000, 20)...)
				write(15, append(repeated(1000, 5), repeated(2000, 15)...)...) // the first 5 were sent before
				if from.reader.writer.segments && from.reader.writer.refused != 2000 {
					t.Errorf("from %d bytes on datagrams are sent one by one, want 2000", from.reader.writer.refused)
				}
				write(1+15+2, slices.Concat(repeated(1000, 5), repeated(2000, 15), repeated(3000, 2))...)
				write(1, repeated(1400, 20)...)
			})
		}
	})
}
