//go:build linux && cgo

package main

/*
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

// A thread that sends datagrams at a steady rate, each with the time in it.
struct pacer {
	pthread_t thread;
	int fd, n, err;
	size_t len;
	int64_t interval, cpu;
	struct sockaddr_in to;
	unsigned char payload[2048];
};

static int64_t now(clockid_t c) {
	struct timespec t;
	clock_gettime(c, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void *pace(void *arg) {
	struct pacer *p = arg;
	pthread_setname_np(pthread_self(), "sender"); // in profiles
	int64_t start = now(CLOCK_MONOTONIC), t;
	for (int i = 0; i < p->n; i++) {
		while ((t = now(CLOCK_MONOTONIC)) < start + i * p->interval)
			;
		memcpy(p->payload, &t, sizeof t);
		if (sendto(p->fd, p->payload, p->len, 0, (struct sockaddr *)&p->to, sizeof p->to) < 0)
			p->err = errno;
	}
	p->cpu = now(CLOCK_THREAD_CPUTIME_ID);
	return NULL;
}

static struct pacer *pacer_start(int fd, struct in_addr group, int port, size_t len, int64_t interval, int n) {
	struct pacer *p = calloc(1, sizeof *p);
	p->fd = fd, p->len = len, p->interval = interval, p->n = n;
	p->to.sin_family = AF_INET;
	p->to.sin_port = htons(port);
	p->to.sin_addr = group;
	if (pthread_create(&p->thread, NULL, pace, p)) {
		free(p);
		return NULL;
	}
	return p;
}

static int pacer_join(struct pacer *p, int64_t *cpu) {
	pthread_join(p->thread, NULL);
	int err = p->err;
	*cpu = p->cpu;
	free(p);
	return err;
}
*/
import "C"

import (
	"errors"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// A pacer is a thread that sends n datagrams at a steady rate. It waits in a
// loop: it takes a processor to itself.
type pacer struct{ p *C.struct_pacer }

func startPacer(fd int, to netip.AddrPort, size int, interval time.Duration, n int) (pacer, error) {
	group := to.Addr().As4()
	p := C.pacer_start(C.int(fd), *(*C.struct_in_addr)(unsafe.Pointer(&group)), C.int(to.Port()), C.size_t(size), C.int64_t(interval), C.int(n))
	if p == nil {
		return pacer{}, errors.New("no thread to send from")
	}
	return pacer{p}, nil
}

// join waits for the thread to end, and returns its CPU time.
func (p pacer) join() (cpu int64, err error) {
	var c C.int64_t
	if e := C.pacer_join(p.p, &c); e != 0 {
		err = os.NewSyscallError("sendto", syscall.Errno(e))
	}
	return int64(c), err
}
