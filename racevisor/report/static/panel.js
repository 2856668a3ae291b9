// The chosen step in words: what it did, where in the code, what is in the store buffer, which locks are held, what it follows.
const panel = document.getElementById("panel"), tip = document.getElementById("tip"), now = document.getElementById("now");

function make(tag, attributes, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "on") element.addEventListener("click", value); else element.setAttribute(name, value);
  }
  element.append(...inside.filter((one) => one !== null && one !== ""));
  return element;
}

function link(i) {
  const run = view.run;
  return make("button", { type: "button", on: () => select(i) }, `${i} ${run.laneName(run.lane[i])}: ${run.word(i)}`);
}

function hashOf(run, i) { return run === RUNS[0] ? `#step=${i}` : `#run=${run.key}&step=${i}`; }

function showPanel() {
  const run = view.run, i = view.at;
  panel.replaceChildren();
  if (i < 0 || i >= run.n) { panel.append(make("p", { class: "quiet" }, "No step is chosen.")); return; }
  const name = run.laneName(run.lane[i]), c = run.cell[i];
  const marks = [run.isPair.has(i) ? make("span", { class: "tag pair" }, "races") : null, run.isFatal.has(i) ? make("span", { class: "tag" }, "the check names it") : null];
  panel.append(make("h3", {}, `Step ${i}`, ...marks, make("a", { href: hashOf(run, i), title: "a link to this step" }, hashOf(run, i))));
  panel.append(make("p", { class: "said" }, `${name}: ${run.word(i)}`));
  const stack = run.stacks[run.stack[i]];
  if (stack.length) {
    const chain = make("p", { class: "chain" });
    stack.forEach((f, k) => chain.append(...(k ? [make("i", {}, " › ")] : []), `${DATA.functions[f][0]}()`));
    panel.append(chain);
  }
  const list = make("dl", {});
  const add = (title, ...what) => { if (what.length) list.append(make("dt", {}, title), make("dd", {}, ...what)); };
  add("what", SHAPES[run.shape[i]]);
  if (c >= 0) {
    add("cell", run.label(c));
    const old = TEXTS[run.before[i]], young = TEXTS[run.after[i]];
    if (run.shape[i] === "P") add("will hold", `${young}, once it is visible; others see ${valueAfter(run, c, i)}`);
    else add("value", run.writes[i] === "1" ? (old === young ? `${old}, stored again` : `${old} → ${young}`) : old);
  }
  if (run.notes[i]) add("tracepoints", run.notes[i].join(", "));
  for (const [kind, k] of run.to.get(i) || []) add(["arrives", "visible", "lets go on"][kind], link(k));
  for (const [kind, k] of run.from.get(i) || []) add(["sent", "posted", "woken by"][kind], link(k));
  const posted = run.postsOf[run.lane[i]].filter(([a, b]) => a <= i && (b < 0 || b > i));
  if (posted.length) add("store buffer", ...posted.flatMap(([a], k) => [k ? make("br") : "", `${run.label(run.cell[a])} = ${TEXTS[run.after[a]]}`]));
  const held = run.heldOf[run.lane[i]].filter((h) => h[2] <= i && (h[3] < 0 || h[3] > i));
  if (held.length) add("holds", held.map((h) => run.label(h[0])).join(", "));
  const others = run.held.filter((h) => h[1] !== run.lane[i] && h[2] <= i && (h[3] < 0 || h[3] > i));
  if (others.length) add("others hold", others.slice(0, 3).map((h) => `${run.label(h[0])} (${run.laneName(h[1])})`).join(", ") + (others.length > 3 ? ` and ${others.length - 3} more` : ""));
  const earlier = directBefore(run, i), later = directAfter(run, i), few = (steps) => steps.slice(0, 5).flatMap((k, n) => [n ? make("br") : "", link(k)]);
  add("follows", ...few(earlier));
  add("leads to", ...few(later), ...(later.length > 5 ? [` and ${later.length - 5} more`] : []));
  panel.append(list);
  const f = run.innermost(i);
  if (f >= 0) listing(DATA.functions[f], run.line[i]);
  now.textContent = `Step ${i}, ${name}${run.functionName(i) ? ` in ${run.functionName(i)}` : ""}: ${run.word(i)}`;
}

function listing([name, file, first, lines], at) {
  if (!lines.length) return;
  const box = make("div", { class: "code", tabindex: "0", role: "region", "aria-label": `source of ${name}` }, make("div", { class: "file" }, `${file}, line ${at || first}`));
  const margin = Math.min(...lines.filter((l) => l.trim()).map((l) => l.length - l.trimStart().length));
  let told = false;
  const list = make("ol", {});
  lines.forEach((line, k) => {
    const text = line.slice(margin), quotes = (text.match(/"""/g) || []).length;
    const quiet = told || quotes > 0 || text.trimStart().startsWith("#");
    if (quotes % 2) told = !told;
    const hash = quiet ? -1 : text.search(/ {2}# /);
    const parts = quiet ? [make("span", { class: "note" }, text)] : hash > 0 ? [text.slice(0, hash), make("span", { class: "note" }, text.slice(hash))] : [text];
    list.append(make("li", { "data-n": String(first + k), ...(first + k === at ? { class: "at", "aria-current": "step" } : {}) }, ...parts));
  });
  box.append(list);
  panel.append(box);
  const here = list.querySelector(".at");
  if (here) box.scrollTop = Math.max(0, here.offsetTop - box.offsetTop - box.clientHeight / 2);
}

// A few words at the pointer, always inside the window.
function showTip(i, x, y) {
  if (i < 0) { tip.hidden = true; return; }
  const run = view.run, f = run.functionName(i);
  tip.textContent = `${i}  ${run.laneName(run.lane[i])}${f ? `  ${f}()` : ""}\n${run.word(i)}${run.notes[i] ? `\n${run.notes[i].join(", ")}` : ""}`;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(x + 14, window.innerWidth - box.width - 8));
  const below = y + 18 + box.height < window.innerHeight - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${below ? y + 18 : Math.max(8, y - box.height - 12)}px`;
}
