//go:build linux

package mcast_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/internal/netlab"
)

// The zone of a destination is the interface that has the name now, however
// often it was made anew. (Package net keeps names for a minute.) A zone of a
// source, and an interface that is named, mean the same.
func TestLabZones(t *testing.T) {
	netlab.Run(t, func(l *netlab.Lab) {
		if !l.Local().HasIPv6() {
			l.T().Skip("this kernel has no IPv6")
		}
		peer := cable(l, "eth0", "peer")
		c, err := mcast.Listen("udp6", ":0", nil)
		if err != nil {
			l.T().Fatal(err)
		}
		defer c.Close()
		group, port := netip.MustParseAddr("ff02::77:9"), uint16(20000)
		var r *mcast.Conn
		hears := func(what string, send func() error) {
			l.T().Helper()
			if err := send(); err != nil {
				l.T().Fatal(what, err)
			}
			m := mcast.Message{Buf: make([]byte, 100)}
			r.SetReadDeadline(time.Now().Add(10 * time.Second))
			if err := r.ReadMessage(&m); err != nil || string(m.Buf[:m.N]) != what {
				l.T().Fatalf("%s: heard %q, %v", what, m.Buf[:m.N], err)
			}
		}
		for round := range 3 {
			own := l.Local().LinkLocal("eth0")
			peer.Do(func() {
				if r, err = mcast.Listen("udp6", fmt.Sprint(":", port), nil); err == nil {
					err = r.Join(mcast.Group{Addr: group, Interface: "eth0"})
				}
			})
			if err != nil {
				l.T().Fatal(err)
			}
			number := l.Local().Index("eth0")
			for _, zone := range []string{"eth0", fmt.Sprint(number)} {
				to := netip.AddrPortFrom(group.WithZone(zone), port)
				payload := func(way string) string { return fmt.Sprint(way, " ", zone, " ", round) }
				hears(payload("WriteTo"), func() error {
					_, err := c.WriteTo([]byte(payload("WriteTo")), net.UDPAddrFromAddrPort(to))
					return err
				})
				hears(payload("AddrPort"), func() error {
					_, err := c.WriteToUDPAddrPort([]byte(payload("AddrPort")), to)
					return err
				})
				hears(payload("WriteVia"), func() error {
					_, err := c.WriteVia([]byte(payload("WriteVia")), to, "", netip.Addr{})
					return err
				})
				hears(payload("from"), func() error {
					_, err := c.WriteVia([]byte(payload("from")), netip.AddrPortFrom(group, port), "", own.WithZone(zone))
					return err
				})
				hears(payload("by"), func() error {
					_, err := c.WriteVia([]byte(payload("by")), netip.AddrPortFrom(group, port), zone, own)
					return err
				})
				hears(payload("batch"), func() error {
					b := []byte(payload("batch"))
					_, err := c.WriteBatch([]mcast.Message{{Buf: b, N: len(b), Group: mcast.Group{Addr: to.Addr()}, Port: int(port)}})
					return err
				})
				hears(payload("batch by"), func() error {
					b := []byte(payload("batch by"))
					_, err := c.WriteBatch([]mcast.Message{{Buf: b, N: len(b), Group: mcast.Group{Addr: group, Interface: zone}, Port: int(port)}})
					return err
				})
			}
			for _, err := range []error{
				func() error {
					_, err := c.WriteVia(nil, netip.AddrPortFrom(group, port), "lo", own.WithZone("eth0"))
					return err
				}(),
				func() error {
					_, err := c.WriteToUDPAddrPort(nil, netip.AddrPortFrom(group.WithZone("nosuch0"), port))
					return err
				}(),
				func() error {
					_, err := c.WriteTo(nil, &net.UDPAddr{IP: group.AsSlice(), Zone: "nosuch0", Port: int(port)})
					return err
				}(),
			} {
				var e *net.OpError
				if !errors.Is(err, mcast.ErrInterface) || !errors.As(err, &e) {
					l.T().Errorf("%v, want ErrInterface", err)
				}
			}
			r.Close()
			l.Local().Recreate("eth0", false)
			if now := l.Local().Index("eth0"); now == number {
				l.T().Fatalf("eth0 has index %d again", now)
			}
		}
	})
}
