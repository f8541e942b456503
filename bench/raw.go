//go:build linux && cgo

package main

/*
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef IP_MULTICAST_ALL
#define IP_MULTICAST_ALL 49
#endif

enum { raw_room = 2048, raw_batch = 32, raw_events = 64 };

// A datagram as a program wants it.
struct raw_datagram {
	struct in_addr source, group;
	uint16_t port;
	int ifindex, len, truncated;
};

// Many channels on many sockets, which an epoll waits for.
struct raw_pool {
	int epoll, opened, ifindex;
	int *fd;
	struct in_addr *group; // of each socket, if it has but one
	struct mmsghdr h[raw_batch];
	struct iovec iov[raw_batch];
	struct sockaddr_in name[raw_batch];
	struct raw_datagram got[raw_batch];
	unsigned char *buf;
};

static int raw_socket(struct in_addr addr, int port, int buffer, int info) {
	int one = 1, zero = 0;
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = addr };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd >= 0 && (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one)
		|| setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer)
		|| setsockopt(fd, IPPROTO_IP, IP_MULTICAST_ALL, &zero, sizeof zero)
		|| (info && setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &one, sizeof one))
		|| bind(fd, (struct sockaddr *)&at, sizeof at))) {
		int e = errno;
		close(fd);
		errno = e;
		return -1;
	}
	return fd;
}

// raw_join joins n channels, the groups from first on, "each" to a socket: one,
// which is then bound to its group, or more, on a wildcard socket.
static int raw_join(struct raw_pool *p, uint32_t first, int n, int each, struct in_addr source, int ifindex, int port, int buffer) {
	p->ifindex = ifindex;
	if ((p->epoll = epoll_create1(EPOLL_CLOEXEC)) < 0)
		return errno;
	for (int i = 0; i < n; i++) {
		struct in_addr group = { htonl(first + i) }, any = { 0 };
		if (i % each == 0) {
			int fd = raw_socket(each == 1 ? group : any, port, buffer, each > 1);
			struct epoll_event ev = { .events = EPOLLIN | EPOLLET, .data.u32 = p->opened };
			if (fd < 0)
				return errno;
			p->fd[p->opened] = fd;
			p->group[p->opened++] = group;
			if (epoll_ctl(p->epoll, EPOLL_CTL_ADD, fd, &ev))
				return errno;
		}
		struct group_source_req r;
		memset(&r, 0, sizeof r);
		r.gsr_interface = ifindex;
		struct sockaddr_in *g = (struct sockaddr_in *)&r.gsr_group, *s = (struct sockaddr_in *)&r.gsr_source;
		g->sin_family = s->sin_family = AF_INET;
		g->sin_addr = group;
		s->sin_addr = source;
		if (setsockopt(p->fd[p->opened - 1], IPPROTO_IP, MCAST_JOIN_SOURCE_GROUP, &r, sizeof r))
			return errno;
	}
	return 0;
}

// raw_leave closes the sockets, last opened first.
static void raw_leave(struct raw_pool *p) {
	while (p->opened > 0)
		close(p->fd[--p->opened]);
	close(p->epoll);
}

static struct raw_pool *raw_new(int n) {
	struct raw_pool *p = calloc(1, sizeof *p);
	p->fd = calloc(n, sizeof *p->fd);
	p->group = calloc(n, sizeof *p->group);
	p->buf = aligned_alloc(4096, raw_batch * raw_room);
	memset(p->buf, 0, raw_batch * raw_room);
	for (int i = 0; i < raw_batch; i++) {
		struct msghdr *m = &p->h[i].msg_hdr;
		p->iov[i].iov_base = p->buf + i * raw_room;
		p->iov[i].iov_len = raw_room;
		m->msg_name = &p->name[i];
		m->msg_iov = &p->iov[i];
		m->msg_iovlen = 1;
	}
	return p;
}

static void raw_free(struct raw_pool *p) {
	free(p->buf);
	free(p->group);
	free(p->fd);
	free(p);
}

// raw_drain reads that many datagrams from sockets that are bound to a group:
// from those that epoll reports, until each has no more.
static int raw_drain(struct raw_pool *p, int want) {
	struct epoll_event ev[raw_events];
	while (want > 0) {
		int ready = epoll_wait(p->epoll, ev, raw_events, 10000);
		if (ready <= 0)
			return ready ? errno : EAGAIN;
		for (int k = 0; k < ready; k++) {
			int s = ev[k].data.u32, n;
			do {
				for (int i = 0; i < raw_batch; i++)
					p->h[i].msg_hdr.msg_namelen = sizeof p->name[i];
				n = recvmmsg(p->fd[s], p->h, raw_batch, 0, NULL);
				if (n < 0 && errno == EAGAIN)
					break;
				if (n < 0)
					return errno;
				for (int i = 0; i < n; i++) {
					struct raw_datagram *d = &p->got[i];
					d->source = p->name[i].sin_addr;
					d->port = ntohs(p->name[i].sin_port);
					d->group = p->group[s];
					d->ifindex = p->ifindex;
					d->len = p->h[i].msg_len;
					d->truncated = (p->h[i].msg_hdr.msg_flags & MSG_TRUNC) != 0;
				}
				want -= n;
			} while (n == raw_batch);
		}
	}
	return 0;
}
*/
import "C"

import (
	"encoding/binary"
	"os"
	"syscall"
	"unsafe"
)

// A rawPool is what one would write in C in place of a Pool, for IPv4.
type rawPool struct{ p *C.struct_raw_pool }

func newRawPool(sockets int) *rawPool { return &rawPool{C.raw_new(C.int(sockets))} }

// join joins n channels, that many to a socket.
func (r *rawPool) join(ch channel, n, each, port int) error {
	source := ch.Source.As4()
	var in C.struct_in_addr
	copy((*[4]byte)(unsafe.Pointer(&in))[:], source[:])
	first := groupAt(0).As4()
	if e := C.raw_join(r.p, C.uint32_t(binary.BigEndian.Uint32(first[:])), C.int(n), C.int(each), in, C.int(ch.index), C.int(port), readBuffer); e != 0 {
		return os.NewSyscallError("joining", syscall.Errno(e))
	}
	return nil
}

func (r *rawPool) leave() error { C.raw_leave(r.p); return nil }
func (r *rawPool) free()        { C.raw_free(r.p) }

func (r *rawPool) drain() error {
	if e := C.raw_drain(r.p, datagrams); e != 0 {
		return os.NewSyscallError("recvmmsg", syscall.Errno(e))
	}
	return nil
}
