//go:build linux && cgo

package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// readmes are the files with tables of this program, from this directory.
var readmes = []string{"README.md", "../README.md"}

// writeReadmes puts tables into the files, each between the lines
// <!-- bench: NAME --> and <!-- bench end -->. What was not measured stays.
func writeReadmes(tables map[string]string) error {
	for _, file := range readmes {
		old, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		text, err := fillIn(string(old), tables)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if bytes.Equal(old, []byte(text)) {
			continue
		}
		if err := os.WriteFile(file, []byte(text), 0o666); err != nil {
			return err
		}
	}
	return nil
}

func fillIn(text string, tables map[string]string) (string, error) {
	const begin, beginEnd, end = "<!-- bench: ", " -->\n", "<!-- bench end -->"
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, begin)
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		name, rest, ok := strings.Cut(rest, beginEnd)
		old, after, ended := strings.Cut(rest, end)
		if !ok || !ended {
			return "", fmt.Errorf("%q has no end", begin+name)
		}
		b.WriteString(begin + name + beginEnd)
		if table, ok := tables[name]; ok {
			b.WriteString("\n" + strings.Trim(table, "\n") + "\n\n")
		} else {
			b.WriteString(old)
		}
		b.WriteString(end)
		text = after
	}
}
