package amt

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// onesSum adds b, as 16-bit words padded with a zero byte, to a sum in one's
// complement arithmetic (RFC 1071 section 2). Eight bytes at a time: a carry
// out of the top comes in at the bottom again.
func onesSum(sum uint64, b []byte) uint64 {
	var carry uint64
	for len(b) >= 32 {
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b), carry)
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b[8:]), carry)
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b[16:]), carry)
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b[24:]), carry)
		b = b[32:]
	}
	for len(b) >= 8 {
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b), carry)
		b = b[8:]
	}
	if len(b) > 0 {
		var last [8]byte
		copy(last[:], b)
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(last[:]), carry)
	}
	sum, carry = bits.Add64(sum, 0, carry)
	return sum + carry
}

// checksum folds a sum to the 16 bits that stand in a header. Over bytes that
// contain their own checksum it is 0 if that is right.
func checksum(sum uint64) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// pseudoHeader is the sum of the header that transport checksums also cover:
// RFC 768, RFC 8200 section 8.1.
func pseudoHeader(source, destination netip.Addr, protocol byte, length int) uint64 {
	sum := uint64(protocol) + uint64(length)
	if source.Is4() {
		s, d := source.As4(), destination.As4()
		return sum + uint64(binary.BigEndian.Uint32(s[:])) + uint64(binary.BigEndian.Uint32(d[:]))
	}
	s, d := source.As16(), destination.As16()
	return onesSum(onesSum(sum, s[:]), d[:])
}
