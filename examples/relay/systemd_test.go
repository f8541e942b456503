//go:build unix

package main

import (
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/mcast/examples/internal/looptest"
)

// notifySocket is the one that systemd would have. It is read by next.
func notifySocket(t *testing.T, name string) (next func() string) {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return func() string {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(looptest.Patience))
		b := make([]byte, 1<<10)
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
}

// shortDir is a folder whose name is short enough for a socket in it.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "relay")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notify("READY=1"); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	names := []string{filepath.Join(shortDir(t), "n")}
	if runtime.GOOS == "linux" {
		names = append(names, "@mcast-relay-test-"+strconv.Itoa(os.Getpid()))
	}
	for _, name := range names {
		next := notifySocket(t, name)
		t.Setenv("NOTIFY_SOCKET", name)
		if err := notify("READY=1"); err != nil {
			t.Fatal(err)
		}
		if got := next(); got != "READY=1" {
			t.Errorf("%s: %q", name, got)
		}
	}
	for _, name := range []string{"relative", filepath.Join(t.TempDir(), "none")} {
		t.Setenv("NOTIFY_SOCKET", name)
		if err := notify("READY=1"); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Descriptors that are meant for another process are left alone, and none are
// passed on.
func TestInherited(t *testing.T) {
	for _, tt := range []struct {
		pid, fds string
		ok       bool
	}{
		{"", "", true},
		{"1", "1", true},
		{strconv.Itoa(os.Getpid()), "", true},
		{strconv.Itoa(os.Getpid()), "0", true},
		{strconv.Itoa(os.Getpid()), "x", false},
		{strconv.Itoa(os.Getpid()), "-1", false},
	} {
		t.Setenv("LISTEN_PID", tt.pid)
		t.Setenv("LISTEN_FDS", tt.fds)
		t.Setenv("LISTEN_FDNAMES", "x")
		ls, err := inherited()
		if len(ls) != 0 || (err == nil) != tt.ok {
			t.Errorf("%+v: %v %v", tt, ls, err)
		}
		for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
			if v, there := os.LookupEnv(name); there {
				t.Errorf("%s is still %q", name, v)
			}
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	fd, err := syscall.Dup(int(r.Fd())) // closed by listenersAt
	if err != nil {
		t.Fatal(err)
	}
	if ls, err := listenersAt(fd, 1); err == nil {
		t.Errorf("a pipe is a listener: %v", ls)
	}
}

// Under systemd: the socket is there before the program, which says when it is
// ready and when it is about to end, and ends well at SIGTERM.
func TestSystemd(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skipf("no shell to set LISTEN_PID with: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	passed, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer passed.Close()
	name := filepath.Join(shortDir(t), "n")
	next := notifySocket(t, name)
	cmd := exec.Command(sh, "-c", `LISTEN_PID=$$ exec "$0" "$@"`, os.Args[0], "-i", looptest.Interface(t).Name, "239.255.77.7:5000")
	cmd.Env = append(os.Environ(), "RELAY_TEST_MAIN=1", "LISTEN_FDS=1", "NOTIFY_SOCKET="+name)
	cmd.ExtraFiles = []*os.File{passed}
	out := looptest.NewBuffer()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	if got := next(); !strings.HasPrefix(got, "READY=1\n") {
		t.Errorf("%q", got)
	}
	url := "http://" + l.Addr().String()
	if got := addressOf(t, out); got != url {
		t.Errorf("it serves on %s, not on %s", got, url)
	}
	resp, err := http.Get(url + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(b) != "ok\n" {
		t.Errorf("%s", b)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := next(); got != "STOPPING=1" {
		t.Errorf("%q", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
