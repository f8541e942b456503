package browsertest

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/mcast/internal/netlab"
)

// The channels of the scene. SOURCE and SOURCE6 are the sender's addresses.
var channels = []struct {
	name, target string
	source       bool
	mbits        float64
	viewers      int
	lossy        bool
	state        string
}{
	{"Harbour One", "rtp://SOURCE@232.10.1.1:5004", true, 8, 3, false, "live"},
	{"Harbour Two HD", "udp://SOURCE@232.10.1.2:5000", true, 5, 2, false, "live"},
	{"City News", "udp://@239.10.2.1:5000", false, 3.5, 4, false, "live"},
	{"Concert Hall", "udp://SOURCE6@[ff3e::8000:1]:5000", true, 6, 1, false, "live"},
	{"Weather Camera", "udp://@239.10.2.7:5000", false, 1.2, 1, true, "live"},
	{"Council Live", "udp://SOURCE@232.10.1.9%eth1:5000", true, 0, 1, false, "pending"},
	{"Test Card", "udp://@239.10.2.9:5000", false, 0, 1, false, "silent"},
	{"Night Archive", "udp://SOURCE@232.10.1.12:5000", true, 0, 0, false, "idle"},
}

// A scene is a relay with its network.
type scene struct {
	me, far *netlab.Host
	program string
	list    string
	url     string
	address string
	cmd     *exec.Cmd
}

// newScene builds the relay, and starts it beside a host that sends.
func newScene(t *testing.T, l *netlab.Lab) *scene {
	t.Helper()
	dir := t.TempDir()
	s := &scene{me: l.Local(), far: l.Host("far"), program: filepath.Join(dir, "relay"), list: filepath.Join(dir, "list.m3u"), address: "127.0.0.1:0"}
	l.Switch(s.me, s.far)
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	build := exec.Command(goTool, "build", "-o", s.program, ".")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	addresses := strings.NewReplacer("SOURCE6", s.far.Addr6("eth0").String(), "SOURCE", s.far.Addr4("eth0").String())
	var list strings.Builder
	list.WriteString("#EXTM3U\n")
	for _, c := range channels {
		fmt.Fprintf(&list, "#EXTINF:-1 tvg-logo=\"http://logos.example/x.png\",%s\n%s\n", c.name, addresses.Replace(c.target))
	}
	if err := os.WriteFile(s.list, []byte(list.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range channels {
		if c.mbits > 0 {
			_, target, _ := strings.Cut(c.target, "@")
			s.send(t, netip.MustParseAddrPort(target), strings.HasPrefix(c.target, "rtp"), c.mbits, c.lossy)
		}
	}
	s.start(t)
	t.Cleanup(func() { s.cmd.Process.Kill() })
	return s
}

// start starts the relay, on the address where it was.
func (s *scene) start(t *testing.T) {
	t.Helper()
	s.cmd = exec.Command(s.program, "-listen", s.address, "-i", "eth0", "-list", s.list)
	s.cmd.Stderr = os.Stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	_, at, found := strings.Cut(line, "http://")
	if err != nil || !found {
		t.Fatalf("%q %v", line, err)
	}
	s.address = strings.TrimSuffix(at, "/\n")
	s.url = "http://" + s.address
}

func (s *scene) stop(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// watch has each channel watched by its viewers, by the addresses of the
// playlist.
func (s *scene) watch(t *testing.T) {
	t.Helper()
	resp, err := http.Get(s.url + "/playlist.m3u")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var urls []string
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		if !strings.HasPrefix(sc.Text(), "#") {
			urls = append(urls, sc.Text())
		}
	}
	if len(urls) != len(channels) {
		t.Fatalf("%q", urls)
	}
	for i, url := range urls {
		for range channels[i].viewers {
			resp, err := http.Get(url)
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("%s: %+v %v", url, resp, err)
			}
			t.Cleanup(func() { resp.Body.Close() })
			go io.Copy(io.Discard, resp.Body)
		}
	}
}

// send sends a stream of about that rate until the test ends.
func (s *scene) send(t *testing.T, to netip.AddrPort, rtp bool, mbits float64, lossy bool) {
	t.Helper()
	from := s.far.Addr4("eth0")
	if to.Addr().Is6() {
		from = s.far.Addr6("eth0")
	}
	sender := s.far.Sender(t, "eth0", from, to)
	const packet, packets = 188, 7
	go func() {
		phase := rand.Float64() * 10
		counter, seq := byte(0), uint16(0)
		started := time.Now()
		last := started
		owed := 0.0
		for t.Context().Err() == nil {
			time.Sleep(5 * time.Millisecond)
			now := time.Now()
			at := now.Sub(started).Seconds()
			rate := mbits * (1 + 0.18*math.Sin(phase+at/17) + 0.1*math.Sin(at/5+2*phase) + 0.1*rand.NormFloat64())
			owed += now.Sub(last).Seconds() * max(rate, 0) * 1e6 / 8 / (packet * packets)
			last = now
			owed = min(owed, 30) // after a stall of the machine: no burst in the picture
			for ; owed >= 1; owed-- {
				var b []byte
				if rtp {
					b = append(b, 0x80, 33, byte(seq>>8), byte(seq), 0, 0, 0, 0, 0, 0, 0, 7)
				}
				seq++
				for range packets {
					p := make([]byte, packet)
					copy(p, []byte{0x47, 1, 0, 0x10 | counter&15})
					binary.BigEndian.PutUint64(p[4:], uint64(now.UnixNano()))
					counter++
					b = append(b, p...)
				}
				if lossy && rand.IntN(150) == 0 {
					continue
				}
				sender.Send(string(b))
			}
		}
	}()
}
