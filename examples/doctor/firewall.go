package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// What a firewall does to a packet is found by following its rules. It is a
// guess where a rule has a condition that is not known here: then the rule may
// match, or not.

// A table has chains of rules.
type table struct {
	tool   string // "nft", "iptables", "ip6tables-legacy"
	family string // "ip", "ip6", "inet", "netdev", "bridge"
	name   string
	chains map[string]*chain
	sets   map[string][]string
}

type chain struct {
	name, hook, policy string // hook: "" of a chain that only other chains jump to
	rules              []rule
}

type rule struct {
	text    string
	conds   []cond
	unsure  bool   // it has a condition that is not known here
	verdict string // "accept", "drop", "return", "jump", "goto"; "": none
	target  string // of jump and goto
}

// A cond compares one property of a packet.
type cond struct {
	key    string // "family", "proto", "saddr", "daddr", "dport", "iif", "oif", "cast", "state"
	not    bool
	values []string
}

// Blocked is a rule that drops what is needed.
type blocked struct {
	What  string `json:"what"` // "datagrams", "queries", "reports"
	Where string `json:"where"`
	Rule  string `json:"rule"`
	Sure  bool   `json:"sure"` // false: a rule has conditions that were not understood
	Fix   string `json:"fix"`
}

// A traveller is a packet on its way through the firewall.
type traveller struct {
	what     string
	is6      bool
	proto    string // "udp", "igmp", "icmpv6"
	src, dst netip.Addr
	dport    uint16
	iif, oif string
	hooks    []string
}

// checkFirewall follows what is needed to hear the group.
func checkFirewall(tables []*table, f *facts) (bs []blocked) {
	is6 := f.Group.Is6()
	in, out := []string{"ingress", "prerouting", "input"}, []string{"output", "postrouting", "egress"}
	proto, queries, reports := "igmp", netip.MustParseAddr("224.0.0.1"), netip.MustParseAddr("224.0.0.22")
	if is6 {
		proto, queries, reports = "icmpv6", netip.MustParseAddr("ff02::1"), netip.MustParseAddr("ff02::16")
	}
	for _, p := range []traveller{
		{what: "datagrams", is6: is6, proto: "udp", src: f.Source, dst: f.Group, dport: f.Port, iif: f.Link.Name, hooks: in},
		{what: "queries", is6: is6, proto: proto, dst: queries, iif: f.Link.Name, hooks: in},
		{what: "reports", is6: is6, proto: proto, dst: reports, oif: f.Link.Name, hooks: out},
	} {
		for _, t := range tables {
			for _, c := range t.sorted() {
				if !slices.Contains(p.hooks, c.hook) || !p.passes(t) {
					continue
				}
				r := t.walk(c, p, 0)
				if r.verdict != "drop" {
					continue
				}
				where := strings.Join([]string{t.tool, "table", t.family, t.name, "chain", r.chain}, " ")
				bs = append(bs, blocked{p.what, where, r.rule, r.sure, t.fix(c, p)})
			}
		}
	}
	return bs
}

func (t *table) sorted() []*chain {
	var cs []*chain
	for _, c := range t.chains {
		cs = append(cs, c)
	}
	slices.SortFunc(cs, func(a, b *chain) int { return cmp.Compare(a.name, b.name) })
	return cs
}

func (p traveller) passes(t *table) bool {
	switch t.family {
	case "ip":
		return !p.is6
	case "ip6":
		return p.is6
	}
	return t.family == "inet" || t.family == "netdev"
}

// fix is the command that lets the packet through the chain.
func (t *table) fix(c *chain, p traveller) string {
	if t.tool == "nft" {
		ip, proto := "ip", "meta l4proto "+p.proto
		if p.is6 {
			ip, proto = "ip6", "meta l4proto ipv6-icmp"
		}
		if p.proto == "udp" {
			proto = "meta l4proto udp"
			if p.dport != 0 {
				proto = fmt.Sprintf("udp dport %d", p.dport)
			}
		}
		return fmt.Sprintf("nft insert rule %s %s %s %s daddr %v %s accept", t.family, t.name, c.name, ip, p.dst, proto)
	}
	port, proto := "", p.proto
	if p.proto == "udp" && p.dport != 0 {
		port = fmt.Sprintf(" --dport %d", p.dport)
	}
	return fmt.Sprintf("%s -t %s -I %s -d %v -p %s%s -j ACCEPT", t.tool, t.name, c.name, p.dst, proto, port)
}

// An outcome is what became of a packet.
type outcome struct {
	verdict     string // "accept", "drop", "return", or "" at the end of a chain
	chain, rule string // of a drop
	sure        bool
}

// walk follows a packet through a chain. The first rule that surely matches
// decides; where one before it may have, the outcome is not sure.
func (t *table) walk(c *chain, p traveller, depth int) outcome {
	var dropped *outcome // it may have been
	sure := true
	end := func(o outcome) outcome {
		switch {
		case o.verdict == "drop" || dropped == nil:
			o.sure = o.sure && sure
			return o
		default:
			return *dropped
		}
	}
	for _, r := range c.rules {
		m := r.matches(p, t.sets)
		if m == no {
			continue
		}
		o := outcome{verdict: r.verdict, chain: c.name, rule: r.text, sure: m == yes}
		if r.verdict == "jump" || r.verdict == "goto" {
			next := t.chains[r.target]
			if next == nil || depth > 16 {
				sure = false
				continue
			}
			o = t.walk(next, p, depth+1)
			o.sure = o.sure && m == yes
			if o.verdict == "return" || o.verdict == "" {
				if o.verdict = ""; r.verdict == "goto" {
					o.verdict = "return"
				}
			}
		}
		switch {
		case o.verdict == "":
			sure = sure && (o.sure || m == yes)
		case o.sure:
			return end(o)
		default:
			sure = false
			if o.verdict == "drop" && dropped == nil {
				dropped = &o
			}
		}
	}
	if c.hook != "" && c.policy == "drop" {
		return end(outcome{verdict: "drop", chain: c.name, rule: "policy drop", sure: true})
	}
	return end(outcome{sure: true})
}

// A match is whether a rule matches.
type match uint8

const (
	no match = iota
	maybe
	yes
)

func (r rule) matches(p traveller, sets map[string][]string) match {
	m := yes
	if r.unsure {
		m = maybe
	}
	for _, c := range r.conds {
		values := c.values
		if len(values) == 1 && strings.HasPrefix(values[0], "@") {
			var known bool
			if values, known = sets[values[0][1:]]; !known {
				m = min(m, maybe)
				continue
			}
		}
		is := no
		for _, v := range values {
			is = max(is, p.is(c.key, v))
		}
		if c.not {
			is = yes - is
		}
		m = min(m, is)
	}
	return m
}

// is reports whether a property of the packet has that value.
func (p traveller) is(key, v string) match {
	sure := func(b bool) match {
		if b {
			return yes
		}
		return no
	}
	switch key {
	case "family":
		return sure(v == "ip6" == p.is6)
	case "proto":
		switch v {
		case "all", "0":
			return yes
		case "17":
			v = "udp"
		case "2":
			v = "igmp"
		case "58", "ipv6-icmp":
			v = "icmpv6"
		}
		return sure(v == p.proto)
	case "saddr":
		if !p.src.IsValid() {
			if v == "0.0.0.0/0" || v == "::/0" {
				return yes
			}
			return maybe
		}
		return inRange(p.src, v)
	case "daddr":
		return inRange(p.dst, v)
	case "dport":
		if p.proto != "udp" {
			return no
		}
		low, high, isRange := strings.Cut(strings.ReplaceAll(v, ":", "-"), "-")
		if !isRange {
			high = low
		}
		a, err := strconv.Atoi(cmp.Or(low, "0"))
		b, err2 := strconv.Atoi(cmp.Or(high, "65535"))
		if err != nil || err2 != nil || p.dport == 0 {
			return maybe
		}
		return sure(a <= int(p.dport) && int(p.dport) <= b)
	case "iif", "oif":
		name := p.iif
		if key == "oif" {
			name = p.oif
		}
		if prefix, ok := strings.CutSuffix(v, "*"); ok {
			return sure(name != "" && strings.HasPrefix(name, prefix))
		}
		if prefix, ok := strings.CutSuffix(v, "+"); ok {
			return sure(name != "" && strings.HasPrefix(name, prefix))
		}
		return sure(v == name)
	case "cast": // nobody answers to a group: no packet of it but is new
		return sure(strings.EqualFold(v, "multicast") || v == "2")
	case "state":
		switch strings.ToLower(v) {
		case "new":
			return yes
		case "untracked":
			return maybe
		}
		return no
	}
	return maybe
}

func inRange(a netip.Addr, v string) match {
	var in bool
	if low, high, ok := strings.Cut(v, "-"); ok {
		l, err := netip.ParseAddr(low)
		h, err2 := netip.ParseAddr(high)
		if err != nil || err2 != nil {
			return maybe
		}
		in = l.Compare(a) <= 0 && a.Compare(h) <= 0
	} else if p, err := netip.ParsePrefix(v); err == nil {
		in = p.Contains(a)
	} else if b, err := netip.ParseAddr(v); err == nil {
		in = a == b
	} else {
		return maybe
	}
	if in {
		return yes
	}
	return no
}

// parseNFT reads what "nft -a list ruleset" prints.
func parseNFT(text string) (ts []*table) {
	var t *table
	var c *chain
	var set string
	var lines []string
	for line := range strings.Lines(text) { // long sets are broken into lines
		line = strings.TrimSpace(line)
		if n := len(lines); n > 0 && strings.Count(lines[n-1], "{") > strings.Count(lines[n-1], "}") && !isBlock(lines[n-1]) {
			lines[n-1] += " " + line
			continue
		}
		lines = append(lines, line)
	}
	for _, line := range lines {
		bare, _, _ := strings.Cut(line, " # handle")
		w := words(bare)
		switch {
		case len(w) == 0:
		case len(w) >= 4 && w[0] == "table":
			t = &table{tool: "nft", family: w[1], name: w[2], chains: map[string]*chain{}, sets: map[string][]string{}}
			ts = append(ts, t)
		case t == nil:
		case w[0] == "chain" && len(w) >= 3:
			c, set = &chain{name: w[1]}, ""
			t.chains[c.name] = c
		case (w[0] == "set" || w[0] == "map") && len(w) >= 3:
			c, set = nil, w[1]
		case w[0] == "}":
			c, set = nil, ""
		case w[0] == "elements" && set != "":
			if i := slices.Index(w, "{"); i >= 0 {
				t.sets[set], _ = values(w[i:])
			}
		case c == nil:
		case w[0] == "type" && slices.Contains(w, "hook"):
			c.hook = strings.TrimSuffix(after(w, "hook"), ";")
			c.policy = strings.TrimSuffix(after(w, "policy"), ";")
		default:
			c.rules = append(c.rules, nftRules(bare, w)...)
		}
	}
	return ts
}

func isBlock(line string) bool {
	first, _, _ := strings.Cut(line, " ")
	return slices.Contains([]string{"table", "chain", "set", "map", "flowtable", "counter", "quota", "limit", "ct", "secmark", "synproxy"}, first) &&
		(strings.HasSuffix(line, "{") || strings.Contains(line, "{ #"))
}

func after(w []string, key string) string {
	if i := slices.Index(w, key); i >= 0 && i+1 < len(w) {
		return w[i+1]
	}
	return ""
}

// words splits a line at spaces, but not in quotes, which it removes.
func words(line string) (w []string) {
	var b strings.Builder
	quoted, some := false, false
	for _, r := range line {
		switch {
		case r == '"':
			quoted, some = !quoted, true
		case r == ' ' && !quoted:
			if some {
				w = append(w, b.String())
				b.Reset()
				some = false
			}
		default:
			b.WriteRune(r)
			some = true
		}
	}
	if some {
		w = append(w, b.String())
	}
	return w
}

// values reads one value, or a set of them in braces, and returns how many
// words that took.
func values(w []string) (vs []string, n int) {
	if len(w) == 0 {
		return nil, 0
	}
	if w[0] != "{" {
		return strings.Split(w[0], ","), 1
	}
	end := slices.Index(w, "}")
	if end < 0 {
		end = len(w)
	}
	for v := range strings.SplitSeq(strings.Join(w[1:end], " "), ",") {
		if v = strings.TrimSpace(v); v != "" {
			vs = append(vs, v)
		}
	}
	return vs, min(end+1, len(w))
}

var nftKeys = map[string]string{
	"saddr": "saddr", "daddr": "daddr", "dport": "dport", "protocol": "proto", "nexthdr": "proto", "l4proto": "proto",
	"iif": "iif", "iifname": "iif", "oif": "oif", "oifname": "oif", "pkttype": "cast", "state": "state",
}

// nftRules reads a rule; a verdict map makes several of it.
func nftRules(text string, w []string) []rule {
	r := rule{text: text}
	var more []rule
	for len(w) > 0 {
		key, rest := w[0], w[1:]
		switch {
		case key == "ip" || key == "ip6":
			r.conds = append(r.conds, cond{key: "family", values: []string{key}})
		case key == "meta" || key == "ct" || key == "th":
			if len(rest) > 0 && nftKeys[rest[0]] == "" || len(rest) > 0 && key == "meta" && rest[0] == "protocol" {
				r.unsure = true
				_, n := values(rest[1:])
				rest = rest[1+n:]
			}
		case key == "fib" && len(rest) > 2 && rest[0] == "daddr" && rest[1] == "type":
			vs, n := values(rest[2:])
			r.conds = append(r.conds, cond{key: "cast", values: vs})
			rest = rest[2+n:]
		case key == "fib": // such as "saddr . iif oif missing"
			r.unsure = true
			for len(rest) > 0 {
				result := rest[0] == "oif" || rest[0] == "oifname" || rest[0] == "type"
				if rest = rest[1:]; result {
					_, n := values(rest)
					rest = rest[n:]
					break
				}
			}
		case slices.Contains([]string{"udp", "tcp", "sctp", "dccp", "udplite", "icmp", "icmpv6", "igmp"}, key):
			r.conds = append(r.conds, cond{key: "proto", values: []string{key}})
			if len(rest) > 1 && rest[0] != "dport" { // a field that is not known here
				r.unsure = true
				_, n := values(rest[1:])
				rest = rest[1+n:]
			}
		case nftKeys[key] != "":
			c := cond{key: nftKeys[key]}
			if len(rest) > 0 && (rest[0] == "!=" || rest[0] == "==") {
				c.not = rest[0] == "!="
				rest = rest[1:]
			}
			if len(rest) > 0 && rest[0] == "vmap" {
				vs, n := values(rest[1:])
				rest = rest[1+n:]
				for _, v := range vs {
					k, verdict, _ := strings.Cut(v, " : ")
					x := rule{text: text, unsure: r.unsure, conds: append(slices.Clone(r.conds), cond{key: c.key, values: []string{k}})}
					x.decide(strings.Fields(verdict))
					more = append(more, x)
				}
				break
			}
			if len(rest) > 0 && rest[0] == "." { // a concatenation
				r.unsure = true
				break
			}
			var n int
			c.values, n = values(rest)
			rest = rest[n:]
			r.conds = append(r.conds, c)
		case key == "counter":
			if len(rest) >= 4 && rest[0] == "packets" {
				rest = rest[4:]
			}
		case key == "log":
			for len(rest) > 1 && slices.Contains([]string{"prefix", "level", "group", "flags", "snaplen", "queue-threshold"}, rest[0]) {
				rest = rest[2:]
			}
		case key == "comment":
			rest = rest[min(1, len(rest)):]
		case r.decide(w):
			rest = nil
		default:
			r.unsure = true
		}
		w = rest
	}
	if r.verdict != "" || len(more) == 0 {
		more = append(more, r)
	}
	return more
}

// decide reads a verdict and reports whether it is one.
func (r *rule) decide(w []string) bool {
	if len(w) == 0 {
		return false
	}
	switch w[0] {
	case "accept", "drop", "return":
		r.verdict = w[0]
	case "reject":
		r.verdict = "drop"
	case "jump", "goto":
		if len(w) < 2 {
			return false
		}
		r.verdict, r.target = w[0], w[1]
	default:
		return false
	}
	return true
}

// parseIPTables reads what iptables-save or ip6tables-save prints. The tool is
// the one that changes those rules.
func parseIPTables(text, tool string) (ts []*table) {
	family := "ip"
	if strings.HasPrefix(tool, "ip6") {
		family = "ip6"
	}
	var t *table
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		w := words(line)
		switch {
		case len(w) == 0:
		case strings.HasPrefix(line, "*"):
			t = &table{tool: tool, family: family, name: line[1:], chains: map[string]*chain{}}
			ts = append(ts, t)
		case t == nil:
		case strings.HasPrefix(line, ":") && len(w) >= 2:
			c := &chain{name: w[0][1:], policy: strings.ToLower(w[1])}
			if w[1] != "-" {
				c.hook = strings.ToLower(c.name)
			}
			t.chains[c.name] = c
		case w[0] == "-A" && len(w) > 2 && t.chains[w[1]] != nil:
			c := t.chains[w[1]]
			c.rules = append(c.rules, iptablesRule(line, w[2:]))
		}
	}
	return ts
}

var iptablesKeys = map[string]string{
	"-s": "saddr", "-d": "daddr", "-i": "iif", "-o": "oif", "-p": "proto", "--dport": "dport", "--dports": "dport",
	"--pkt-type": "cast", "--dst-type": "cast", "--ctstate": "state", "--state": "state",
	"--src-range": "saddr", "--dst-range": "daddr",
}

func iptablesRule(text string, w []string) rule {
	r := rule{text: text}
	not := false
	for len(w) > 0 {
		key, rest := w[0], w[1:]
		switch {
		case key == "!":
			not = true
			w = rest
			continue
		case len(rest) == 0:
			r.unsure = true
		case iptablesKeys[key] != "":
			r.conds = append(r.conds, cond{key: iptablesKeys[key], not: not, values: strings.Split(rest[0], ",")})
			rest = rest[1:]
		case key == "-m" || key == "--comment":
			rest = rest[1:]
		case key == "-j" || key == "-g":
			switch rest[0] {
			case "ACCEPT", "DROP", "REJECT", "RETURN":
				r.decide([]string{strings.ToLower(rest[0])})
			case "LOG", "NFLOG", "MARK", "CONNMARK", "CT", "NOTRACK", "TRACE", "CHECKSUM", "TTL", "HL", "DSCP", "TOS":
				// go on with the next rule
			default:
				r.verdict, r.target = map[string]string{"-j": "jump", "-g": "goto"}[key], rest[0]
			}
			rest = nil
		default:
			r.unsure = true
		}
		not = false
		w = rest
	}
	return r
}
