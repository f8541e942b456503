//go:build linux && cgo

package main

/*
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { room = 2048, most = 64 };

// A datagram as a program wants it: who sent it, to which group, and the
// interface that it came in by.
struct datagram {
	struct in6_addr source, group; // IPv4 in the first 4 bytes
	uint16_t port;
	int ifindex, hops, len, truncated;
};

struct receiver {
	int fd, ipv6, batch;
	struct mmsghdr h[most];
	struct iovec iov[most];
	struct sockaddr_in6 name[most];
	struct { _Alignas(struct cmsghdr) unsigned char b[64]; } control[most];
	struct datagram got[most];
	unsigned char *buf;
};

static struct receiver *receiver_new(int fd, int ipv6, int batch) {
	struct receiver *r = calloc(1, sizeof *r);
	r->fd = fd, r->ipv6 = ipv6, r->batch = batch;
	r->buf = aligned_alloc(4096, most * room);
	memset(r->buf, 0, most * room);
	for (int i = 0; i < batch; i++) {
		struct msghdr *m = &r->h[i].msg_hdr;
		r->iov[i].iov_base = r->buf + i * room;
		r->iov[i].iov_len = room;
		m->msg_name = &r->name[i];
		m->msg_iov = &r->iov[i];
		m->msg_iovlen = 1;
		m->msg_control = &r->control[i];
	}
	return r;
}

static void receiver_free(struct receiver *r) {
	free(r->buf);
	free(r);
}

static void parse(struct receiver *r, int i) {
	struct msghdr *m = &r->h[i].msg_hdr;
	struct datagram *d = &r->got[i];
	d->len = r->h[i].msg_len;
	d->truncated = (m->msg_flags & MSG_TRUNC) != 0;
	if (r->ipv6) {
		d->source = r->name[i].sin6_addr;
		d->port = ntohs(r->name[i].sin6_port);
	} else {
		struct sockaddr_in *in = (struct sockaddr_in *)&r->name[i];
		memcpy(&d->source, &in->sin_addr, 4);
		d->port = ntohs(in->sin_port);
	}
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
			struct in_pktinfo *p = (struct in_pktinfo *)CMSG_DATA(c);
			memcpy(&d->group, &p->ipi_addr, 4);
			d->ifindex = p->ipi_ifindex;
		} else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
			struct in6_pktinfo *p = (struct in6_pktinfo *)CMSG_DATA(c);
			d->group = p->ipi6_addr;
			d->ifindex = p->ipi6_ifindex;
		} else if ((c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TTL) ||
			   (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_HOPLIMIT)) {
			memcpy(&d->hops, CMSG_DATA(c), sizeof d->hops);
		}
	}
}

// receiver_drain reads that many datagrams, a batch at a time; it returns the
// index of the last one in got, or an error number below 0.
static int receiver_drain(struct receiver *r, int want) {
	int n = 0;
	while (want > 0) {
		for (int i = 0; i < r->batch; i++) {
			r->h[i].msg_hdr.msg_namelen = sizeof r->name[i];
			r->h[i].msg_hdr.msg_controllen = sizeof r->control[i];
		}
		n = recvmmsg(r->fd, r->h, r->batch, 0, NULL);
		if (n < 0 && errno == EAGAIN) {
			struct pollfd p = { .fd = r->fd, .events = POLLIN };
			if (poll(&p, 1, 10000) != 1)
				return -EAGAIN;
			continue;
		}
		if (n < 0)
			return -errno;
		for (int i = 0; i < n; i++)
			parse(r, i);
		want -= n;
	}
	return n - 1;
}

// send_all sends n copies of a datagram.
static int send_all(int fd, struct sockaddr_in6 *to, socklen_t tolen, void *b, size_t len, int n) {
	struct mmsghdr h[most];
	struct iovec iov = { b, len };
	memset(h, 0, sizeof h);
	for (int i = 0; i < n; i++) {
		h[i].msg_hdr.msg_name = to;
		h[i].msg_hdr.msg_namelen = tolen;
		h[i].msg_hdr.msg_iov = &iov;
		h[i].msg_hdr.msg_iovlen = 1;
	}
	for (int sent = 0; sent < n;) {
		int k = sendmmsg(fd, h + sent, n - sent, 0);
		if (k < 0)
			return errno;
		sent += k;
	}
	return 0;
}

static void put_address(struct sockaddr_storage *to, int ipv6, void *addr) {
	if (ipv6) {
		struct sockaddr_in6 *in = (struct sockaddr_in6 *)to;
		in->sin6_family = AF_INET6;
		memcpy(&in->sin6_addr, addr, 16);
	} else {
		struct sockaddr_in *in = (struct sockaddr_in *)to;
		in->sin_family = AF_INET;
		memcpy(&in->sin_addr, addr, 4);
	}
}
*/
import "C"

import (
	"net/netip"
	"os"
	"syscall"
	"unsafe"
)

const (
	room      = C.room // bytes of each receiver's buffers
	datagrams = C.most // in one preloaded buffer
)

// cReceiver is the reference: recvmmsg(2) in C, with the group, the
// interface and the source of each datagram put into a struct.
type cReceiver struct {
	r    *C.struct_receiver
	last *C.struct_datagram
}

func newCReceiver(fd int, ipv6 bool, batch int) *cReceiver {
	return &cReceiver{r: C.receiver_new(C.int(fd), cBool(ipv6), C.int(batch))}
}

func (c *cReceiver) close() { C.receiver_free(c.r) }

// drain reads all the datagrams in one call of C.
func (c *cReceiver) drain() error {
	i := C.receiver_drain(c.r, datagrams)
	if i < 0 {
		return syscall.Errno(-i)
	}
	c.last = &c.r.got[i]
	return nil
}

func (c *cReceiver) seen() datagram {
	address := func(b [16]byte) netip.Addr {
		if c.r.ipv6 != 0 {
			return netip.AddrFrom16(b)
		}
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return datagram{
		source: netip.AddrPortFrom(address(*(*[16]byte)(unsafe.Pointer(&c.last.source))), uint16(c.last.port)),
		group:  address(*(*[16]byte)(unsafe.Pointer(&c.last.group))),
		index:  int(c.last.ifindex),
		n:      int(c.last.len),
	}
}

// A sender sends copies of one datagram.
type sender struct {
	fd     int
	to     C.struct_sockaddr_in6
	length C.socklen_t
	b      []byte
}

func newSender(fd int, to netip.AddrPort, b []byte) *sender {
	s := &sender{fd: fd, b: b}
	port := uint16(to.Port()>>8 | to.Port()<<8)
	if binaryIsBig() {
		port = to.Port()
	}
	if to.Addr().Is4() {
		in := (*C.struct_sockaddr_in)(unsafe.Pointer(&s.to))
		in.sin_family, in.sin_port = C.AF_INET, C.in_port_t(port)
		*(*[4]byte)(unsafe.Pointer(&in.sin_addr)) = to.Addr().As4()
		s.length = C.sizeof_struct_sockaddr_in
	} else {
		s.to.sin6_family, s.to.sin6_port = C.AF_INET6, C.in_port_t(port)
		*(*[16]byte)(unsafe.Pointer(&s.to.sin6_addr)) = to.Addr().As16()
		s.length = C.sizeof_struct_sockaddr_in6
	}
	return s
}

// send puts a full load into the receiver's buffer.
func (s *sender) send() error {
	if e := C.send_all(C.int(s.fd), &s.to, s.length, unsafe.Pointer(&s.b[0]), C.size_t(len(s.b)), datagrams); e != 0 {
		return os.NewSyscallError("sendmmsg", syscall.Errno(e))
	}
	return nil
}

// groupReq is a struct group_req.
func groupReq(index int, group netip.Addr) []byte {
	var r C.struct_group_req
	r.gr_interface = C.uint32_t(index)
	putAddress(&r.gr_group, group)
	return bytesOf(&r)
}

// groupSourceReq is a struct group_source_req.
func groupSourceReq(index int, group, source netip.Addr) []byte {
	var r C.struct_group_source_req
	r.gsr_interface = C.uint32_t(index)
	putAddress(&r.gsr_group, group)
	putAddress(&r.gsr_source, source)
	return bytesOf(&r)
}

// groupFilter is a struct group_filter.
func groupFilter(index int, group netip.Addr, include bool, sources []netip.Addr) []byte {
	var f C.struct_group_filter
	f.gf_interface = C.uint32_t(index)
	f.gf_fmode = C.MCAST_EXCLUDE
	if include {
		f.gf_fmode = C.MCAST_INCLUDE
	}
	f.gf_numsrc = C.uint32_t(len(sources))
	putAddress(&f.gf_group, group)
	b := bytesOf(&f)[:unsafe.Offsetof(f.gf_slist)]
	for _, source := range sources {
		var s C.struct_sockaddr_storage
		putAddress(&s, source)
		b = append(b, bytesOf(&s)...)
	}
	return b
}

func putAddress(to *C.struct_sockaddr_storage, a netip.Addr) {
	b := a.AsSlice()
	C.put_address(to, cBool(a.Is6()), unsafe.Pointer(&b[0]))
}

func bytesOf[T any](v *T) []byte {
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))...)
}

func cBool(b bool) C.int {
	if b {
		return 1
	}
	return 0
}

func binaryIsBig() bool {
	one := uint16(1)
	return *(*byte)(unsafe.Pointer(&one)) == 0
}
