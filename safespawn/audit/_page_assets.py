"""Style and script of the report page. Nothing of a ledger goes into either."""

from __future__ import annotations

#: Every pair of text and background has a contrast of 4.5 or more: WCAG 2.1, 1.4.3.
STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --raised: #f4f5f7; --line: #d0d4da; --text: #1c2128; --soft: #545d68; --link: #0b5cad;
  --vfork: #2f7d4f; --launcher: #2b6cb0; --helper: #0e7490; --fork: #b7791f; --other: #6b7280;
  --failed: #c2410c; --refused: #b91c1c; --unknown: #7e3fb2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171c; --raised: #1e232a; --line: #3a424d; --text: #e6e9ee; --soft: #a4adb8; --link: #7db7f5;
    --vfork: #56b27a; --launcher: #66a6e8; --helper: #4fc3d9; --fork: #dfa545; --other: #9aa3ae;
    --failed: #f08a5d; --refused: #f27878; --unknown: #c193ee;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.25rem; max-width: 90rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .5rem; padding-top: .5rem; border-top: 1px solid var(--line); }
p { margin: .4rem 0; max-width: 60rem; }
a { color: var(--link); }
.soft { color: var(--soft); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0; margin: 1rem 0; list-style: none; }
.cards {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem; margin: 1rem 0;
}
.cards div {
  padding: .6rem .8rem; background: var(--raised); border-left: 4px solid var(--line); border-radius: 4px;
}
.cards dt { color: var(--soft); font-size: .85rem; }
.cards dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.cards .bad { border-left-color: var(--refused); }
.cards .odd { border-left-color: var(--fork); }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
caption { text-align: left; color: var(--soft); padding: .25rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem .5rem; border-bottom: 1px solid var(--line); }
thead th { background: var(--raised); white-space: nowrap; }
thead th button { all: unset; cursor: pointer; }
thead th button:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
th[aria-sort] button::after { content: " \\2195"; color: var(--soft); }
th[aria-sort="ascending"] button::after { content: " \\2191"; color: var(--text); }
th[aria-sort="descending"] button::after { content: " \\2193"; color: var(--text); }
th.n, td.n { text-align: right; }
td.n { white-space: nowrap; font-variant-numeric: tabular-nums; }
td.w { white-space: nowrap; }
td.long { min-width: 22rem; }
td.result { min-width: 9rem; }
td.zero { color: var(--soft); }
code, .mono { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .92em; }
code { overflow-wrap: anywhere; unicode-bidi: isolate; }
code span { display: inline-block; max-width: 100%; vertical-align: top; }
ul.why { margin: 0; padding-left: 1rem; color: var(--soft); font-size: .92em; }
.kind::before {
  content: ""; display: inline-block; width: .7em; height: .7em; margin-right: .4em; border-radius: 2px;
}
.kind.vfork::before { background: var(--vfork); } .kind.launcher::before { background: var(--launcher); }
.kind.helper::before { background: var(--helper); }
.kind.fork::before { background: var(--fork); } .kind.other::before { background: var(--other); }
.kind.failed::before { background: var(--failed); } .kind.refused::before { background: var(--refused); }
.kind.unknown::before { background: var(--unknown); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; list-style: none; }
.tag { display: inline-block; margin: 0 .3rem .15rem 0; padding: 0 .4rem; background: var(--raised);
  border: 1px solid var(--line); border-radius: 3px; unicode-bidi: isolate; }
.chart { display: block; width: 100%; min-width: 44rem; height: auto; }
.chart text { fill: var(--soft); font-size: 12px; }
.chart text.y { text-anchor: end; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.k-vfork { fill: var(--vfork); } .k-launcher { fill: var(--launcher); } .k-helper { fill: var(--helper); }
.k-fork { fill: var(--fork); }
.k-other { fill: var(--other); } .k-failed { fill: var(--failed); } .k-refused { fill: var(--refused); }
.k-unknown { fill: var(--unknown); }
.search { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: end; margin: .75rem 0; }
form.search[hidden] { display: none; }
.search label { display: grid; max-width: 100%; font-size: .85rem; color: var(--soft); }
.search input, .search select { font: inherit; padding: .3rem .5rem; max-width: 100%; color: var(--text);
  background: var(--page); border: 1px solid var(--soft); border-radius: 4px; }
.search input { width: 22rem; }
details { margin: .3rem 0; }
summary { cursor: pointer; }
@media (max-width: 40rem) {
  body { padding: .75rem; } td.long { min-width: 15rem; } td.w { white-space: normal; }
  .search { display: grid; grid-template-columns: minmax(0, 1fr); }
  .search input, .search select { width: 100%; }
}
@media print { nav, .search { display: none; } body { max-width: none; } .scroll { overflow: visible; } }
"""

#: Without it the page can be read as it is: it only sorts and hides rows.
SCRIPT = """
"use strict";
(() => {
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent.toLowerCase();
  };
  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

  const sortBy = (table, head, column) => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) {
      other.setAttribute("aria-sort", "none");
    }
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = Array.from(body.rows, (row) => [valueOf(row, column), row]);
    rows.sort((a, b) => (down ? compare(b[0], a[0]) : compare(a[0], b[0])));
    body.append(...rows.map((pair) => pair[1]));
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sortBy(table, head, column));
    });
  }

  const form = document.getElementById("search");
  if (!form) {
    return;
  }
  const body = document.getElementById("spawns").tBodies[0];
  const rows = Array.from(body.rows, (row) => ({
    row,
    text: row.textContent.toLowerCase(),
    kind: row.dataset.kind,
    tags: new Set(Array.from(row.querySelectorAll(".tag"), (tag) => tag.textContent)),
  }));
  const words = form.querySelector("input");
  const [kind, tag] = form.querySelectorAll("select");
  const told = form.querySelector("output");
  const update = () => {
    const wanted = words.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let shown = 0;
    for (const one of rows) {
      const matches =
        (!kind.value || one.kind === kind.value) &&
        (!tag.value || one.tags.has(tag.value)) &&
        wanted.every((word) => one.text.includes(word));
      one.row.hidden = !matches;
      shown += matches ? 1 : 0;
    }
    told.textContent = `${shown} of ${rows.length} shown`;
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  update();
})();
"""
