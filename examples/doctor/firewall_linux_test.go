package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	nftDrops = `table ip filter { # handle 1
	chain INPUT { # handle 1
		type filter hook input priority filter; policy accept;
		ip daddr 232.1.1.1 counter packets 0 bytes 0 drop # handle 2
	}
}
`
	saveDrops = `*filter
:INPUT ACCEPT [0:0]
-A INPUT -d 232.1.1.1/32 -j DROP
COMMIT
`
	nfTables = "iptables-save v1.8.9 (nf_tables)"
	legacy   = "iptables-save v1.8.9 (legacy)"
)

// TestFirewallTools: which tools are asked depends on what there is, and one
// rule is one finding, whoever shows it.
func TestFirewallTools(t *testing.T) {
	type fake struct{ version, prints string } // prints "": it fails
	clear := "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"
	for _, tt := range []struct {
		name     string
		tools    map[string]fake
		names    string // of legacy tables; "-": the user may not know
		findings string // tools that show the rule
		seen     bool
		unseen   string
	}{
		{"nothing", nil, "", "", false, "not installed"},
		{"nft", map[string]fake{"nft": {"", nftDrops}}, "", "nft", true, ""},
		{"nft shows what iptables made", map[string]fake{"nft": {"", nftDrops}, "iptables-save": {nfTables, saveDrops}}, "", "nft", true, ""},
		{"iptables alone, nf_tables", map[string]fake{"iptables-save": {nfTables, saveDrops}}, "", "iptables", true, ""},
		{"iptables alone, legacy", map[string]fake{"iptables-save": {legacy, saveDrops}}, "filter", "iptables-legacy", true, ""},
		{"iptables alone, old", map[string]fake{"iptables-save": {"iptables-save v1.6.0", saveDrops}}, "filter", "iptables", true, ""},
		{"both names of one tool", map[string]fake{"iptables-save": {legacy, saveDrops}, "iptables-legacy-save": {legacy, saveDrops}}, "filter", "iptables-legacy", true, ""},
		{"legacy beside nf_tables", map[string]fake{"nft": {"", "table ip x {\n}\n"}, "iptables-save": {nfTables, clear}, "iptables-legacy-save": {legacy, saveDrops}}, "filter", "iptables-legacy", true, ""},
		{"a rule in each", map[string]fake{"nft": {"", nftDrops}, "iptables-save": {nfTables, saveDrops}, "iptables-legacy-save": {legacy, saveDrops}}, "filter", "iptables-legacy nft", true, ""},
		{"legacy rules, and no tool", map[string]fake{"nft": {"", "table ip x {\n}\n"}, "iptables-save": {nfTables, clear}}, "filter", "", true, "iptables-legacy-save, which is not installed"},
		{"legacy rules that may not be seen", map[string]fake{"nft": {"", "table ip x {\n}\n"}, "iptables-legacy-save": {legacy, " "}}, "-", "", true, "the right to read"},
		{"nothing may be seen", map[string]fake{"nft": {"", ""}, "iptables-legacy-save": {legacy, " "}}, "-", "", false, "the right to read"},
		{"nft fails", map[string]fake{"nft": {"", ""}, "iptables-save": {nfTables, saveDrops}}, "", "iptables", true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bin, proc := t.TempDir(), t.TempDir()
			for name, f := range tt.tools {
				script := "#!/bin/sh\nif [ \"$1\" = -V ]; then echo '" + f.version + "'; exit; fi\n/bin/cat <<'EOF'\n" + f.prints + "\nEOF\n"
				if f.prints == "" {
					script = "#!/bin/sh\necho no >&2; exit 1\n"
				}
				if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			names := filepath.Join(proc, "ip_tables_names")
			if err := os.WriteFile(names, []byte(strings.TrimPrefix(tt.names, "-")), 0o600); err != nil {
				t.Fatal(err)
			}
			was, dirs := procDir, toolDirs
			t.Cleanup(func() { procDir, toolDirs, readNames = was, dirs, os.ReadFile })
			procDir, toolDirs = proc+"/", nil
			if tt.names == "-" {
				readNames = func(string) ([]byte, error) { return nil, os.ErrPermission } // root may read all files
			}
			t.Setenv("PATH", bin)
			f := sound()
			f.Group, f.Source = netip.MustParseAddr("232.1.1.1"), source
			(&probe{f: f}).firewall(t.Context())
			var tools []string
			for _, b := range f.Blocked {
				tool, _, _ := strings.Cut(b.Where, " ")
				tools = append(tools, tool)
			}
			var needs []string
			for _, u := range f.Unseen {
				needs = append(needs, u.Needs)
			}
			unseen := strings.Join(needs, "; ")
			if got := strings.Join(slices.Sorted(slices.Values(tools)), " "); got != tt.findings || f.Rules != tt.seen || (unseen == "") != (tt.unseen == "") || !strings.Contains(unseen, tt.unseen) {
				t.Errorf("findings by %q, want %q; seen %v, unseen %q", got, tt.findings, f.Rules, unseen)
			}
			for _, x := range diagnose(f) {
				if x.Rule == "firewall" && x.Severity == ok && tt.unseen != "" {
					t.Errorf("declared clear: %s", x.Text)
				}
			}
		})
	}
}
