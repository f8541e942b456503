package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// bindTo makes a socket hear and send by one interface only; see socket(7).
func bindTo(ifname string) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) { err = os.NewSyscallError("SO_BINDTODEVICE", syscall.BindToDevice(int(fd), ifname)) }); e != nil {
			return e
		}
		return err
	}
}

// oldVersion says so if an interface speaks a version of IGMP or MLD whose
// reports name no sources, because the administrator wants it, or an old querier.
func oldVersion(ifname string, ipv6 bool) string {
	protocol, newest, dir, file := "IGMP", 3, "ipv4", "force_igmp_version"
	if ipv6 {
		protocol, newest, dir, file = "MLD", 2, "ipv6", "force_mld_version"
	}
	version, why := newest, ""
	for _, of := range []string{"all", ifname} {
		b, _ := os.ReadFile("/proc/sys/net/" + dir + "/conf/" + of + "/" + file)
		if n, _ := strconv.Atoi(strings.TrimSpace(string(b))); n > 0 && n < version {
			version, why = n, fmt.Sprintf("net.%s.conf.%s.%s says so", dir, strings.ReplaceAll(of, ".", "/"), file)
		}
	}
	if n := spoken(ifname); !ipv6 && n > 0 && n < version {
		version, why = n, "an older querier is on the network"
	}
	if version == newest {
		return ""
	}
	return fmt.Sprintf("%s speaks %sv%d, because %s: its reports name no sources, so that the network sends those of a channel's group alike, or none (RFC 4604)", ifname, protocol, version, why)
}

// spoken is the version of IGMP that an interface speaks, as /proc/net/igmp has
// it: "4  eth0  :  2  V3"; 0 if unknown.
func spoken(ifname string) int {
	b, _ := os.ReadFile("/proc/net/igmp")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 4 && strings.TrimSuffix(f[1], ":") == ifname {
			n, _ := strconv.Atoi(strings.TrimPrefix(f[len(f)-1], "V"))
			return n
		}
	}
	return 0
}
