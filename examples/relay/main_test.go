package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.com/mcast/examples/internal/cli"
	"example.com/mcast/examples/internal/looptest"
)

// The test binary runs as the program itself where a test needs a process.
func TestMain(m *testing.M) {
	if os.Getenv("RELAY_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

func TestCommandLine(t *testing.T) {
	o, err := parse([]string{"-listen", ":80", "-i", "eth7", "-allow", "239.1.0.0/16, 239.2.1.1", "rtp://@239.3.1.1:5000", "-allow", "ff3e::/32", "10.0.0.1@232.1.1.1", "-viewers=7", "-channels=3", "-linger=2m"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if o.listen != ":80" || o.rules.ifname != "eth7" || fmt.Sprint(o.rules.prefixes) != "[239.1.0.0/16 239.2.1.1/32 ff3e::/32]" || o.viewers != 7 || o.channels != 3 || o.linger.Minutes() != 2 || o.patience != viewerTime {
		t.Errorf("%+v", o)
	}
	if len(o.given) != 2 || o.given[0].scheme != "rtp" || o.given[1].ch.String() != "10.0.0.1@232.1.1.1:1234" {
		t.Errorf("%+v", o.given)
	}
	if o, err = parse([]string{"239.1.1.1:5000"}, io.Discard); err != nil || !strings.HasPrefix(o.listen, "127.0.0.1:") || len(o.rules.prefixes) != 0 {
		t.Errorf("what nobody asked for: %+v %v", o, err)
	}
	for args, after := range map[string]time.Duration{"-amt auto": 5 * time.Second, "-amt auto -amt-after 0": 0, "-amt 127.0.0.1": 0, "-amt 127.0.0.1 -amt-after 1m": time.Minute} {
		if o, err = parse(append(strings.Fields(args), "239.1.1.1"), io.Discard); err != nil || o.after != after {
			t.Errorf("%s: after %v, %v; want %v", args, o.after, err, after)
		}
	}
	for _, tt := range []struct {
		args []string
		code int
		text string
	}{
		{nil, 2, "want channels"},
		{[]string{"10.0.0.1:5000"}, 2, "multicast"},
		{[]string{"-allow", "10.0.0.0/8", "239.1.1.1"}, 2, "multicast"},
		{[]string{"-amt", "", "239.1.1.1"}, 2, "-amt"},
		{[]string{"-amt-after", "1s", "239.1.1.1"}, 2, "-amt-after"},
		{[]string{"-amt", "127.0.0.1", "-i", "eth7", "239.1.1.1"}, 2, "-i"},
		{[]string{"-viewers", "0", "239.1.1.1"}, 2, "-viewers"},
		{[]string{"-linger", "-1s", "239.1.1.1"}, 2, "-linger"},
		{[]string{"-list", filepath.Join(t.TempDir(), "none")}, 1, "-list"},
		{[]string{"-list", os.DevNull}, 1, "no channels"},
		{[]string{"-listen", "127.0.0.1:x", "239.1.1.1"}, 1, "127.0.0.1:x"},
	} {
		var out, errs strings.Builder
		code := cli.Run(t.Context(), "relay", run, tt.args, nil, &out, &errs)
		if code != tt.code || !strings.Contains(errs.String(), tt.text) || strings.Count(errs.String(), "\n") != 1 {
			t.Errorf("%q: %d %s, want %d …%s…", tt.args, code, errs.String(), tt.code, tt.text)
		}
	}
	var out strings.Builder
	if code := cli.Run(t.Context(), "relay", run, []string{"-h"}, nil, &out, io.Discard); code != 0 || !strings.Contains(out.String(), "/playlist.m3u") {
		t.Errorf("-h: %d %s", code, out.String())
	}
}

// addressOf waits until a relay serves, and returns where.
func addressOf(t testing.TB, stdout *looptest.Buffer) string {
	t.Helper()
	stdout.Wait(t, "/\n")
	_, url, _ := strings.Cut(stdout.String(), "http://")
	url, _, _ = strings.Cut(url, "/\n")
	return "http://" + url
}

// The whole program, with a list, on the loopback interface.
func TestProgram(t *testing.T) {
	const group = "239.255.77.6"
	port := looptest.Port(t)
	file := filepath.Join(t.TempDir(), "list.m3u")
	text := fmt.Sprintf("#EXTM3U\n#EXTINF:-1 tvg-logo=\"http://logos.example/1.png\",One\nudp://@%s:%d\n", group, port)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stdout, stderr := looptest.NewBuffer(), looptest.NewBuffer()
	code := make(chan int, 1)
	go func() {
		code <- cli.Run(ctx, "relay", run, []string{"-listen", "127.0.0.1:0", "-i", cli.Name(looptest.Interface(t)), "-list", file}, nil, stdout, stderr)
	}()
	url := addressOf(t, stdout)
	get := func(path string) *http.Response {
		t.Helper()
		resp, err := http.Get(url + path)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %+v %v", path, resp, err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	b, err := io.ReadAll(get("/playlist.m3u").Body)
	path := fmt.Sprintf("/udp/%s:%d", group, port)
	if want := strings.Replace(text, "udp://@"+strings.TrimPrefix(path, "/udp/"), url+path, 1); err != nil || string(b) != want {
		t.Errorf("%v: %s, want %s", err, b, want)
	}
	viewer := get(path)
	send := looptest.NewSender(t)
	packet := tsPacket(1, 1)
	send.Send(group, port, packet)
	if got := mustRead(t, viewer.Body, len(packet)); got != string(packet) {
		t.Error("the viewer gets something else")
	}
	cancel()
	if c := <-code; c != 0 {
		t.Errorf("exit code %d: %s", c, stderr)
	}
	if rest, err := io.ReadAll(viewer.Body); err != nil || len(rest) > 0 {
		t.Errorf("the stream ends with %d bytes, %v", len(rest), err)
	}
	for _, want := range []string{"joined", "left"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("the log has nothing of %q: %s", want, stderr)
		}
	}
}
