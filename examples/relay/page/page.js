// The page of a relay: what it is told by server-sent events, as a table.
const $ = id => document.getElementById(id);
const span = 300; // seconds that a plot shows
const rows = new Map(); // by number: what the relay says, the plot's samples, the elements
let order = [];
let sorted = { by: "", down: false };
let now = 0;

const states = { live: 0, silent: 1, pending: 2, down: 3, failed: 4, idle: 5 };
const broken = state => state === "pending" || state === "down" || state === "failed";

// set changes a text only where it is another one: selections and readers stay.
function set(e, text) {
  if (e.textContent !== text) e.textContent = text;
}

function add(id) {
  const tr = $("row").content.firstElementChild.cloneNode(true);
  const row = { id, tr, history: [], of: name => tr.querySelector("." + name) };
  row.of("copy").addEventListener("click", () => copy(row));
  const svg = tr.querySelector("svg");
  svg.addEventListener("pointermove", e => point(row, svg, e));
  svg.addEventListener("pointerleave", () => { row.at = undefined; draw(row); });
  rows.set(id, row);
  return row;
}

async function copy(row) {
  const button = row.of("copy"), address = new URL(row.path, location).href;
  let done = true;
  try {
    await navigator.clipboard.writeText(address);
  } catch { // browsers give the clipboard to secure pages only
    const area = document.createElement("textarea");
    area.value = address;
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = done ? "Copied" : address;
  button.classList.add("done");
  setTimeout(() => { button.textContent = "Copy"; button.classList.remove("done"); }, 2000);
}

const digits = new Intl.NumberFormat("en", { maximumFractionDigits: 2, minimumFractionDigits: 2 });
const whole = new Intl.NumberFormat("en");
const rate = n => n === null || n === undefined ? "–" : digits.format(n);

function ago(t) {
  if (!t) return "never";
  const s = Math.max(0, now - t);
  if (s < 2) return "now";
  if (s < 120) return s + " s ago";
  if (s < 7200) return Math.floor(s / 60) + " min ago";
  return new Date(t * 1000).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
}

function show(row) {
  const { of, tr } = row;
  set(of("name"), row.name);
  of("name").href = row.path;
  of("copy").setAttribute("aria-label", "Copy address of " + row.name);
  const source = row.source || (row.from ? "any source, now " + row.from : "any source");
  set(of("where"), [row.group, source, row.interface].filter(Boolean).join(" · "));
  tr.dataset.state = row.state;
  set(of("word"), row.state);
  set(of("why"), row.why);
  set(of("viewers"), whole.format(row.viewers));
  set(of("mbits"), rate(row.mbits));
  set(of("datagrams"), row.datagrams === null ? "–" : whole.format(row.datagrams));
  const lost = of("lost");
  set(lost, row.lost === null ? "–" : whole.format(row.lost));
  lost.title = row.lost === null ? "Neither RTP nor a transport stream: what is missing cannot be counted"
    : row.unit + (row.dropped ? "; dropped by the kernel for want of buffer: " + row.dropped : "");
  lost.classList.toggle("some", row.lost > 0);
}

// draw draws the plot: the rate over time, with gaps where nothing was joined.
function draw(row) {
  const svg = row.tr.querySelector("svg");
  const seen = row.history.filter(([t]) => t > now - span);
  const top = Math.max(1e-3, ...seen.map(([, v]) => v)) * 1.1;
  const x = t => (t - now + span).toFixed(1), y = v => (40 - 38 * v / top).toFixed(1);
  let line = "", area = "", start = null, last = null;
  const end = () => { if (start !== null) area += `L${x(last)} 40L${x(start)} 40Z`; };
  for (const [t, v] of seen) {
    if (last === null || t - last > 3) {
      end();
      start = t;
      line += `M${x(t)} ${y(v)}`;
      area += `M${x(t)} ${y(v)}`;
    } else {
      line += `L${x(t)} ${y(v)}`;
      area += `L${x(t)} ${y(v)}`;
    }
    last = t;
  }
  end();
  svg.querySelector(".line").setAttribute("d", line);
  svg.querySelector(".area").setAttribute("d", area);
  const peak = Math.max(0, ...seen.map(([, v]) => v));
  set(row.of("peak"), peak > 0 ? "max " + digits.format(peak) : "");
  svg.setAttribute("aria-label", seen.length
    ? `${row.name}, last 5 minutes: now ${rate(row.mbits)} Mbit/s, highest ${digits.format(peak)}` : `${row.name}: nothing in the last 5 minutes`);
  const tip = row.of("tip"), cross = svg.querySelector(".cross");
  const near = row.at === undefined ? undefined
    : seen.reduce((best, s) => !best || Math.abs(s[0] - row.at) < Math.abs(best[0] - row.at) ? s : best, undefined);
  tip.hidden = !near;
  cross.setAttribute("d", near ? `M${x(near[0])} 0V40` : "");
  if (near) {
    set(tip, `${new Date(near[0] * 1000).toLocaleTimeString()}  ${digits.format(near[1])} Mbit/s`);
    tip.style.left = svg.getBoundingClientRect().left - svg.parentElement.getBoundingClientRect().left + x(near[0]) / span * svg.clientWidth + "px";
  }
}

function point(row, svg, e) {
  const box = svg.getBoundingClientRect();
  row.at = now - span + (e.clientX - box.left) / box.width * span;
  draw(row);
}

// arrange puts the rows in order and hides those that the filter leaves out.
function arrange() {
  let list = order.map(id => rows.get(id)).filter(Boolean);
  if (sorted.by) {
    const key = r => sorted.by === "state" ? states[r.state] : sorted.by === "name" ? r.name.toLowerCase() : r[sorted.by] ?? -1;
    list.sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (sorted.down ? -1 : 1));
  }
  const body = $("rows"), focus = document.activeElement;
  list.forEach((row, i) => {
    if (body.children[i] !== row.tr) body.insertBefore(row.tr, body.children[i] ?? null);
  });
  if (focus && focus !== document.activeElement && body.contains(focus)) focus.focus({ preventScroll: true });
  const wanted = $("filter").value.trim().toLowerCase();
  let visible = 0;
  for (const row of list) {
    const text = [row.name, row.group, row.source, row.interface, row.state].join(" ").toLowerCase();
    row.tr.hidden = !text.includes(wanted);
    if (!row.tr.hidden) visible++;
  }
  $("empty").hidden = visible > 0;
  set($("empty"), list.length ? "No channel is like that." : "No channel is listed, and nobody watches one.");
}

function summarize(u) {
  let live = 0;
  const bad = [];
  for (const row of rows.values()) {
    if (row.state === "live") live++;
    if (broken(row.state)) bad.push(row);
  }
  const p = $("summary");
  const text = `${rows.size} channels, ${live} live, ${u.viewers} of at most ${u.limit} viewers`;
  const problem = bad.length === 1 ? "1 channel has a problem" : bad.length ? `${bad.length} channels have a problem` : "";
  if (p.dataset.text !== text + problem) {
    p.dataset.text = text + problem;
    p.textContent = text;
    if (problem) {
      const b = document.createElement("b");
      b.textContent = problem;
      p.append(", ", b);
    }
  }
  document.title = (bad.length ? `▲ ${bad.length} · ` : "") + "Relay";
}

function update(u, first) {
  now = u.now;
  if (u.order) order = u.order;
  const news = [];
  for (const r of u.rows) {
    const row = rows.get(r.id) ?? add(r.id);
    const { history, ...rest } = r;
    if (!first && row.state !== undefined && row.state !== r.state && (broken(r.state) || broken(row.state))) {
      news.push(`${r.name}: ${r.state}${r.why ? ", " + r.why : ""}`);
    }
    Object.assign(row, rest);
    if (first) row.history = [];
    const last = row.history.at(-1)?.[0] ?? 0;
    row.history.push(...(history ?? []).filter(([t]) => t > last));
    while (row.history.length && row.history[0][0] < now - span) row.history.shift();
    show(row);
  }
  for (const [id, row] of rows) {
    if (!order.includes(id)) {
      row.tr.remove();
      rows.delete(id);
      continue;
    }
    set(row.of("heard"), ago(row.heard));
    draw(row);
  }
  arrange();
  summarize(u);
  if (news.length) set($("news"), news.join(". "));
}

function connect() {
  const events = new EventSource("events");
  let first = true;
  events.onopen = () => { first = true; };
  events.onmessage = e => {
    $("offline").hidden = true;
    update(JSON.parse(e.data), first);
    first = false;
  };
  events.onerror = () => {
    $("offline").hidden = false;
    if (events.readyState === EventSource.CLOSED) setTimeout(connect, 3000);
  };
}

for (const button of document.querySelectorAll("[data-sort]")) {
  button.addEventListener("click", () => {
    const by = button.dataset.sort, text = by === "name" || by === "state";
    if (sorted.by !== by) sorted = { by, down: !text };
    else if (sorted.down !== text) sorted.down = !sorted.down;
    else sorted = { by: "", down: false };
    for (const b of document.querySelectorAll("[data-sort]")) {
      b.closest("th").setAttribute("aria-sort", b.dataset.sort !== sorted.by ? "none" : sorted.down ? "descending" : "ascending");
    }
    arrange();
  });
}
$("filter").addEventListener("input", arrange);
document.addEventListener("keydown", e => {
  const filter = $("filter");
  if (e.key === "/" && document.activeElement !== filter) {
    e.preventDefault();
    filter.focus();
  } else if (e.key === "Escape" && document.activeElement === filter) {
    filter.value = "";
    arrange();
    filter.blur();
  } else if ((e.key === "ArrowDown" || e.key === "ArrowUp") && !e.altKey && !e.ctrlKey && !e.metaKey) {
    const names = [...document.querySelectorAll("#rows tr:not([hidden]) .name")];
    const at = names.findIndex(n => n.closest("tr").contains(document.activeElement));
    if (at < 0 && document.activeElement !== filter && document.activeElement !== document.body) return;
    const to = names[at < 0 ? 0 : at + (e.key === "ArrowDown" ? 1 : -1)];
    if (to) {
      e.preventDefault();
      to.focus();
    }
  }
});
connect();
