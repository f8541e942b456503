// Package browsertest drives the page of examples/relay with a real browser. It
// is a module of its own, for the library that does that.
package browsertest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/mcast/internal/netlab"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// texts returns the texts of what a selector finds, and that is to be seen.
func (b *browser) texts(selector string) []string {
	b.t.Helper()
	return eval[[]string](b, fmt.Sprintf("[...document.querySelectorAll(%q)].filter(e => e.checkVisibility()).map(e => e.textContent)", selector))
}

// cell is the text of a part of a channel's row, as an expression.
func cell(channel, class string) string {
	return fmt.Sprintf("([...document.querySelectorAll('#rows tr')].find(tr => tr.querySelector('.name').textContent === %q)?.querySelector('.%s').textContent ?? '')", channel, class)
}

// awaitCell waits until a channel's row says that.
func (b *browser) awaitCell(channel, class, text string) {
	b.t.Helper()
	b.await(fmt.Sprintf("%s.includes(%q)", cell(channel, class), text))
}

func TestPage(t *testing.T) {
	path := findBrowser(t)
	netlab.Run(t, func(l *netlab.Lab) {
		s := newScene(t, l)
		s.watch(t)
		b := open(t, path, s.url)
		run(b, chromedp.EmulateViewport(1280, 800))
		run(b, chromedp.Navigate(s.url+"/"))

		l.Run("live", func(t *testing.T) {
			b.t = t
			for _, c := range channels {
				b.awaitCell(c.name, "word", c.state)
				if where := eval[string](b, cell(c.name, "where")); c.source == strings.Contains(where, "any source") {
					t.Errorf("%s: %q", c.name, where)
				}
			}
			b.awaitCell("Council Live", "why", "there is no usable interface eth1")
			b.awaitCell("Harbour One", "where", "eth0")
			b.awaitCell("Harbour One", "viewers", "3")
			b.awaitCell("Harbour One", "lost", "0")
			b.awaitCell("Harbour One", "heard", "now")
			b.awaitCell("City News", "where", "any source, now 10.")
			b.awaitCell("Night Archive", "mbits", "–")
			b.await("parseInt(" + cell("Weather Camera", "lost") + ") > 0")
			b.await("parseFloat(document.querySelector('#rows tr .mbits').textContent) > 1")
			b.await("document.querySelector('#rows tr svg .line').getAttribute('d').split('L').length > 3")
			b.await("document.querySelector('#rows tr svg').getAttribute('aria-label').includes('highest')")
			b.await("document.querySelector('#summary').textContent.includes('1 channel has a problem')")
			b.await("document.title.includes('1')")
		})
		l.Run("stream", func(t *testing.T) {
			b.t = t
			first := eval[int](b, `fetch(document.querySelector('#rows .name').href).then(async r => {
				const reader = r.body.getReader(), {value} = await reader.read();
				reader.cancel();
				return r.headers.get('Content-Type') === 'video/mp2t' ? value[0] : -1;
			})`)
			if first != 0x47 {
				t.Errorf("what the page links to begins with %#x", first)
			}
		})
		l.Run("keyboard", func(t *testing.T) {
			b.t = t
			listed := b.texts("#rows .name")
			b.slash()
			b.await("document.activeElement.id === 'filter'")
			b.press("harbour")
			if got := b.texts("#rows .name"); !slices.Equal(got, []string{"Harbour One", "Harbour Two HD"}) {
				t.Errorf("filtered: %q", got)
			}
			b.press(kb.ArrowDown)
			b.press(kb.ArrowDown)
			b.await("document.activeElement.textContent === 'Harbour Two HD'")
			b.press(kb.Tab)
			b.press(kb.Enter)
			b.await("document.activeElement.textContent === 'Copied'")
			b.slash()
			b.press("nothing like it")
			b.await("!document.querySelector('#empty').hidden")
			b.press(kb.Escape)
			if got := b.texts("#rows .name"); !slices.Equal(got, listed) {
				t.Errorf("not filtered any more: %q, want %q", got, listed)
			}
			sorted := slices.Clone(listed)
			slices.Sort(sorted)
			run(b, chromedp.Focus("[data-sort=name]"))
			b.press(kb.Enter)
			b.await("document.querySelector('[data-sort=name]').closest('th').getAttribute('aria-sort') === 'ascending'")
			if got := b.texts("#rows .name"); !slices.Equal(got, sorted) {
				t.Errorf("sorted: %q, want %q", got, sorted)
			}
			b.press(kb.Enter)
			slices.Reverse(sorted)
			if got := b.texts("#rows .name"); !slices.Equal(got, sorted) {
				t.Errorf("sorted the other way: %q, want %q", got, sorted)
			}
			b.press(kb.Enter)
			if got := b.texts("#rows .name"); !slices.Equal(got, listed) {
				t.Errorf("in the list's order: %q, want %q", got, listed)
			}
		})
		eval[chromedp.Void](b, "document.activeElement.blur()")
		// Pictures for people go to the folder $MCAST_SCREENSHOTS; their plots are
		// full after five minutes, MCAST_SCREENSHOTS_AFTER=5m.
		pictures := os.Getenv("MCAST_SCREENSHOTS")
		if after, err := time.ParseDuration(os.Getenv("MCAST_SCREENSHOTS_AFTER")); err == nil {
			time.Sleep(after)
		}
		for _, v := range []struct {
			name, scheme  string
			width, height int64
			phone         bool
		}{{"page", "light", 1280, 680, false}, {"dark", "dark", 1280, 680, false}, {"tablet", "light", 768, 1024, false}, {"phone", "light", 390, 844, true}, {"phone-dark", "dark", 390, 844, true}, {"small", "light", 320, 640, true}} {
			l.Run(v.name, func(t *testing.T) {
				b.t = t
				size := []chromedp.EmulateViewportOption{chromedp.EmulateScale(2)}
				if v.phone {
					size = append(size, chromedp.EmulateMobile, chromedp.EmulateTouch, chromedp.EmulatePortrait)
				}
				run(b, chromedp.EmulateViewport(v.width, v.height, size...))
				call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: v.scheme}}})
				b.await(fmt.Sprintf("innerWidth === %d && matchMedia('(prefers-color-scheme: %s)').matches", v.width, v.scheme))
				if wide := eval[float64](b, "document.documentElement.scrollWidth - innerWidth"); wide > 0 {
					t.Errorf("the page is %v pixels too wide", wide)
				}
				if faint := eval[[]string](b, contrast); len(faint) > 0 {
					t.Errorf("hard to read: %q", faint)
				}
				image := run(b, chromedp.FullScreenshot(100))
				if len(image) < 10<<10 {
					t.Errorf("a picture of %d bytes", len(image))
				}
				if pictures != "" {
					if err := os.WriteFile(filepath.Join(pictures, v.name+".png"), image, 0o644); err != nil {
						t.Error(err)
					}
				}
			})
		}
		run(b, chromedp.EmulateViewport(1280, 800))
		l.Run("interface", func(t *testing.T) {
			b.t = t
			s.me.Delete("eth0")
			b.awaitCell("Harbour One", "word", "pending")
			b.awaitCell("Harbour One", "why", "there is no usable interface eth0")
			b.await("document.querySelector('#summary').textContent.includes('channels have a problem')")
			b.await("document.querySelector('#news').textContent.includes('there is no usable interface eth0')")
			s.me.Recreate("eth0", false)
			b.awaitCell("Harbour One", "word", "live")
			b.awaitCell("City News", "word", "live")
		})
		l.Run("offline", func(t *testing.T) {
			b.t = t
			b.expectFailures()
			s.stop(t)
			b.await("document.querySelector('#offline').checkVisibility()")
			s.start(t)
			b.await("!document.querySelector('#offline').checkVisibility()")
			b.awaitCell("Harbour One", "word", "idle") // its viewers are gone
			b.awaitCell("Harbour One", "heard", "never")
			if n := len(b.texts("#rows .name")); n != len(channels) {
				t.Errorf("%d rows of %d channels", n, len(channels))
			}
		})
		b.check(t)
	})
}

// contrast finds texts whose contrast to what is behind them is less than what
// WCAG 2.2 asks for (1.4.3).
const contrast = `(() => {
	const parse = c => c.match(/[\d.]+/g).map(Number);
	const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
		.reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
	const behind = e => {
		for (; e; e = e.parentElement) {
			const c = parse(getComputedStyle(e).backgroundColor);
			if (c.length < 4 || c[3] > 0) return c;
		}
		return [255, 255, 255];
	};
	const faint = new Set();
	for (const e of document.querySelectorAll('body *')) {
		if (!e.checkVisibility({opacityProperty: true}) || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
		const a = light(parse(getComputedStyle(e).color)), b = light(behind(e));
		const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
		if (ratio < 4.5) faint.add(e.className + ' ' + e.textContent.trim() + ': ' + ratio.toFixed(2));
	}
	return [...faint];
})()`
