package mcast

import (
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// hostPlatform gives the layouts of the kernel: a 64-bit one does not
// translate these requests for 386 programs.
func hostPlatform() *platform {
	word, align := nativeWord, 8
	if runtime.GOARCH == "386" {
		archs, _ := unix.Sysctl("kern.supported_archs")
		if slices.Contains(strings.Fields(archs), "amd64") {
			word = 8
		} else {
			align = 4
		}
	}
	p := freebsdPlatform(word, align)
	p.controlAlign = nativeWord // these it does translate
	return p
}
