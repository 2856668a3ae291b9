// What the page was made from, and what is worked out of it once: who follows whom, who wrote what when.
const DATA = JSON.parse(document.getElementById("data").textContent);
const TEXTS = DATA.texts;
const SHAPES = { L: "load", S: "store", P: "store posted", V: "store visible", M: "read-modify-write", A: "waited, went on", F: "barrier", I: "IPI sent", T: "IPI arrives", C: "choice" };

function decode(raw) {
  const run = Object.assign({}, raw);
  const n = run.n;
  run.word = (i) => TEXTS[run.words[i]];
  run.laneName = (l) => run.lanes[l][0];
  run.label = (c) => run.cells[c][0];
  run.innermost = (i) => { const stack = run.stacks[run.stack[i]]; return stack.length ? stack[stack.length - 1] : -1; };
  run.functionName = (i) => { const f = run.innermost(i); return f < 0 ? "" : DATA.functions[f][0]; };
  // Steps by lane, and where each step is in that list; writes by cell; other ends of messages.
  run.ofLane = run.lanes.map(() => []);
  run.place = new Int32Array(n);
  run.writesOf = run.cells.map(() => []);
  run.usesOf = run.cells.map(() => 0);
  for (let i = 0; i < n; i++) {
    const steps = run.ofLane[run.lane[i]];
    run.place[i] = steps.length;
    steps.push(i);
    const c = run.cell[i];
    if (c >= 0) { run.usesOf[c]++; if (run.writes[i] === "1") run.writesOf[c].push(i); }
  }
  run.to = new Map(); run.from = new Map();
  for (const [kind, a, b] of run.arrows) {
    if (!run.to.has(a)) run.to.set(a, []);
    run.to.get(a).push([kind, b]);
    if (!run.from.has(b)) run.from.set(b, []);
    run.from.get(b).push([kind, a]);
  }
  run.crossing = run.arrows.filter((a) => a[0] !== 1);
  run.heldOf = run.lanes.map(() => []);
  for (const h of run.held) run.heldOf[h[1]].push(h);
  run.waitsOf = run.lanes.map(() => []);
  for (const w of run.waits) run.waitsOf[w[0]].push(w);
  run.postsOf = run.lanes.map(() => []);
  const landed = new Map(run.arrows.filter((a) => a[0] === 1).map((a) => [a[1], a[2]]));
  for (let i = 0; i < n; i++) if (run.shape[i] === "P") run.postsOf[run.lane[i]].push([i, landed.has(i) ? landed.get(i) : -1]);
  run.spansOf = run.lanes.map((_, l) => spans(run, l));
  run.isFatal = new Set(run.fatal);
  run.isPair = new Set(run.pair);
  run.marked = [...new Set([...run.pair, ...run.fatal])].sort((a, b) => a - b);
  run.story = run.pair.length ? [...run.pair].sort((a, b) => a - b) : run.marked;
  const first = run.broken.length ? run.broken[0] : null;
  run.named = first && first[2].length ? [...first[2]].sort((a, b) => b - a) : first && first[1] !== null ? [first[1]] : [];
  run.next = null;
  return run;
}

// Runs of steps of one lane within one function: what is drawn above them.
function spans(run, lane) {
  const found = [];
  for (const i of run.ofLane[lane]) {
    const f = run.innermost(i);
    if (f < 0 || run.shape[i] === "V") continue;  // a store that becomes visible is no step of the function that posted it
    const last = found[found.length - 1];
    if (last && last[2] === f) last[1] = i; else found.push([i, i, f]);
  }
  return found;
}

// Last entry of a sorted list that is at most `value`; -1 if there is none.
function before(list, value) {
  let low = 0, high = list.length;
  while (low < high) { const mid = (low + high) >> 1; if (list[mid] <= value) low = mid + 1; else high = mid; }
  return low - 1;
}

// The value of a cell once step i is done.
function valueAfter(run, cell, i) {
  const at = before(run.writesOf[cell], i);
  return TEXTS[at < 0 ? run.cells[cell][2] : run.after[run.writesOf[cell][at]]];
}

function directBefore(run, i) { return run.ordered ? run.direct[i].map((d) => i - d) : []; }

function directAfter(run, i) {
  if (!run.ordered) return [];
  if (!run.next) {
    run.next = Array.from({ length: run.n }, () => []);
    for (let k = 0; k < run.n; k++) for (const d of run.direct[k]) run.next[k - d].push(k);
  }
  return run.next[i];
}

// 1: happens before step i, 2: after it, 3: it is i, 0: neither.
function ordering(run, i) {
  const found = new Uint8Array(run.n);
  for (const [mark, follow] of [[1, directBefore], [2, directAfter]]) {
    const todo = [i];
    while (todo.length) for (const k of follow(run, todo.pop())) if (!found[k]) { found[k] = mark; todo.push(k); }
  }
  found[i] = 3;
  return found;
}

const RUNS = DATA.runs.map(decode);
