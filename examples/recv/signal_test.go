//go:build unix

package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"example.com/mcast/examples/internal/looptest"
)

// The same by a signal, be it Ctrl-C or the end of the terminal.
func TestSignal(t *testing.T) {
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		if sig == syscall.SIGHUP && signal.Ignored(sig) {
			t.Log("SIGHUP is ignored, as by nohup, and stays so")
			continue
		}
		cmd := exec.Command(os.Args[0], "-i", looptest.Interface(t).Name, fmt.Sprintf("%s:%d", group, looptest.Port(t)))
		cmd.Env = append(os.Environ(), "RECV_TEST_MAIN=1")
		out := looptest.NewBuffer()
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		out.Wait(t, "joined")
		if err := cmd.Process.Signal(sig); err != nil {
			t.Error(err)
			cmd.Process.Kill()
		}
		if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "\n0 datagrams") {
			t.Errorf("%v: %v: %s", sig, err, out)
		}
	}
}
