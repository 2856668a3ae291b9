// The canvas: rows in sight, steps in sight.  All of it is drawn anew for each frame in which something has changed.
const boxLanes = document.getElementById("lanes"), space = document.getElementById("space");
const canvas = document.getElementById("paint"), overview = document.getElementById("overview");
const MONO = "ui-monospace, 'SF Mono', 'Cascadia Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace";
const SANS = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', Arial, sans-serif";
let ink = {}, wide = 6.6, pending = false;

function readColours() {
  const probe = document.createElement("span");
  document.body.append(probe);
  for (const name of ["paper", "panel", "ink", "quiet", "rule", "faint", "stripe", "red", "red-tint", "amber", "amber-tint", "blue", "blue-tint", "teal", "violet", "green", "green-tint"]) {
    probe.style.color = `var(--${name})`;
    ink[name] = getComputedStyle(probe).color;
  }
  probe.remove();
}

function sized(element, w, h) {
  const ratio = window.devicePixelRatio || 1;
  if (element.width !== Math.round(w * ratio) || element.height !== Math.round(h * ratio)) {
    element.width = Math.round(w * ratio); element.height = Math.round(h * ratio);
    if (element !== overview && element !== strip.drawn) { element.style.width = `${w}px`; element.style.height = `${h}px`; }
  }
  const g = element.getContext("2d");
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  return g;
}

function redraw() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => { pending = false; paint(); paintOverview(); });
}

// The drawing has as much room as its box; the rest is scrolled to.
function resize() {
  boxLanes.style.height = `${Math.max(200, Math.min(640, view.height + 18))}px`;
  view.width = boxLanes.clientWidth;
  view.tall = boxLanes.clientHeight;
  space.style.width = `${gutter() + view.run.n * view.px + 100}px`;
  space.style.height = `${Math.max(view.height, view.tall)}px`;
}

const X = (i) => gutter() + (i + 0.5) * view.px - boxLanes.scrollLeft;

function paint() {
  const run = view.run, W = view.width, H = view.tall, gut = gutter(), px = view.px;
  const g = sized(canvas, W, H);
  g.clearRect(0, 0, W, H);
  g.font = `11px ${MONO}`;
  wide = g.measureText("0").width;
  const top = boxLanes.scrollTop;
  const i0 = Math.max(0, Math.floor((boxLanes.scrollLeft - 20) / px)), i1 = Math.min(run.n - 1, Math.ceil((boxLanes.scrollLeft + W - gut) / px) + 1);
  const rows = view.rows.filter((r) => r.y + r.h > top + RULER && r.y < top + H);
  const frame = { g, run, W, H, gut, px, top, i0, i1, rows };
  if (view.showOrder && (!view.order || view.order.of !== view.at || view.order.run !== run)) view.order = { of: view.at, run, marks: ordering(run, view.at) };
  g.save();
  g.beginPath(); g.rect(gut, RULER, W - gut, H - RULER); g.clip();
  stripes(frame); columns(frame);
  for (const row of rows) {
    if (row.lane !== undefined) lane(frame, row);
    else if (row.group !== undefined) group(frame, row);
    else if (row.cell !== undefined) cellRow(frame, row);
    else g.fillStyle = ink.rule, g.fillRect(gut, row.y - top + row.h - 1, W, 1);
  }
  arrows(frame);
  g.restore();
  names(frame); ruler(frame);
}

function stripes({ g, W, gut, top, rows }) {
  rows.forEach((row) => {
    if (row.lane !== undefined && row.odd) { g.fillStyle = ink.stripe; g.fillRect(gut, row.y - top, W, row.h); }
    if (row.group !== undefined) { g.fillStyle = ink.faint; g.fillRect(gut, row.y - top, W, row.h); }
  });
}

// Tall bands for what is marked, found and chosen.
function columns({ g, run, H, px, i0, i1 }) {
  const w = Math.max(px, 2);
  const band = (i, colour, alpha) => { if (i >= i0 - 1 && i <= i1 + 1) { g.globalAlpha = alpha; g.fillStyle = colour; g.fillRect(X(i) - w / 2, RULER, w, H); g.globalAlpha = 1; } };
  const many = run.fatal.length > 40 && px < 6;
  for (const i of run.fatal) band(i, ink["red-tint"], many ? 0.4 : 0.8);
  for (const i of run.pair) band(i, ink["amber-tint"], 0.95);
  if (view.matched && px >= 4) for (const i of view.matches) if (i >= i0 && i <= i1) { g.fillStyle = ink.violet; g.fillRect(X(i) - 1, RULER, 2, 5); }
  band(view.at, ink["blue-tint"], 0.95);
}

function clipped(text, room) {
  const most = Math.floor(room / wide);
  if (text.length <= most) return text;
  return most < 4 ? "" : `${text.slice(0, most - 1)}…`;
}

function colourOf(run, i) {
  if (run.isPair.has(i)) return ink.amber;
  if (run.isFatal.has(i)) return ink.red;
  const s = run.shape[i];
  return s === "I" || s === "T" ? ink.violet : s === "A" || s === "F" ? ink.quiet : run.writes[i] === "1" || s === "P" ? ink.ink : ink.quiet;
}

function faded(i) {
  if (view.showOrder && view.order && view.order.marks[i] === 0) return 0.22;
  if (view.matched && !view.matched[i]) return 0.35;
  return 1;
}

function lane(frame, row) {
  const { g, run, W, px, top, i0, i1 } = frame, y = row.y - top, l = row.lane, mid = y + (view.thin ? row.h / 2 : 24);
  const steps = run.ofLane[l];
  g.strokeStyle = ink.rule; g.lineWidth = 1;
  if (steps.length) { g.beginPath(); g.moveTo(Math.max(X(steps[0]), -5), mid); g.lineTo(Math.min(X(steps[steps.length - 1]), W + 5), mid); g.stroke(); }
  for (const w of run.waitsOf[l]) {
    const told = w[2] < 0 && w[1] >= 0 && !view.thin && px >= 2.2 ? 9 + Math.min(460, run.word(w[1]).length * wide) : 0;
    const a = (w[1] < 0 ? X(-0.5) : X(w[1])) + told, b = w[2] < 0 ? Math.max(X(run.n - 0.5), X(w[1]) + told) + 60 : X(w[2]);
    if (b < frame.gut || a > W || b - a < 6) continue;
    g.strokeStyle = w[2] < 0 ? ink.red : ink.quiet; g.setLineDash([2, 4]); g.lineWidth = w[2] < 0 ? 2 : 1.2;
    g.beginPath(); g.moveTo(Math.max(a, frame.gut - 8) + 6, mid); g.lineTo(Math.min(b, W + 8) - 6, mid); g.stroke(); g.setLineDash([]);
    if (w[2] < 0 && !view.thin) { g.fillStyle = ink.red; g.fillText(clipped(`waits: ${TEXTS[w[3]]}`, Math.max(160, W - a)), Math.max(a - told + 11, frame.gut + 6), mid + 17); }
  }
  if (!view.thin) strips(frame, row, y);
  const from = Math.max(0, before(steps, i0 - 1)), to = Math.min(steps.length - 1, before(steps, i1) + 1);
  const small = view.thin || px < 7;
  if (px < 2.2) {
    for (let k = from; k <= to; k++) { const i = steps[k]; g.globalAlpha = faded(i) * 0.75; g.fillStyle = colourOf(run, i); g.fillRect(X(i) - 0.6, mid - 5, Math.max(1.2, px * 0.7), 10); }
    g.globalAlpha = 1;
    return;
  }
  for (let k = from; k <= to; k++) {
    const i = steps[k];
    g.globalAlpha = faded(i);
    shape(g, run.shape[i], X(i), mid, small ? 3 : 5, colourOf(run, i), run.writes[i] === "1");
    if (i === view.at) { g.strokeStyle = ink.blue; g.lineWidth = 2; g.beginPath(); g.arc(X(i), mid, small ? 6 : 9, 0, 7); g.stroke(); }
  }
  if (!view.thin && px >= 2.2) {
    for (let k = from; k <= to; k++) {
      const i = steps[k], next = k + 1 < steps.length ? X(steps[k + 1]) - 10 : W + 400, room = next - X(i) - 11;
      if (room < 44) continue;
      const text = clipped(run.word(i), Math.min(room, 460));
      if (!text) continue;
      g.globalAlpha = faded(i);
      const marked = run.isFatal.has(i) || run.isPair.has(i);
      g.fillStyle = marked ? colourOf(run, i) : ink.ink;
      g.font = `${marked ? "600 " : ""}11px ${MONO}`;
      const colour = g.fillStyle, alpha = g.globalAlpha;
      g.globalAlpha = 0.8; g.fillStyle = row.odd ? ink.stripe : ink.panel;
      g.fillRect(X(i) + 10, mid - 6, text.length * wide + 4, 13);
      g.globalAlpha = alpha; g.fillStyle = colour;
      g.fillText(text, X(i) + 11, mid + 4);
    }
    g.font = `11px ${MONO}`;
  }
  g.globalAlpha = 1;
}

// Is the text of step k drawn where step i is?
view.labelled = (k, i) => !view.thin && i > k && (i - k) * view.px < 14 + Math.min(460, view.run.word(k).length * wide);

function shape(g, kind, x, y, r, colour, writes) {
  g.fillStyle = colour; g.strokeStyle = colour; g.lineWidth = 1.4;
  g.beginPath();
  if (kind === "M") { g.moveTo(x, y - r - 0.5); g.lineTo(x + r + 0.5, y); g.lineTo(x, y + r + 0.5); g.lineTo(x - r - 0.5, y); g.closePath(); if (writes) g.fill(); else { g.fillStyle = ink.panel; g.fill(); g.stroke(); } }
  else if (kind === "F") { g.moveTo(x, y - r - 2); g.lineTo(x, y + r + 2); g.stroke(); }
  else if (kind === "A") { g.rect(x - r + 1, y - r + 1, 2 * r - 2, 2 * r - 2); if (writes) g.fill(); else { g.fillStyle = ink.panel; g.fill(); g.stroke(); } }
  else if (kind === "I") { g.moveTo(x - r, y - r); g.lineTo(x + r, y); g.lineTo(x - r, y + r); g.closePath(); g.fill(); }
  else if (kind === "T") { g.moveTo(x - r, y - r + 1); g.lineTo(x + r, y - r + 1); g.lineTo(x, y + r); g.closePath(); g.fill(); }
  else if (kind === "P") { g.arc(x, y, r - 0.5, 0, 7); g.fillStyle = ink.panel; g.fill(); g.stroke(); g.beginPath(); g.arc(x, y, r - 0.5, Math.PI / 2, 1.5 * Math.PI); g.fillStyle = colour; g.fill(); }
  else if (kind === "C") { g.rect(x - r, y - 2, 2 * r, 4); g.fill(); }
  else { g.arc(x, y, r - 0.5, 0, 7); if (kind === "L") { g.fillStyle = ink.panel; g.fill(); g.stroke(); } else g.fill(); }
}

// Kernel functions above the line; posted stores and locks below it.
function strips({ g, run, W, gut, px, i0, i1 }, row, y) {
  const l = row.lane;
  const bar = (a, b, at, h, colour, text, tint) => {
    const left = Math.max(X(a) - px / 2 + 1, gut - 2), right = Math.min(X(b) + px / 2 - 1, W + 2);
    if (right - left < 1) return;
    g.globalAlpha = tint; g.fillStyle = colour; g.fillRect(left, at, right - left, h); g.globalAlpha = 1;
    const shown = h > 6 ? clipped(text, right - left - 6) : "";
    if (shown) { g.fillStyle = colour; g.fillText(shown, left + 3, at + h - 2.5); }
  };
  g.font = `9.5px ${MONO}`;
  const kept = wide; wide = g.measureText("0").width;
  const all = run.spansOf[l];
  for (const [a, b, f] of all) if (b >= i0 && a <= i1) bar(a, b, y + 3, 12, ink.teal, DATA.functions[f][0], 0.13);
  for (const [a, b] of run.postsOf[l]) { const end = b < 0 ? run.n - 1 : b; if (end >= i0 && a <= i1) bar(a, end, y + 34, 4, ink.amber, "", 0.75); }
  const held = run.heldOf[l];
  held.forEach((h, k) => {
    const end = h[3] < 0 ? run.n - 1 : h[3];
    if (end >= i0 && h[2] <= i1 && k < 400) bar(h[2], end, y + 40, 10, ink.violet, `holds ${run.label(h[0])}`, 0.14);
  });
  wide = kept;
  g.font = `11px ${MONO}`;
}

// Hundreds of lanes as one row: how much they do, and where.
function group({ g, run, px, top, i0, i1 }, row) {
  if (!row.lanes.length) return;
  const y = row.y - top, h = row.h - 8;
  if (!row.index) row.index = new Map(row.lanes.map((l, k) => [l, k]));
  for (let i = i0; i <= i1; i++) {
    const k = row.index.get(run.lane[i]);
    if (k === undefined) continue;
    g.globalAlpha = 0.85 * faded(i);
    g.fillStyle = colourOf(run, i);
    g.fillRect(X(i) - Math.min(px, 5) / 2, y + 4 + (h - 3) * (k / row.lanes.length), Math.max(1, Math.min(px * 0.8, 5)), 2.5);
  }
  g.globalAlpha = 1;
}

function cellRow({ g, run, W, gut, px, top, i0, i1 }, row) {
  const y = row.y - top + 2, h = row.h - 4, c = row.cell, writes = run.writesOf[c];
  for (let k = Math.max(-1, before(writes, i0) - 1); k < writes.length; k++) {
    const a = k < 0 ? -0.5 : writes[k], b = k + 1 < writes.length ? writes[k + 1] : run.n - 0.5 + 110 / px;
    if (a > i1 + 1) break;
    const left = Math.max(X(a), gut - 4), right = Math.min(X(b), W + 4);
    if (right < left) continue;
    const by = k < 0 ? -1 : writes[k];
    const mark = by >= 0 && (run.isPair.has(by) || run.isFatal.has(by)) ? (run.isPair.has(by) ? "amber" : "red") : "";
    g.fillStyle = mark ? ink[`${mark}-tint`] : k % 2 ? ink.faint : ink.stripe;
    g.fillRect(left, y, right - left, h);
    if (k >= 0 && X(a) >= gut - 2) { g.fillStyle = mark ? ink[mark] : ink.quiet; g.fillRect(X(a) - 0.75, y, 1.5, h); }
    const text = clipped(TEXTS[by < 0 ? run.cells[c][2] : run.after[by]], right - left - 8);
    if (text) { g.fillStyle = mark ? ink[mark] : ink.ink; g.fillText(text, left + 5, y + h - 6); }
  }
  if (px >= 4 && view.at >= 0 && run.cell[view.at] === c) { g.strokeStyle = ink.blue; g.lineWidth = 1.5; g.strokeRect(X(view.at) - 4, y - 1, 8, h + 2); }
}

function laneY(run, i, top) {
  const row = view.rowOfLane[run.lane[i]];
  if (!row) return null;
  return row.y - top + (row.lane === undefined || view.thin ? row.h / 2 : 24);
}

function arrow(frame, a, b, colour, lineWidth, dash, bend) {
  const { g, run, W, gut, top } = frame;
  const y1 = laneY(run, a, top), y2 = laneY(run, b, top);
  if (y1 === null || y2 === null) return;
  const x1 = X(a), x2 = X(b);
  if ((x1 < gut && x2 < gut) || (x1 > W && x2 > W)) return;
  if (Math.abs(y1 - y2) < 1 && Math.abs(x1 - x2) < 3) return;
  g.strokeStyle = colour; g.fillStyle = colour; g.lineWidth = lineWidth; g.setLineDash(dash);
  const flat = Math.abs(y1 - y2) < 1, lift = flat ? 13 : 0, cx = (x1 + x2) / 2;
  g.beginPath(); g.moveTo(x1, y1 + (flat ? -6 : Math.sign(y2 - y1) * 6));
  const ye = y2 + (flat ? -6 : Math.sign(y1 - y2) * 7);
  const c = flat ? [cx, y1 - lift - 4, cx, y1 - lift - 4] : bend ? [x1 + 26, (y1 + y2) / 2, x2 - 26, (y1 + y2) / 2] : [x1, (y1 + y2) / 2, x2, (y1 + y2) / 2];
  g.bezierCurveTo(c[0], c[1], c[2], c[3], x2, ye);
  g.stroke(); g.setLineDash([]);
  const way = flat ? 1 : Math.sign(y2 - y1);
  g.beginPath(); g.moveTo(x2, ye + way * 2); g.lineTo(x2 - 3.5, ye - way * 5); g.lineTo(x2 + 3.5, ye - way * 5); g.closePath(); g.fill();
}

function arrows(frame) {
  const { g, run, px, i0, i1 } = frame;
  if (px >= 2.2 || run.arrows.length < 400) {
    for (const [kind, a, b] of run.crossing) {
      if (b < i0 || a > i1) continue;
      g.globalAlpha = 0.7 * Math.min(faded(a), faded(b));
      arrow(frame, a, b, kind === 0 ? ink.violet : ink.green, 1.2, kind === 0 ? [] : [4, 3], false);
    }
    g.globalAlpha = 1;
  }
  if (run.pair.length === 2) {
    const [a, b] = run.pair;
    arrow(frame, Math.min(a, b), Math.max(a, b), ink.amber, 2.2, [], true);
  }
  const at = view.at;
  if (at < 0) return;
  for (const k of directBefore(run, at)) if (run.lane[k] !== run.lane[at]) arrow(frame, k, at, ink.blue, 1.5, [], false);
  for (const k of directAfter(run, at)) if (run.lane[k] !== run.lane[at]) arrow(frame, at, k, ink.blue, 1.5, [1, 3], false);
}

function names({ g, run, H, gut, top, rows }) {
  g.fillStyle = ink.panel; g.fillRect(0, 0, gut, H);
  g.fillStyle = ink.rule; g.fillRect(gut - 1, 0, 1, H);
  g.save();
  g.beginPath(); g.rect(0, RULER, gut - 1, H - RULER); g.clip();
  for (const row of rows) {
    const y = row.y - top;
    if (row.lane !== undefined) {
      const now = view.at >= 0 && run.lane[view.at] === row.lane;
      g.fillStyle = now ? ink.blue : ink.ink;
      g.font = `${now ? "600 " : ""}${view.thin ? 11 : 12.5}px ${SANS}`;
      g.fillText(run.laneName(row.lane), 12, y + (view.thin ? 13 : 28), gut - 18);
    } else if (row.group !== undefined) {
      const open = view.open.has(row.group), more = row.lanes.length;
      g.fillStyle = ink.blue; g.font = `12px ${SANS}`;
      g.fillText(open ? `▾ fold ${row.group}s` : `▸ ${more.toLocaleString("en")} more ${row.group}`, 10, y + 19, gut - 16);
    } else if (row.cell !== undefined) {
      g.fillStyle = ink.quiet; g.font = `11px ${MONO}`;
      g.fillText(run.label(row.cell), 12, y + 16, gut - 18);
    } else { g.fillStyle = ink.quiet; g.font = `600 11px ${SANS}`; g.fillText(row.head, 12, y + 18, gut - 16); }
  }
  g.restore();
}

function ruler({ g, run, W, gut, px, i0, i1 }) {
  g.fillStyle = ink.panel; g.fillRect(0, 0, W, RULER);
  g.fillStyle = ink.rule; g.fillRect(0, RULER - 1, W, 1);
  g.font = `11px ${SANS}`; g.fillStyle = ink.quiet; g.fillText("step", 12, 16);
  let every = 1;
  for (const e of [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000]) { every = e; if (e * px >= 52) break; }
  g.save(); g.beginPath(); g.rect(gut, 0, W - gut, RULER); g.clip();
  g.textAlign = "center";
  for (let i = Math.ceil(i0 / every) * every; i <= i1; i += every) { g.fillStyle = ink.quiet; g.fillText(i.toLocaleString("en"), X(i), 16); g.fillRect(X(i) - 0.5, RULER - 4, 1, 3); }
  const taken = [];
  const flag = (i, colour) => {
    g.font = `600 11px ${SANS}`;
    const text = i.toLocaleString("en"), w = g.measureText(text).width + 8;
    if (i < i0 || i > i1 || taken.some(([x, other]) => Math.abs(x - X(i)) < (w + other) / 2)) return;
    taken.push([X(i), w]);
    g.fillStyle = ink[colour]; g.fillRect(X(i) - w / 2, 3, w, 17); g.fillStyle = ink.panel; g.fillText(text, X(i), 16);
  };
  if (view.at >= 0) flag(view.at, "blue");
  for (const i of run.pair) flag(i, "amber");
  for (const i of run.fatal) flag(i, "red");
  g.restore(); g.textAlign = "left";
}

// The whole run in one strip: where something happens, what is marked, what is in sight.  All but the last is drawn once.
const strip = { drawn: document.createElement("canvas"), of: "" };

function paintOverview() {
  const run = view.run, W = overview.parentElement.clientWidth - 2, H = 34, gut = gutter(), room = W - gut - 8;
  const g = sized(overview, W, H), at = (i) => gut + (room * (i + 0.5)) / run.n;
  g.clearRect(0, 0, W, H);
  if (!run.n) return;
  const of = [run.key, W, window.devicePixelRatio, ink.ink, view.matches.length, view.matches[0]].join();
  if (strip.of !== of) { strip.of = of; paintStrip(sized(strip.drawn, W, H), run, W, H, gut, at, room); }
  g.drawImage(strip.drawn, 0, 0, W, H);
  const a = at(boxLanes.scrollLeft / view.px - 0.5), b = at((boxLanes.scrollLeft + view.width - gut) / view.px - 0.5);
  g.strokeStyle = ink.blue; g.lineWidth = 1.5; g.strokeRect(a, 1.5, Math.max(3, Math.min(b, W - 4) - a), H - 3);
  if (view.at >= 0) { g.fillStyle = ink.blue; g.fillRect(at(view.at) - 1, 0, 2, H); }
}

function paintStrip(g, run, W, H, gut, at, room) {
  const lanes = run.lanes.length;
  g.clearRect(0, 0, W, H);
  g.fillStyle = ink.quiet; g.font = `11px ${SANS}`; g.fillText(`${run.n.toLocaleString("en")} steps`, 12, 21, gut - 16);
  g.globalAlpha = Math.min(0.8, Math.max(0.25, 1500 / run.n));
  const dot = Math.max(1, Math.min(3, room / run.n)), tall = Math.max(1, Math.min(5, 26 / lanes));
  for (let i = 0; i < run.n; i++) g.fillRect(at(i) - dot / 2, 4 + (26 * run.lane[i]) / lanes, dot, tall);
  g.globalAlpha = 1;
  if (view.matched) { g.fillStyle = ink.violet; for (const i of view.matches) g.fillRect(at(i) - 0.5, H - 6, 1.5, 6); }
  for (const i of run.fatal) { g.fillStyle = ink.red; g.fillRect(at(i) - 0.75, 2, 1.5, H - 4); }
  for (const i of run.pair) { g.fillStyle = ink.amber; g.fillRect(at(i) - 1, 2, 2, H - 4); }
}
