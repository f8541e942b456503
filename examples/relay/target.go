package main

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"example.com/mcast"
)

// defaultPort is where players listen if a URL has no port.
const defaultPort = 1234

// parseTarget reads a channel as it stands in a list, behind /udp/ or /rtp/, or
// on the command line: "232.1.1.1:5000", "@239.1.1.1", "10.0.0.1@232.1.1.1:5000",
// "[ff3e::8000:1%eth0]:5000", or a URL of udp:// or rtp://.
func parseTarget(s string) (mcast.Channel, error) {
	if !strings.Contains(s, "://") {
		s = "udp://" + s
	}
	ch, err := mcast.ParseChannel(s)
	var e *mcast.OpError
	if errors.As(err, &e) {
		err = e.Err // the operation does not help here
	}
	if err != nil {
		return ch, err
	}
	if ch.Port == 0 {
		ch.Port = defaultPort
	}
	return ch, nil
}

// scheme is "rtp" for a URL of rtp://, else "udp".
func scheme(s string) string {
	if len(s) > 6 && strings.EqualFold(s[:6], "rtp://") {
		return "rtp"
	}
	return "udp"
}

// pathOf is the path that a relay has for a channel.
func pathOf(scheme string, ch mcast.Channel) string {
	return "/" + scheme + "/" + url.PathEscape(ch.String())
}

// Rules say what requests may join.
type rules struct {
	listed   []mcast.Channel // given, or in the list
	prefixes []netip.Prefix  // groups that may be joined besides
	ifname   string          // where no interface is named
}

var errForbidden = errors.New("not allowed")

// parsePrefix reads a prefix of groups, or one group.
func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, e := netip.ParseAddr(s)
		if e != nil || a.Zone() != "" {
			return p, fmt.Errorf("%q is not a group or a prefix, such as 239.1.0.0/16", s)
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if groups := 4; !p.Addr().IsMulticast() || p.Addr().Is4() && p.Bits() < groups || p.Addr().Is6() && p.Bits() < 2*groups {
		return p, fmt.Errorf("%q has addresses that are not multicast (224.0.0.0/4, ff00::/8)", s)
	}
	return p.Masked(), nil
}

// resolve finds the channel that a request is to join. One that is listed may be
// asked for without its interface and source if nothing else could be meant.
// Others must have a group that is allowed, and are joined where all are: no
// request chooses an interface.
func (r *rules) resolve(asked mcast.Channel) (mcast.Channel, error) {
	var found mcast.Channel
	best, several := 0, false
	for _, ch := range r.listed {
		if ch.Group.Addr != asked.Group.Addr || ch.Port != asked.Port {
			continue
		}
		score := 1
		switch asked.Source {
		case ch.Source:
			score += 2
		case netip.Addr{}:
		default:
			continue
		}
		switch asked.Group.Interface {
		case ch.Group.Interface:
			score++
		case "":
		default:
			continue
		}
		if score == best {
			several = true
		} else if score > best {
			found, best, several = ch, score, false
		}
	}
	exact := best >= 3
	for _, p := range r.prefixes {
		if exact || !p.Contains(asked.Group.Addr) {
			continue
		}
		if on := asked.Group.Interface; on != "" && on != r.ifname {
			return mcast.Channel{}, fmt.Errorf("%w: a request does not choose the interface", errForbidden)
		}
		asked.Group.Interface = r.ifname
		if found == (mcast.Channel{}) || several {
			return asked, nil
		}
	}
	switch {
	case several:
		return mcast.Channel{}, fmt.Errorf("%w: several channels are %v, say which with its source and interface", errForbidden, asked)
	case best == 0:
		return mcast.Channel{}, fmt.Errorf("%w: %v is not one of this relay's channels, nor in what -allow names", errForbidden, asked)
	}
	return found, nil
}

// short leaves out the interface of a listed channel where it is not needed to
// find it.
func (r *rules) short(ch mcast.Channel) mcast.Channel {
	short := ch
	short.Group.Interface = ""
	if found, err := r.resolve(short); err == nil && found == ch {
		return short
	}
	return ch
}
