// Command kernels is the init process of the machines that ci/kernels.sh
// boots: it gets a kernel ready for the tests' labs, runs the tests that lie
// in /tests, each in its folder, and turns the machine off.
//
// The kernel passes what stands on its command line as NAME=VALUE and is
// nothing to it as environment: RUN and TIMEOUT are test flags, all of it is
// the environment of the tests. The results are lines that begin with "@@ ".
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "kernels: this is the init process of a test machine: see ci/kernels.sh")
		os.Exit(2)
	}
	if err := boot(); err != nil {
		fmt.Println("@@ FAIL boot:", err)
	} else {
		runTests()
	}
	fmt.Println("@@ end")
	time.Sleep(100 * time.Millisecond) // for the console
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func boot() error {
	for _, m := range [][2]string{
		{"proc", "/proc"},
		{"sysfs", "/sys"},
		{"devtmpfs", "/dev"},
		{"tmpfs", "/tmp"},
	} {
		if err := os.MkdirAll(m[1], 0o755); err != nil {
			return err
		}
		err := unix.Mount(m[0], m[1], m[0], unix.MS_NOSUID, "")
		if err != nil && !errors.Is(err, unix.EBUSY) { // the kernel has mounted it itself
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	if err := os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return err
	}
	modules, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(modules)) {
		if err := load("/modules/" + name); err != nil {
			return err
		}
	}
	if out, err := exec.Command("ip", "link", "set", "dev", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link: %w: %s", err, out)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	fmt.Println("\n@@ kernel", unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]))
	return nil
}

func load(module string) error {
	f, err := os.Open(module)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s: %w", module, err)
	}
	return nil
}

// result is the line that ends a test at the top level.
var result = regexp.MustCompile(`(?m)^--- (PASS|FAIL|SKIP): (\S+) \(`)

func runTests() {
	tests, _ := filepath.Glob("/tests/*/test")
	if len(tests) == 0 {
		fmt.Println("@@ FAIL boot: no tests")
	}
	for _, test := range tests {
		// Verbose for the names of what was skipped, but the console is slow:
		// it gets all there is only of a package that failed.
		args := []string{"-test.v", "-test.timeout=" + os.Getenv("TIMEOUT")}
		if run := os.Getenv("RUN"); run != "" {
			args = append(args, "-test.run="+run)
		}
		var out bytes.Buffer
		cmd := exec.Command(test, args...)
		cmd.Dir = filepath.Dir(test)
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.WaitDelay = time.Second
		start := time.Now()
		err := cmd.Run()
		took := time.Since(start).Round(time.Second)

		count := make(map[string]int)
		var skipped []string
		for _, m := range result.FindAllStringSubmatch(out.String(), -1) {
			count[m[1]]++
			if m[1] == "SKIP" {
				skipped = append(skipped, m[2])
			}
		}
		word := "ok"
		switch {
		case err != nil:
			word = "FAIL"
			os.Stdout.Write(interesting(out.Bytes()))
			fmt.Println(err)
		case count["PASS"] == 0:
			word = "skip"
		}
		fmt.Printf("@@ %s %s: %d tests passed, %d failed, %d skipped, %v\n", word, filepath.Base(cmd.Dir),
			count["PASS"], count["FAIL"], count["SKIP"], took)
		if skipped != nil {
			fmt.Println("@@ skipped:", strings.Join(skipped, " "))
		}
	}
}

// interesting removes what passed from the output of tests.
func interesting(out []byte) []byte {
	var kept, block [][]byte
	flush := func() {
		for _, line := range block {
			if bytes.Contains(line, []byte("--- FAIL")) {
				kept = append(kept, block...)
				break
			}
		}
		block = nil
	}
	for line := range bytes.Lines(out) {
		if bytes.HasPrefix(line, []byte("=== RUN")) && !bytes.Contains(line, []byte("/")) {
			flush()
		}
		if block = append(block, line); bytes.HasPrefix(line, []byte("panic:")) || bytes.HasPrefix(line, []byte("fatal error:")) {
			block = append(block, []byte("--- FAIL\n"))
		}
	}
	flush()
	return bytes.Join(kept, nil)
}
