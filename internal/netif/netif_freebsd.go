package netif

import (
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/net/route"
	"golang.org/x/sys/unix"
)

// openEvents: routing messages tell of carriers.
func openEvents() (*os.File, error) { return nil, errors.ErrUnsupported }

// carriers tells which interfaces have a carrier. Of some drivers nothing is
// known.
func carriers() map[int]bool {
	b, err := route.FetchRIB(unix.AF_UNSPEC, route.RIBTypeInterface, 0)
	if err != nil {
		return nil
	}
	known := make(map[int]bool)
	for _, h := range parseRouting(b, binary.NativeEndian, routingFormats["freebsd"]) {
		if h.carrier != carrierUntold {
			known[h.index] = h.carrier == carrierOn
		}
	}
	return known
}
