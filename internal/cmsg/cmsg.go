// Package cmsg has the control messages of every system as data: the options
// that ask for them, what they tell about a datagram that was received, and
// those that say how one is to be sent. It is compiled whole on every system,
// so that each one's layout is tested on any.
package cmsg

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// A Format is how a system lays out control messages (RFC 3542 section 20.2),
// and which ones tell about a datagram. It may be used from several goroutines
// at once.
type Format struct {
	SocketLevel int // SOL_SOCKET; [Linux] says 1, which MIPS has to change to 0xffff

	big   bool // numbers have their high byte first
	word  int  // bytes of cmsg_len; cmsg_level and cmsg_type are 4 each
	align int  // of the data and of the next message

	embeds bool // the interface may stand in the second 16 bits of a link-local address (KAME)

	ip, ipv6 family
	stamps   []stamp // the first that the system knows is used
	coalesce int     // option and message with the size of coalesced datagrams, at levelUDP
	segment  int     // message with the size of the datagrams to be made, at levelUDP
}

// A family is what the control messages of one address family are.
type family struct {
	options []int // ask for all of infos
	infos   []packetInfo
	hops    hopLimit
	send    packetInfo // for a datagram that is sent
}

// A packetInfo is a control message with an address, an interface or both.
type packetInfo struct {
	message     int
	size        int  // bytes at least
	addr, index int  // offsets; -1: not in this one
	short       bool // the index has 2 bytes, not 4
}

// A hopLimit is an option that asks for the hop limit, and its message.
type hopLimit struct {
	option, message int
	size            int // 1 byte, or an int
}

// A stamp is an option that asks for the time of arrival, and its message.
type stamp struct {
	option, message int
	seconds         int           // bytes of the seconds, before the rest
	rest            int           // bytes of the rest
	unit            time.Duration // of the rest
}

const (
	levelIP   = 0  // IPPROTO_IP
	levelIPv6 = 41 // IPPROTO_IPV6
	levelUDP  = 17 // IPPROTO_UDP
)

// An Option is a socket option that asks for control messages, or for
// coalescing.
type Option struct {
	Level, Name int
	Value       []byte
}

// None is the format of a system whose control messages are not known. It has
// no options, and its Parse returns the zero Info.
var None = &Format{word: 4, align: 4}

// PacketInfo has the options for destination address and interface of each
// datagram. All are needed.
func (f *Format) PacketInfo(ipv6 bool) []Option {
	fam, level := f.family(ipv6)
	var options []Option
	for _, name := range fam.options {
		options = append(options, f.on(level, name))
	}
	return options
}

// Timestamp has the options for the time of arrival. They are alternatives, of
// which the first that the system takes is to be used.
func (f *Format) Timestamp() []Option {
	var options []Option
	for _, s := range f.stamps {
		options = append(options, f.on(f.SocketLevel, s.option))
	}
	return options
}

// HopLimit has the options for TTL or hop limit of each datagram. All are
// needed.
func (f *Format) HopLimit(ipv6 bool) []Option {
	fam, level := f.family(ipv6)
	if fam.hops.option == 0 {
		return nil
	}
	return []Option{f.on(level, fam.hops.option)}
}

// Coalesce has the options that make the system hand over several datagrams as
// one, with a control message that says so. All are needed; without any the
// system has no such thing, or none to be relied on.
func (f *Format) Coalesce() []Option {
	if f.coalesce == 0 {
		return nil
	}
	return []Option{f.on(levelUDP, f.coalesce)}
}

// on switches an option on.
func (f *Format) on(level, name int) Option {
	value := make([]byte, 4)
	f.order().PutUint32(value, 1)
	return Option{Level: level, Name: name, Value: value}
}

func (f *Format) family(ipv6 bool) (fam *family, level int) {
	if ipv6 {
		return &f.ipv6, levelIPv6
	}
	return &f.ip, levelIP
}

// order is for what need not be fast.
func (f *Format) order() binary.ByteOrder {
	if f.big {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// An Info is what control messages tell about a datagram. What they do not
// tell is zero.
type Info struct {
	Dst      netip.Addr // the address it was sent to, unmapped, without a zone
	Index    int        // the interface it came in by
	Time     time.Time  // when it arrived
	HopLimit int        // TTL or hop limit; 0, too, of what was sent with 0 on this host
	Segment  int        // if not 0: these are several datagrams of this size, the last perhaps shorter
}
