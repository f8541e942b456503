// Package amtrelay is a model of an AMT relay (RFC 7450) for tests, and of what
// lies between it and a gateway. It shares no code with the gateway that it
// tests.
//
// A [Relay] is strict about what the RFC asks of a gateway: its MAC is made
// with a real key, of the gateway's address, port and nonce. It deviates where
// it is told to, as relays in the field were seen to. It is pure logic: it is
// told the time and what came in, and gives back what it sends. [Relay.Serve]
// puts it on a socket.
//
// A [Checker] sees what a gateway sends and says what no gateway may send. A
// [Path] loses, delays, doubles, reorders and damages messages.
package amtrelay
