// All steps as a table.  Of thousands of rows only those in sight are elements; on paper, as many as one may want to print.
const boxTable = document.getElementById("table"), body = boxTable.querySelector("tbody"), sheet = boxTable.querySelector("table");
const ROW = 26, PRINTED = 2500;
const table = { list: [], from: -1, to: -1 };

function listed() {
  const run = view.run;
  if (document.getElementById("only").checked) table.list = view.matched ? view.matches : run.marked;
  else table.list = Array.from({ length: run.n }, (_, i) => i);
  document.getElementById("rows").textContent = `${table.list.length.toLocaleString("en")} of ${run.n.toLocaleString("en")} steps`;
  sheet.setAttribute("aria-rowcount", String(table.list.length + 1));
  table.from = -1;
  fillTable();
}

function rowOf(i, index) {
  const run = view.run, c = run.cell[i], old = TEXTS[run.before[i]], young = TEXTS[run.after[i]];
  const change = c >= 0 && run.writes[i] === "1" && old !== young ? `${run.label(c)}: ${old} → ${young}` : "";
  const kind = [run.isFatal.has(i) ? "fatal" : "", run.isPair.has(i) ? "pair" : "", i === view.at ? "now" : ""].filter(Boolean).join(" ");
  const row = make("tr", { "data-step": String(i), "aria-rowindex": String(index + 2), ...(kind ? { class: kind } : {}), ...(i === view.at ? { "aria-current": "step" } : {}) },
    make("td", { class: "n" }, make("a", { href: hashOf(run, i) }, String(i))), make("td", {}, run.laneName(run.lane[i])),
    make("td", { class: "fn" }, run.functionName(i)), make("td", { title: run.word(i) }, run.word(i)), make("td", { class: "ch", title: change }, change));
  return row;
}

function pad(rows) {
  const cell = make("td", { colspan: "5" });
  cell.style.height = `${rows * ROW}px`;
  return make("tr", { class: "pad", "aria-hidden": "true" }, cell);
}

function fillTable(all) {
  const count = table.list.length;
  let from = Math.max(0, Math.floor(boxTable.scrollTop / ROW) - 20), to = Math.min(count, from + Math.ceil(boxTable.clientHeight / ROW) + 50);
  if (all) { from = 0; to = Math.min(count, PRINTED); }
  if (!all && from === table.from && to === table.to) return;
  table.from = from; table.to = to;
  const rows = table.list.slice(from, to).map((i, k) => rowOf(i, from + k));
  body.replaceChildren(...(from && !all ? [pad(from)] : []), ...rows, ...(to < count && !all ? [pad(count - to)] : []));
}

// The chosen row, in sight within the table; the page itself stays where it is.
function showRow() {
  const at = before(table.list, view.at);
  if (at >= 0 && table.list[at] === view.at) {
    const y = at * ROW, head = 28;
    if (y < boxTable.scrollTop || y + ROW + head > boxTable.scrollTop + boxTable.clientHeight) boxTable.scrollTop = Math.max(0, y - boxTable.clientHeight / 2);
  }
  table.from = -1;
  fillTable();
}

boxTable.addEventListener("scroll", () => fillTable(), { passive: true });
body.addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-step]");
  if (row) { event.preventDefault(); select(Number(row.dataset.step)); }
});
window.addEventListener("beforeprint", () => {
  const full = table.list, n = full.length;
  if (n > PRINTED) {
    const about = view.run.marked.length ? view.run.marked[view.run.marked.length - 1] : n;
    table.list = full.slice(Math.max(0, Math.min(before(full, about) - PRINTED + 200, n - PRINTED))).slice(0, PRINTED);
    document.getElementById("printed").textContent = `${PRINTED.toLocaleString("en")} of ${n.toLocaleString("en")} steps, those up to where it goes wrong.`;
  } else document.getElementById("printed").textContent = "";
  fillTable(true);
});
window.addEventListener("afterprint", () => listed());
