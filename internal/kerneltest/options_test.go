//go:build !plan9

package kerneltest

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"
)

// TestSettings sets what concerns no membership: known ones are kept, a wrong number,
// level or length is refused with the system's own error.
func TestSettings(t *testing.T) {
	for _, tt := range []struct {
		kernel        func() *Kernel
		level, name   int
		size          int
		want, shorter syscall.Errno
	}{
		{Linux, 0, 8, 4, 0, 0},     // IP_PKTINFO takes a byte
		{Linux, 41, 49, 4, 0, 22},  // IPV6_RECVPKTINFO does not
		{Linux, 0, 12, 4, 0, 0},    // IP_RECVTTL
		{Linux, 41, 51, 4, 0, 22},  // IPV6_RECVHOPLIMIT
		{Linux, 1, 64, 4, 0, 22},   // SO_TIMESTAMPNS_NEW
		{Linux, 17, 104, 4, 0, 22}, // UDP_GRO
		{Linux, 1, 46, 4, 0, 22},   // SO_BUSY_POLL
		{Linux, 1, 33, 4, 0, 22},   // SO_RCVBUFFORCE
		{Linux, 1, 55, 36, 92, 92}, // SO_MEMINFO is not to be set
		{Linux, 0xffff, 0x1002, 4, 92, 92},
		{Linux, 0, 26, 4, 92, 92},   // macOS' IP_PKTINFO
		{Linux, 17, 105, 4, 92, 92}, // one too many
		{Linux, 132, 4, 4, 92, 92},

		{Darwin, 0, 26, 4, 0, 22},   // IP_PKTINFO
		{Darwin, 41, 61, 4, 0, 22},  // IPV6_RECVPKTINFO
		{Darwin, 41, 61, 8, 22, 22}, // exactly an int
		{Darwin, 0, 24, 4, 0, 22},   // IP_RECVTTL
		{Darwin, 0xffff, 0x400, 4, 0, 22},
		{Darwin, 0xffff, 0x1002, 4, 0, 22},
		{Darwin, 0, 8, 4, 42, 42},
		{Darwin, 1, 8, 4, 42, 42},
		{Darwin, 17, 104, 4, 42, 42},

		{FreeBSD, 0, 7, 4, 0, 22},   // IP_RECVDSTADDR
		{FreeBSD, 0, 20, 4, 0, 22},  // IP_RECVIF
		{FreeBSD, 0, 65, 4, 0, 22},  // IP_RECVTTL
		{FreeBSD, 41, 36, 4, 0, 22}, // IPV6_RECVPKTINFO
		{FreeBSD, 0, 26, 4, 42, 42}, // macOS' IP_PKTINFO

		{Windows, 0, 19, 4, 0, 10014},  // IP_PKTINFO
		{Windows, 41, 19, 4, 0, 10014}, // IPV6_PKTINFO
		{Windows, 41, 21, 4, 0, 10014}, // IPV6_HOPLIMIT
		{Windows, 0xffff, 0x1002, 4, 0, 10014},
		{Windows, 0, 8, 4, 10042, 10042},
	} {
		k := tt.kernel()
		s := k.Socket(tt.level == 41)
		value := bytes.Repeat([]byte{1}, tt.size)
		expect(t, s.Setsockopt(tt.level, tt.name, value), tt.want)
		expect(t, s.Setsockopt(tt.level, tt.name, value[:3]), tt.shorter)
		if tt.want != 0 {
			if v := s.Option(tt.level, tt.name); v != nil {
				t.Errorf("%s %d/%d is %x", k.sys.name, tt.level, tt.name, v)
			}
			continue
		}
		if tt.shorter != 0 {
			back := make([]byte, tt.size)
			n, err := s.Getsockopt(tt.level, tt.name, back)
			if err != nil || !bytes.Equal(back[:n], value) || !bytes.Equal(s.Option(tt.level, tt.name), value) {
				t.Errorf("%s %d/%d: %x %v", k.sys.name, tt.level, tt.name, back[:n], err)
			}
		}
	}

	// Windows takes an index in network order and tells it in its own.
	s := Windows().Socket(false)
	expect(t, s.Setsockopt(0, 9, []byte{0, 0, 0, 3}), 0)
	back := make([]byte, 4)
	if n, err := s.Getsockopt(0, 9, back); n != 4 || err != nil || !bytes.Equal(back, []byte{3, 0, 0, 0}) {
		t.Errorf("IP_MULTICAST_IF: %x %v", back, err)
	}
}

// TestSender names the interface to send by: one there is, none, one there is not and
// one that has gone.
func TestSender(t *testing.T) {
	for _, tt := range []struct {
		kernel        func() *Kernel
		level, name   int
		value         func(index byte) []byte
		unknown, away syscall.Errno
	}{
		{Linux, 0, 32, func(i byte) []byte { return bytesAt(12, 8, hexDigits(i)) }, 99, 99},
		{Linux, 41, 17, func(i byte) []byte { return []byte{i, 0, 0, 0} }, 19, 19},
		{Darwin, 0, 9, func(i byte) []byte { return []byte{0, 0, 0, i} }, 49, 49},
		{Darwin, 0, 9, func(i byte) []byte { return bytesAt(12, 8, hexDigits(i)) }, 22, 49},
		{Darwin, 0, 66, func(i byte) []byte { return []byte{i, 0, 0, 0} }, 6, 49},
		{Darwin, 41, 9, func(i byte) []byte { return []byte{i, 0, 0, 0} }, 22, 49},
		{FreeBSD, 0, 9, func(i byte) []byte { return bytesAt(12, 8, hexDigits(i)) }, 22, 49},
		{FreeBSD, 41, 9, func(i byte) []byte { return []byte{i, 0, 0, 0} }, 22, 49},
		{Windows, 0, 9, func(i byte) []byte { return []byte{0, 0, 0, i} }, 10049, 10049},
		{Windows, 41, 9, func(i byte) []byte { return []byte{i, 0, 0, 0} }, 10049, 10049},
	} {
		k := tt.kernel()
		s := k.Socket(tt.level == 41)
		expect(t, s.Setsockopt(tt.level, tt.name, tt.value(3)), 0)
		expect(t, s.Setsockopt(tt.level, tt.name, tt.value(0)), 0)
		expect(t, s.Setsockopt(tt.level, tt.name, tt.value(9)), tt.unknown)
		k.AddInterface(9, Interface{Name: "eth9", Up: true})
		k.RemoveInterface(3)
		expect(t, s.Setsockopt(tt.level, tt.name, tt.value(3)), tt.away)
	}
	s := Linux().Socket(false)
	expect(t, s.Setsockopt(0, 32, []byte{192, 0, 2, 1}), 0)
	expect(t, s.Setsockopt(0, 32, []byte{192, 0, 2, 99}), 99)
	expect(t, s.Setsockopt(0, 32, []byte{239, 1, 1, 1, 192, 0, 2, 1}), 0)
}

func hexDigits(i byte) string { return fmt.Sprintf("%02x", i) }
