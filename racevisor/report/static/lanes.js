// Which rows there are, and where: lanes, folded groups of lanes, cells.  Only what is in sight is drawn, see paint.js.
const GUTTER_WIDE = 152, GUTTER_NARROW = 92, RULER = 24;
const LANE = 52, THIN = 18, CELL = 24, HEAD = 26, GROUP = 30;
const MANY = 24;      // with more lanes they are folded by kind
const CELLS_SHOWN = 10;

const view = { run: RUNS[0], at: 0, px: 18, rows: [], rowOfLane: [], height: 0, open: new Set(), which: "", matches: [], matched: null, order: null, showOrder: false, allCells: false, thin: false, hover: -1 };

function gutter() { return view.width < 560 ? GUTTER_NARROW : GUTTER_WIDE; }

// The lanes that the marked steps are in; of many broken checks, those of the first ones.
function concerned(run) {
  const lanes = new Set(run.pair.map((i) => run.lane[i]));
  for (const [, step, fatal] of run.broken.slice(0, 2)) for (const i of fatal.length ? fatal : step === null ? [] : [step]) lanes.add(run.lane[i]);
  if (!lanes.size) for (const w of run.waits) if (w[2] < 0 && lanes.size < 4) lanes.add(w[0]);
  if (!lanes.size && run.n) lanes.add(run.lane[run.n - 1]);
  return lanes;
}

// The cells that are shown at first: those of the marked steps, then the busiest that several actors use.
function cellsShown(run) {
  const all = run.cells.map((_, c) => c).filter((c) => run.usesOf[c]);
  if (view.allCells) return all.sort((a, b) => run.usesOf[b] - run.usesOf[a]);
  const first = [...new Set(run.marked.slice(0, 8).map((i) => run.cell[i]).filter((c) => c >= 0))];
  const users = new Map();
  for (const l of concerned(run)) for (const c of new Set(run.ofLane[l].map((i) => run.cell[i]))) users.set(c, (users.get(c) || 0) + 1);
  const near = (c) => users.get(c) || 0;
  const rest = all.filter((c) => run.cells[c][3] && !first.includes(c)).sort((a, b) => near(b) - near(a) || run.usesOf[b] - run.usesOf[a]);
  const now = view.at >= 0 && view.at < run.n ? run.cell[view.at] : -1;
  const shown = [...first, ...rest].slice(0, Math.max(CELLS_SHOWN, first.length));
  return now >= 0 && !shown.includes(now) ? [...shown, now] : shown;
}

function layout() {
  const run = view.run, rows = [];
  let y = RULER;
  const add = (row, h) => { row.y = y; row.h = h; row.odd = rows.length % 2 === 1; y += h; rows.push(row); };
  view.rowOfLane = new Array(run.lanes.length).fill(null);
  const wanted = view.which.toLowerCase().split(/[\s,]+/).filter(Boolean);
  const chosen = wanted.length
    ? run.lanes.map((_, l) => l).filter((l) => wanted.some((w) => (/\d$/.test(w) ? run.laneName(l).toLowerCase() === w : run.laneName(l).toLowerCase().includes(w))))
    : null;
  const fold = !chosen && run.lanes.length > MANY;
  const here = fold ? concerned(run) : null;
  if (fold && view.at >= 0 && run.n) here.add(run.lane[view.at]);
  // By kind, in the order in which the kinds first come; a kind that is open begins with the row that folds it again.
  const kinds = new Map();
  run.lanes.forEach(([, kind], l) => { if (!kinds.has(kind)) kinds.set(kind, []); kinds.get(kind).push(l); });
  const plan = [];
  if (chosen) for (const l of chosen) plan.push({ lane: l });
  else if (!fold) run.lanes.forEach((_, l) => plan.push({ lane: l }));
  else for (const [kind, lanes] of kinds) {
    const open = view.open.has(kind), shown = open || lanes.length < 3 ? lanes : lanes.filter((l) => here.has(l));
    if (open) plan.push({ group: kind, lanes: [] });
    for (const l of shown) plan.push({ lane: l });
    if (shown.length < lanes.length) plan.push({ group: kind, lanes: lanes.filter((l) => !here.has(l)) });
  }
  view.thin = plan.filter((row) => row.lane !== undefined).length > 40;
  for (const row of plan) {
    if (row.lane !== undefined) view.rowOfLane[row.lane] = row;
    else for (const l of row.lanes) view.rowOfLane[l] = row;
    add(row, row.lane === undefined ? GROUP : view.thin ? THIN : LANE);
  }
  if (run.lanes.length && !plan.length) add({ head: "no such lane" }, HEAD);
  const cells = cellsShown(run);
  if (cells.length) {
    add({ head: view.allCells ? "cells" : "cells, what they hold" }, HEAD);
    for (const c of cells) add({ cell: c }, CELL);
  }
  view.rows = rows;
  view.height = y + 10;
}

// The step at a place of the canvas; in a lane, the nearest one of that lane.
function stepAt(x, y) {
  const run = view.run;
  if (!run.n || x < gutter()) return -1;
  const i = Math.round((x - gutter() + boxLanes.scrollLeft) / view.px - 0.5);
  const row = rowAt(y);
  if (!row) return -1;
  const reach = Math.max(1, 12 / view.px);
  const near = (list) => {
    const at = before(list, i);
    let best = -1;
    for (const k of [list[at], list[at + 1]]) if (k !== undefined && (best < 0 || Math.abs(k - i) < Math.abs(best - i))) best = k;
    return best;
  };
  if (row.lane !== undefined) { const k = near(run.ofLane[row.lane]); return k >= 0 && (Math.abs(k - i) <= reach || view.labelled(k, i)) ? k : -1; }
  if (row.cell !== undefined) { const at = before(run.writesOf[row.cell], i); return at < 0 ? -1 : run.writesOf[row.cell][at]; }
  if (row.group !== undefined && i >= 0 && i < run.n && row.lanes.includes(run.lane[i])) return i;
  return -1;
}

function rowAt(y) {
  if (y < RULER) return null;
  const at = y + boxLanes.scrollTop;
  for (const row of view.rows) if (at >= row.y && at < row.y + row.h) return row;
  return null;
}
