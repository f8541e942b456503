package cmsg_test

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"example.com/mcast/internal/cmsg"
)

// formats are those of the systems whose control messages are read.
var formats = map[string]*cmsg.Format{
	"linux-64-little": cmsg.Linux(8, binary.LittleEndian),
	"linux-64-big":    cmsg.Linux(8, binary.BigEndian),
	"linux-32-little": cmsg.Linux(4, binary.LittleEndian),
	"linux-32-big":    cmsg.Linux(4, binary.BigEndian),
	"linux-mips":      mips(),
	"darwin":          cmsg.Darwin(),
	"freebsd-64":      cmsg.FreeBSD(8, 8),
	"freebsd-386":     cmsg.FreeBSD(4, 4),
	"freebsd-arm":     cmsg.FreeBSD(4, 8),
	"windows-64":      cmsg.Windows(8),
	"windows-32":      cmsg.Windows(4),
}

func mips() *cmsg.Format {
	f := cmsg.Linux(4, binary.BigEndian)
	f.SocketLevel = 0xffff // arch/mips/include/uapi/asm/socket.h
	return f
}

// fromHex reads bytes written in hexadecimal; "@24" fills with zeros up to 24
// of them.
func fromHex(text string) (b []byte, err error) {
	for word := range strings.FieldsSeq(text) {
		if at, ok := strings.CutPrefix(word, "@"); ok {
			n, err := strconv.Atoi(at)
			if err != nil || n < len(b) {
				return nil, fmt.Errorf("%s comes after %d bytes in %q", word, len(b), text)
			}
			b = append(b, make([]byte, n-len(b))...)
			continue
		}
		more, err := hex.DecodeString(word)
		if err != nil {
			return nil, fmt.Errorf("%q in %q: %w", word, text, err)
		}
		b = append(b, more...)
	}
	return b, nil
}

func hexBytes(t *testing.T, text string) []byte {
	t.Helper()
	b, err := fromHex(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestOptions checks the options of every system, as level, name and value,
// against numbers that were taken from its headers.
func TestOptions(t *testing.T) {
	const on, big = "01000000", "00000001"
	linux := func(socket int, on string) [6]string {
		return [...]string{
			"0/8/" + on,   // IP_PKTINFO
			"41/49/" + on, // IPV6_RECVPKTINFO
			fmt.Sprintf("%[1]d/64/%[2]s %[1]d/35/%[2]s", socket, on), // SO_TIMESTAMPNS_NEW, SO_TIMESTAMPNS_OLD
			"0/12/" + on,   // IP_RECVTTL
			"41/51/" + on,  // IPV6_RECVHOPLIMIT
			"17/104/" + on, // UDP_GRO
		}
	}
	freebsd := [...]string{
		"0/7/" + on + " 0/20/" + on, // IP_RECVDSTADDR, IP_RECVIF
		"41/36/" + on,               // IPV6_RECVPKTINFO
		"65535/1024/" + on,          // SO_TIMESTAMP
		"0/65/" + on,                // IP_RECVTTL
		"41/37/" + on,               // IPV6_RECVHOPLIMIT
		"",
	}
	windows := [...]string{
		"0/19/" + on,  // IP_PKTINFO
		"41/19/" + on, // IPV6_PKTINFO
		"",
		"0/21/" + on,  // IP_HOPLIMIT
		"41/21/" + on, // IPV6_HOPLIMIT
		"",            // UDP_RECV_MAX_COALESCED_SIZE, 17/3, is not to be used
	}
	want := map[string][6]string{ // PacketInfo of both families, Timestamp, HopLimit of both, Coalesce
		"linux-64-little": linux(1, on),
		"linux-64-big":    linux(1, big),
		"linux-32-little": linux(1, on),
		"linux-32-big":    linux(1, big),
		"linux-mips":      linux(0xffff, big),
		"darwin": {
			"0/26/" + on,       // IP_RECVPKTINFO
			"41/61/" + on,      // IPV6_RECVPKTINFO
			"65535/1024/" + on, // SO_TIMESTAMP
			"0/24/" + on,       // IP_RECVTTL
			"41/37/" + on,      // IPV6_RECVHOPLIMIT
			"",
		},
		"freebsd-64":  freebsd,
		"freebsd-386": freebsd,
		"freebsd-arm": freebsd,
		"windows-64":  windows,
		"windows-32":  windows,
		"none":        {},
	}
	all := map[string]*cmsg.Format{"none": cmsg.None}
	maps.Copy(all, formats)
	for name, f := range all {
		got := [...]string{
			written(f.PacketInfo(false)), written(f.PacketInfo(true)), written(f.Timestamp()),
			written(f.HopLimit(false)), written(f.HopLimit(true)), written(f.Coalesce()),
		}
		if w, ok := want[name]; !ok || got != w {
			t.Errorf("%s:\n got %q\nwant %q", name, got, w)
		}
	}
}

func written(options []cmsg.Option) string {
	var s []string
	for _, o := range options {
		s = append(s, fmt.Sprintf("%d/%d/%x", o.Level, o.Name, o.Value))
	}
	return strings.Join(s, " ")
}

func TestSocketLevels(t *testing.T) {
	for name, f := range formats {
		want := 0xffff
		if strings.HasPrefix(name, "linux") && name != "linux-mips" {
			want = 1
		}
		if f.SocketLevel != want {
			t.Errorf("%s: SOL_SOCKET is %#x, want %#x", name, f.SocketLevel, want)
		}
	}
}

// TestOptionsAreFresh: who changes an option changes no other.
func TestOptionsAreFresh(t *testing.T) {
	f := cmsg.Linux(8, binary.LittleEndian)
	before := written(f.PacketInfo(false))
	f.PacketInfo(false)[0].Value[0] = 0
	slices.Reverse(f.Timestamp())
	if got := written(f.PacketInfo(false)); got != before || f.Timestamp()[0].Name != 64 {
		t.Errorf("got %s and %s, want %s and 64 first", got, written(f.Timestamp()), before)
	}
}
