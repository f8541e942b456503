package amt

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// onesSum adds b, as 16-bit words padded with a zero byte, to a sum in one's
// complement arithmetic (RFC 1071 section 2). It takes eight bytes at a time: a
// carry out of the top comes in at the bottom again.
func onesSum(sum uint64, b []byte) uint64 {
	var s, carry uint64
	for len(b) >= 64 {
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b), carry)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b[8:]), carry)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b[16:]), carry)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b[24:]), carry)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b[32:]), carry)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b[40:]), carry)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b[48:]), carry)
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b[56:]), carry)
		b = b[64:]
	}
	for len(b) >= 8 {
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b), carry)
		b = b[8:]
	}
	if len(b) > 0 {
		var last uint64
		for i, c := range b {
			last |= uint64(c) << (8 * i)
		}
		s, carry = bits.Add64(s, last, carry)
	}
	s, carry = bits.Add64(s, 0, carry)
	// In the other byte order the sum is the same, but for its own byte order
	// (section 2(B)), and the words were read in that.
	sum, carry = bits.Add64(sum, bits.ReverseBytes64(s+carry), 0)
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
