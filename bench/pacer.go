//go:build linux && cgo

package main

/*
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

// A thread that sends datagrams, each with the time in it, at a steady rate or
// as fast as it can, to one group after the other.
struct pacer {
	pthread_t thread;
	int fd, groups, sleeps, err;
	size_t len;
	int64_t interval, n, sent, cpu;
	struct sockaddr_in to;
	atomic_int stop;
	unsigned char payload[2048];
};

static int64_t now(clockid_t c) {
	struct timespec t;
	clock_gettime(c, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void *pace(void *arg) {
	struct pacer *p = arg;
	uint32_t first = ntohl(p->to.sin_addr.s_addr);
	pthread_setname_np(pthread_self(), "sender"); // in profiles
	int64_t start = now(CLOCK_MONOTONIC), t;
	for (int64_t i = 0; i < p->n && !atomic_load_explicit(&p->stop, memory_order_relaxed); i++) {
		int64_t due = start + i * p->interval;
		if (p->sleeps) {
			struct timespec until = { due / 1000000000, due % 1000000000 };
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
		}
		while ((t = now(CLOCK_MONOTONIC)) < due)
			;
		memcpy(p->payload, &t, sizeof t);
		p->to.sin_addr.s_addr = htonl(first + i % p->groups);
		if (sendto(p->fd, p->payload, p->len, 0, (struct sockaddr *)&p->to, sizeof p->to) < 0)
			p->err = errno;
		p->sent++;
	}
	p->cpu = now(CLOCK_THREAD_CPUTIME_ID);
	return NULL;
}

static struct pacer *pacer_start(int fd, struct in_addr first, int groups, int port, size_t len, int64_t interval, int64_t n, int sleeps) {
	struct pacer *p = calloc(1, sizeof *p);
	p->fd = fd, p->groups = groups, p->len = len, p->interval = interval, p->n = n, p->sleeps = sleeps;
	p->to.sin_family = AF_INET;
	p->to.sin_port = htons(port);
	p->to.sin_addr = first;
	if (pthread_create(&p->thread, NULL, pace, p)) {
		free(p);
		return NULL;
	}
	return p;
}

static void pacer_stop(struct pacer *p) { atomic_store(&p->stop, 1); }

static int pacer_join(struct pacer *p, int64_t *cpu, int64_t *sent) {
	pthread_join(p->thread, NULL);
	int err = p->err;
	*cpu = p->cpu;
	*sent = p->sent;
	free(p);
	return err;
}
*/
import "C"

import (
	"errors"
	"math"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// A pace is what a thread sends: n datagrams, 0 for as many as until it is
// stopped, in turn to as many groups from the first one on.
type pace struct {
	first    netip.AddrPort
	groups   int // 0: one
	size     int
	interval time.Duration // 0: as fast as it can
	n        int
	sleeps   bool // between datagrams; else it waits in a loop, and takes a processor to itself
}

// A pacer is a thread that sends.
type pacer struct{ p *C.struct_pacer }

func (p pace) start(fd int) (pacer, error) {
	first := p.first.Addr().As4()
	n := C.int64_t(p.n)
	if n == 0 {
		n = math.MaxInt64
	}
	c := C.pacer_start(C.int(fd), *(*C.struct_in_addr)(unsafe.Pointer(&first)), C.int(max(p.groups, 1)), C.int(p.first.Port()), C.size_t(p.size), C.int64_t(p.interval), n, cBool(p.sleeps))
	if c == nil {
		return pacer{}, errors.New("no thread to send from")
	}
	return pacer{c}, nil
}

// stop has the thread end soon.
func (p pacer) stop() { C.pacer_stop(p.p) }

// join waits for the thread to end, and returns its CPU time and how many
// datagrams it sent.
func (p pacer) join() (cpu int64, sent int, err error) {
	var c, n C.int64_t
	if e := C.pacer_join(p.p, &c, &n); e != 0 {
		err = os.NewSyscallError("sendto", syscall.Errno(e))
	}
	return int64(c), int(n), err
}
