// Package amt receives multicast where the network has none: it is a gateway of
// Automatic Multicast Tunneling (AMT, RFC 7450), in the program itself. A relay
// somewhere in a network that carries multicast is asked, by unicast UDP, for
// groups and channels, with the reports that a kernel would send (IGMPv3,
// MLDv2), and sends their datagrams through a tunnel. Neither privileges nor an
// interface are needed, and a NAT may lie in between.
//
// A [Gateway] has the requests and the reading of an [mcast.Conn], the same
// filter and the same errors, so that a program changes one line:
//
//	g, err := amt.Dial(ctx, "relay.example.net", nil)
//	if err != nil {
//		return err
//	}
//	defer g.Close()
//	ch, err := mcast.ParseChannel("10.0.0.1@232.1.1.1:5000")
//	if err != nil {
//		return err
//	}
//	if err := g.JoinSource(ch.Group, ch.Source); err != nil {
//		return err
//	}
//	for m, err := range g.Messages(ctx, 1500) {
//		if err != nil {
//			return err
//		}
//		fmt.Printf("%d bytes on %v\n", m.N, m.Channel())
//	}
//
// A program that is to take either has an interface of its own:
//
//	type receiver interface {
//		JoinSource(mcast.Group, netip.Addr) error
//		LeaveSource(mcast.Group, netip.Addr) error
//		ReadBatch([]mcast.Message) (int, error)
//		Close() error
//	}
//
//	var (
//		_ receiver = (*mcast.Conn)(nil)
//		_ receiver = (*amt.Gateway)(nil)
//	)
//
// A Gateway has no port: [mcast.Message].Port tells which one a datagram was
// sent to, and Config.Ports keeps others out.
//
// # Relays
//
// [Dial] takes a relay's name or address. Without one, relays are looked for
// when a source is joined (RFC 8777): those that the domain of the host offers
// (DNS-SD, _amt._udp), the one that is nearest by the anycast addresses
// 192.52.193.1 and 2001:3::1, and those that the source names itself, in the
// AMTRELAY record of its reverse name. They are asked one second after the
// other, and the first one to answer is taken.
//
// A tunnel is kept up: handshakes are repeated at the relay's query interval; a
// relay that is silent, unreachable or refuses is replaced by another, or tried
// again for as long as it takes; and when a NAT gives the program another
// address, the relay is told all memberships again, and to stop sending to the
// old one. While groups are joined and nothing comes, all of that is tried
// sooner: after four seconds, then at growing intervals of up to two minutes.
// Config.OnEvent tells of it.
//
// # What gets in
//
// Datagrams are taken from the relay's address and port only, and answers of a
// relay only with the nonce of the question. Of the packet inside, the version,
// every length, the checksums (that of UDP is required in IPv6), the addresses
// and then the filter are checked. Fragments are put together within a megabyte
// and 15 seconds. [Stats] counts what was dropped, by reason. The tunnel itself
// is neither encrypted nor authenticated: who can read it can forge it.
//
// # Systems
//
// Everything works wherever there is UDP. Linux reads datagrams in batches and
// tells at once when a relay's host or port is unreachable; elsewhere that
// takes the time of a few repetitions. On Plan 9, js and wasip1, [Dial] returns
// an error that matches [errors.ErrUnsupported].
package amt
