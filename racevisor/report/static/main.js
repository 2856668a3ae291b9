// What the reader does: choose a step, a run, a zoom; search; keys; the address.
const search = document.getElementById("search"), which = document.getElementById("which"), help = document.getElementById("help");
const byId = (id) => document.getElementById(id);

function select(i, quietly) {
  const run = view.run;
  if (!run.n) return;
  const from = view.at >= 0 && view.at < run.n ? run.lane[view.at] : -1, cell = from >= 0 ? run.cell[view.at] : -1;
  view.at = Math.max(0, Math.min(run.n - 1, i));
  if (!quietly) history.replaceState(null, "", hashOf(run, view.at));
  if (run.lane[view.at] !== from || run.cell[view.at] !== cell) { layout(); resize(); }
  reveal();
  showPanel(); showRow(); redraw();
}

// Scroll the drawing so that the chosen step is well in sight.
function reveal(middle) {
  const x = (view.at + 0.5) * view.px, room = view.width - gutter(), left = boxLanes.scrollLeft;
  if (middle || x < left + 30 || x > left + room - Math.min(220, room / 3)) boxLanes.scrollLeft = x - room * 0.45;
  const row = view.rowOfLane[view.run.lane[view.at]];
  if (row && (row.y < boxLanes.scrollTop + RULER || row.y + row.h > boxLanes.scrollTop + view.tall)) boxLanes.scrollTop = Math.max(0, row.y - RULER - (view.tall - row.h) / 2 + 40);
}

function chooseRun(k, step) {
  view.run = RUNS[k];
  view.order = null;
  const run = view.run, open = run.named.length ? run.named[0] : run.story.length ? run.story[run.story.length - 1] : Math.max(0, run.n - 1);
  view.at = run.n ? Math.max(0, Math.min(run.n - 1, step === undefined ? open : step)) : -1;
  document.querySelectorAll(".runs button").forEach((b, j) => b.setAttribute("aria-pressed", String(j === k)));
  find(search.value);
  layout();
  boxLanes.scrollTop = 0;
  resize();
  if (run.n * 18 < view.width - gutter() - 240) setZoom(Math.min(64, (view.width - gutter() - 240) / run.n)); else setZoom(18);
  reveal(true);
  listed(); showPanel(); showRow(); redraw();
}

function setZoom(px, x) {
  const at = x === undefined ? (view.at + 0.5) * view.px - boxLanes.scrollLeft : x - gutter();
  const step = (at + boxLanes.scrollLeft) / view.px;
  view.px = Math.max(Math.min(1, (view.width - gutter() - 102) / Math.max(1, view.run.n)), Math.min(240, px));
  resize();
  boxLanes.scrollLeft = step * view.px - at;
  redraw();
}

function fit() { setZoom((view.width - gutter() - 102) / Math.max(1, view.run.n)); boxLanes.scrollLeft = 0; redraw(); }

// ---- search

function find(text) {
  const run = view.run, wanted = text.trim().toLowerCase().split(/\s+/).filter(Boolean);
  view.matched = null; view.matches = [];
  if (wanted.length) {
    const has = new Map();
    const hit = (one, w) => { const key = `${w}\n${one}`; let known = has.get(key); if (known === undefined) { known = one.toLowerCase().includes(w); has.set(key, known); } return known; };
    view.matched = new Uint8Array(run.n);
    for (let i = 0; i < run.n; i++) {
      const stack = run.stacks[run.stack[i]], c = run.cell[i];
      const told = [run.word(i), run.laneName(run.lane[i]), c >= 0 ? run.label(c) : "", stack.length ? DATA.functions[stack[stack.length - 1]][0] : "", ...(run.notes[i] || []), SHAPES[run.shape[i]]];
      if (wanted.every((w) => told.some((one) => hit(one, w)))) { view.matched[i] = 1; view.matches.push(i); }
    }
  }
  tellFound();
}

function tellFound() {
  const at = before(view.matches, view.at);
  byId("found").textContent = !view.matched ? "" : !view.matches.length ? "nothing found" : at >= 0 && view.matches[at] === view.at ? `${at + 1} of ${view.matches.length.toLocaleString("en")}` : `${view.matches.length.toLocaleString("en")} found`;
}

function go(list, way) {
  if (!list.length) return;
  const at = before(list, view.at);
  const next = way > 0 ? at + 1 : (at >= 0 && list[at] === view.at ? at - 1 : at);
  select(list[(next + list.length) % list.length]);
  tellFound();
}

search.addEventListener("input", () => { find(search.value); if (byId("only").checked) listed(); redraw(); });
search.addEventListener("keydown", (event) => {
  if (event.key === "Enter") { event.preventDefault(); go(view.matches, event.shiftKey ? -1 : 1); }
  if (event.key === "Escape") { search.value = ""; find(""); listed(); redraw(); boxLanes.focus({ preventScroll: true }); }
});
which.addEventListener("input", () => { view.which = which.value; boxLanes.scrollTop = 0; layout(); resize(); redraw(); });
which.addEventListener("keydown", (event) => { if (event.key === "Escape") { which.value = ""; which.dispatchEvent(new Event("input")); boxLanes.focus({ preventScroll: true }); } });

// ---- keys

function sameLane(way) {
  const run = view.run, steps = run.ofLane[run.lane[view.at]], next = steps[run.place[view.at] + way];
  if (next !== undefined) select(next);
}

function otherEnd() {
  const run = view.run, ends = [...(run.to.get(view.at) || []), ...(run.from.get(view.at) || [])];
  if (ends.length) select(ends[0][1]);
}

let named = -1;
function fatal() {
  const steps = view.run.named.length ? view.run.named : view.run.marked;
  if (!steps.length) return;
  named = steps.indexOf(view.at) >= 0 ? (steps.indexOf(view.at) + 1) % steps.length : 0;
  select(steps[named]);
}

function theme() {
  const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  if (RUNS.length) { readColours(); legend(); redraw(); }
}

const KEYS = {
  j: () => select(view.at + 1), ArrowRight: () => select(view.at + 1), k: () => select(view.at - 1), ArrowLeft: () => select(view.at - 1),
  ArrowDown: () => sameLane(1), ArrowUp: () => sameLane(-1), Home: () => select(0), End: () => select(view.run.n - 1),
  n: () => go(view.run.story, 1), p: () => go(view.run.story, -1), f: fatal, m: otherEnd,
  "/": () => { search.focus(); search.select(); }, "?": () => help.showModal(), "+": () => setZoom(view.px * 1.4), "=": () => setZoom(view.px * 1.4), "-": () => setZoom(view.px / 1.4), 0: fit,
  h: () => byId("order").click(), t: theme,
};
RUNS.forEach((_, k) => { KEYS[String(k + 1)] = () => chooseRun(k); });
const MOVES = new Set(["j", "k", "n", "p", "f", "m", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "Home", "End"]);
// Arrows scroll the page unless the reader is in the drawing, or stepped last.
const ARROWS = new Set(["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "Home", "End"]);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open || !RUNS.length) return;
  const field = event.target.closest("input:not([type=checkbox]), textarea, select");
  const action = KEYS[event.key];
  if (field || !action) return;
  if (ARROWS.has(event.key) && event.target !== boxLanes) { if (event.target !== document.body || /Down|Up|Home|End/.test(event.key)) return; }
  event.preventDefault();
  action();
  if (MOVES.has(event.key)) insight();
});

// A step that was chosen by a key is worth nothing below the edge of the window.
function insight() {
  const box = boxLanes.getBoundingClientRect();
  if (box.top > window.innerHeight - 160 || box.bottom < 160) document.getElementById("run").scrollIntoView({ block: "start" });
}

// ---- pointer

boxLanes.addEventListener("scroll", () => { tip.hidden = true; redraw(); }, { passive: true });
const spot = (event) => { const box = boxLanes.getBoundingClientRect(); return [event.clientX - box.left - boxLanes.clientLeft, event.clientY - box.top - boxLanes.clientTop]; };
boxLanes.addEventListener("mousemove", (event) => {
  const [x, y] = spot(event), row = rowAt(y), i = stepAt(x, y);
  boxLanes.style.cursor = i >= 0 || (row && row.group !== undefined && x < gutter()) ? "pointer" : "default";
  showTip(i, event.clientX, event.clientY);
});
boxLanes.addEventListener("mouseleave", () => { tip.hidden = true; });
boxLanes.addEventListener("click", (event) => {
  const [x, y] = spot(event), row = rowAt(y);
  if (row && row.group !== undefined && x < gutter()) {
    if (view.open.has(row.group)) view.open.delete(row.group); else view.open.add(row.group);
    layout(); resize(); reveal(); redraw();
    return;
  }
  const i = stepAt(x, y);
  if (i >= 0) { select(i); tellFound(); }
});
boxLanes.addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  setZoom(view.px * Math.exp(-event.deltaY / 300), spot(event)[0]);
}, { passive: false });
overview.addEventListener("click", (event) => {
  const box = overview.getBoundingClientRect(), gut = gutter(), i = ((event.clientX - box.left - gut) / (box.width - gut - 8)) * view.run.n;
  boxLanes.scrollLeft = i * view.px - (view.width - gut) / 2;
});

// ---- the rest

function legend() {
  const box = document.querySelector(".legend");
  box.replaceChildren();
  const seen = new Set(view.run.shape);
  for (const [kind, name] of Object.entries(SHAPES)) {
    if (!seen.has(kind)) continue;
    const mark = make("canvas", {}), g = sized(mark, 16, 16);
    shape(g, kind, 8, 8, 5, kind === "I" || kind === "T" ? ink.violet : kind === "L" || kind === "A" || kind === "F" ? ink.quiet : ink.ink, kind !== "A");
    box.append(make("span", {}, mark, name));
  }
  const bar = (colour, name) => { const mark = make("canvas", {}), g = sized(mark, 16, 16); g.fillStyle = colour; g.fillRect(1, 6, 14, 4); return make("span", {}, mark, name); };
  if (view.run.postsOf.some((one) => one.length)) box.append(bar(ink.amber, "in the store buffer"));
  if (view.run.held.length) box.append(bar(ink.violet, "holds a lock"));
  if (view.run.arrows.some((a) => a[0] === 2)) box.append(bar(ink.green, "lets a waiting one go on"));
}

function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1)), key = asked.get("run"), step = asked.get("step");
  const k = key === null ? 0 : RUNS.findIndex((run) => run.key === key);
  const number = step !== null && /^\d+$/.test(step) ? Number(step) : undefined;
  return { k: k < 0 ? 0 : k, step: number };
}

function begin() {
  readColours();
  byId("theme").addEventListener("click", theme);
  byId("help-open").addEventListener("click", () => help.showModal());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (RUNS.length) { readColours(); legend(); redraw(); } });
  if (!RUNS.length) return;
  const runs = document.querySelector(".runs");
  RUNS.forEach((run, k) => runs.append(make("button", { type: "button", "aria-pressed": "false", on: () => chooseRun(k) }, run.title, make("small", {}, ` ${run.n.toLocaleString("en")} steps, ${run.lanes.length.toLocaleString("en")} actors`))));
  byId("in").addEventListener("click", () => setZoom(view.px * 1.4));
  byId("out").addEventListener("click", () => setZoom(view.px / 1.4));
  byId("fit").addEventListener("click", fit);
  byId("only").addEventListener("change", listed);
  byId("order").addEventListener("change", (event) => { view.showOrder = event.target.checked; redraw(); });
  byId("allcells").addEventListener("change", (event) => { view.allCells = event.target.checked; layout(); resize(); redraw(); });
  new ResizeObserver(() => { resize(); redraw(); }).observe(boxLanes);
  window.addEventListener("hashchange", () => {
    const { k, step } = fromAddress();
    if (RUNS[k] !== view.run) chooseRun(k, step); else if (step !== undefined) select(step, true);
    insight();
  });
  const { k, step } = fromAddress();
  chooseRun(k, step);
  legend();
}

begin();
