//go:build linux && cgo

package main

import (
	"fmt"
	"html"
	"math"
	"os"
	"slices"
	"strings"
)

// A series is how long each datagram of a receiver was under way, in ns.
type series struct {
	name   string
	delays []int64
}

// A curve is what a rate's datagrams cost at each Config.Coalesce.
type curve struct {
	name  string
	at    []float64 // µs waited
	value []float64 // CPU time, of that without
}

// writePlot draws the latencies, and the curve of Config.Coalesce, as far as
// they were measured.
func writePlot(file string, latencies []series, curves []curve) error {
	var panels []string
	height := 0
	for _, p := range []panel{latencyPanel(latencies), coalescePanel(curves)} {
		if len(p.lines) > 0 {
			panels = append(panels, p.draw(height))
			height += panelHeight
		}
	}
	if len(panels) == 0 {
		return fmt.Errorf("nothing to plot was measured: latency or coalesce")
	}
	// Everything is drawn in colours that are told apart on white and on black;
	// what is only text or axis follows the reader's colour scheme.
	svg := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="13">
<style>
.page { fill: #ffffff } .text { fill: #24292f } .grid { stroke: #d8dee4 }
@media (prefers-color-scheme: dark) { .page { fill: #0d1117 } .text { fill: #c9d1d9 } .grid { stroke: #30363d } }
</style>
<rect class="page" fill="#ffffff" width="100%%" height="100%%"/>
%s</svg>
`, panelWidth, height, panelWidth, height, strings.Join(panels, ""))
	return os.WriteFile(file, []byte(svg), 0o666)
}

const (
	panelWidth, panelHeight      = 860, 400
	left, right, top, plotBottom = 70, 260, 50, 340 // of the panel, where the lines are; right of its end
)

var colors = []string{"#2f81f7", "#e5702a", "#2da44e", "#bf3989", "#8250df", "#9a8700", "#6e7781"}

// A panel is one plot. Both axes have a value at each tick.
type panel struct {
	title, xLabel, yLabel string
	x, y                  func(float64) float64 // to 0…1
	xTicks, yTicks        []float64
	lines                 []line
}

type line struct {
	name   string
	dashed bool
	dots   bool
	points [][2]float64
}

func (p *panel) draw(offset int) string {
	var b strings.Builder
	px := func(v float64) float64 { return left + p.x(v)*(panelWidth-left-right) }
	py := func(v float64) float64 { return plotBottom - p.y(v)*(plotBottom-top) }
	text := func(x, y float64, anchor, extra, s string) {
		fmt.Fprintf(&b, `<text class="text" fill="#24292f" x="%.1f" y="%.1f" text-anchor="%s"%s>%s</text>`+"\n", x, y, anchor, extra, html.EscapeString(s))
	}
	fmt.Fprintf(&b, `<g transform="translate(0 %d)">`+"\n", offset)
	text(left, 28, "start", ` font-size="15" font-weight="bold"`, p.title)
	for _, v := range p.xTicks {
		fmt.Fprintf(&b, `<path class="grid" stroke="#d8dee4" fill="none" d="M%.1f %d V%d"/>`+"\n", px(v), top, plotBottom)
		text(px(v), plotBottom+18, "middle", "", number(v))
	}
	for _, v := range p.yTicks {
		fmt.Fprintf(&b, `<path class="grid" stroke="#d8dee4" fill="none" d="M%d %.1f H%d"/>`+"\n", left, py(v), panelWidth-right)
		text(left-8, py(v)+4, "end", "", number(v))
	}
	text((left+panelWidth-right)/2, plotBottom+40, "middle", "", p.xLabel)
	text(0, 0, "middle", fmt.Sprintf(` transform="translate(20 %d) rotate(-90)"`, (top+plotBottom)/2), p.yLabel)
	for i, l := range p.lines {
		color, dash := colors[i%len(colors)], ""
		if l.dashed {
			dash = ` stroke-dasharray="6 4"`
		}
		var d strings.Builder
		for j, at := range l.points {
			fmt.Fprintf(&d, "%s%.1f %.1f", map[bool]string{true: "M", false: " L"}[j == 0], px(at[0]), py(at[1]))
			if l.dots {
				fmt.Fprintf(&b, `<circle fill="%s" cx="%.1f" cy="%.1f" r="3.5"/>`+"\n", color, px(at[0]), py(at[1]))
			}
		}
		fmt.Fprintf(&b, `<path stroke="%s" stroke-width="2" fill="none"%s d="%s"/>`+"\n", color, dash, d.String())
		x, y := float64(panelWidth-right+14), float64(top+10+i*24)
		fmt.Fprintf(&b, `<path stroke="%s" stroke-width="3" fill="none"%s d="M%.1f %.1f h26"/>`+"\n", color, dash, x, y-4)
		text(x+34, y, "start", "", l.name)
	}
	b.WriteString("</g>\n")
	return b.String()
}

func number(v float64) string {
	if v >= 1000 {
		return thousands(int(v))
	}
	return fmt.Sprintf("%.4g", v)
}

// latencyPanel is a histogram of delays on a logarithmic axis.
func latencyPanel(all []series) panel {
	const from, to, perDecade = 1, 1000, 20 // µs
	decades := math.Log10(to / from)
	p := panel{
		title:  fmt.Sprintf("Latency: %s datagrams of %d bytes a second, paced, on loopback", thousands(latencyRate), latencySize),
		xLabel: "from the sender's clock to the reader's, µs", yLabel: "datagrams, %",
		x:      func(v float64) float64 { return math.Log10(v/from) / decades },
		xTicks: []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000},
	}
	highest := 0.0
	for _, s := range all {
		bins := make([]float64, int(decades*perDecade)+1)
		for _, d := range s.delays {
			i := int(math.Log10(max(float64(d)/1e3, from)/from) * perDecade)
			bins[min(i, len(bins)-1)] += 100 / float64(len(s.delays))
		}
		l := line{name: shorter(s.name), dashed: strings.HasPrefix(s.name, "C")}
		for i, share := range bins {
			highest = max(highest, share)
			lower, upper := from*math.Pow(10, float64(i)/perDecade), from*math.Pow(10, float64(i+1)/perDecade)
			l.points = append(l.points, [2]float64{lower, share}, [2]float64{min(upper, to), share})
		}
		p.lines = append(p.lines, l)
	}
	p.y, p.yTicks = upTo(highest)
	return p
}

// shorter is the name of a receiver without what explains it.
func shorter(name string) string {
	name, _, _ = strings.Cut(name, " (")
	return strings.NewReplacer("recvmsg that does not sleep", "recvmsg, not sleeping", "ReadMsgUDPAddrPort", "UDPConn").Replace(name)
}

func coalescePanel(curves []curve) panel {
	p := panel{title: "Config.Coalesce: what a wait saves", xLabel: "Config.Coalesce, µs", yLabel: "CPU time of a datagram, of that without"}
	if len(curves) == 0 {
		return p
	}
	furthest, highest := 0.0, 0.0
	for _, c := range curves {
		l := line{name: c.name, dots: true}
		for i := range c.at {
			l.points = append(l.points, [2]float64{c.at[i], c.value[i]})
			furthest, highest = max(furthest, c.at[i]), max(highest, c.value[i])
		}
		p.lines = append(p.lines, l)
	}
	p.x, p.xTicks = upTo(furthest)
	p.y, p.yTicks = upTo(highest)
	return p
}

// upTo is a linear axis from 0 to a round number, with its ticks.
func upTo(highest float64) (at func(float64) float64, ticks []float64) {
	step := math.Pow(10, math.Floor(math.Log10(highest)))
	steps := []float64{step / 5, step / 2, step}
	if i := slices.IndexFunc(steps, func(s float64) bool { return highest/s <= 6 }); i >= 0 {
		step = steps[i]
	} else {
		step *= 2
	}
	end := step * math.Ceil(highest/step-1e-9)
	for v := 0.0; v <= end+step/2; v += step {
		ticks = append(ticks, v)
	}
	return func(v float64) float64 { return v / end }, ticks
}
