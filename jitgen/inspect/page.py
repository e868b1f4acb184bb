"""The style and the script of the HTML page of a listing; the page needs nothing else.

Not here: its contents (`jitgen.inspect.html`).
"""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fbfaf7; --panel: #fff; --ink: #1f2328; --soft: #5c646e; --line: #e2e0d8;
  --hover: #f1efe7; --hot: #ffe08a; --hot-ink: #1f2328; --accent: #0b6e99;
  --fma: #a34a06; --load: #0b6e99; --broadcast: #0a6b5d; --store: #7a2fe8; --branch: #b42346;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14161a; --panel: #1b1e24; --ink: #dde1e6; --soft: #9098a3; --line: #2d323b;
    --hover: #23272f; --hot: #6b5410; --hot-ink: #fff3cf; --accent: #62b6e0;
    --fma: #f0a050; --load: #62b6e0; --broadcast: #4cc9b0; --store: #b794f6; --branch: #f47c93;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
}
code, .code, .row, .loop > button, table {
  font-family: ui-monospace, "DejaVu Sans Mono", monospace;
}
header, main { max-width: 112rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 1.6rem; }
h1 { font-size: 1.45rem; margin: 0 0 .2rem; font-weight: 650; }
h2 { font-size: 1.02rem; margin: 1.6rem 0 .5rem; }
h3 { font-size: .95rem; margin: 0; font-weight: 650; }
p { margin: .15rem 0; }
.soft, h3 + p { color: var(--soft); }
header .computes { font-size: 1.05rem; }
.columns { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; align-items: flex-start; }
.columns > div { flex: 0 1 auto; max-width: 44rem; }
.columns > .tiles { display: flex; flex-wrap: wrap; gap: 0 2rem; max-width: none; }
ul { margin: 0; padding-left: 1.1rem; }
table { border-collapse: collapse; font-size: 12.5px; }
th, td { padding: .12rem .6rem .12rem 0; text-align: left; font-weight: 400; white-space: nowrap; }
th { color: var(--soft); }
td.words { font-family: system-ui, sans-serif; font-size: 13.5px; white-space: normal; }
.grid td { padding: 0 .15rem .15rem 0; }
.grid .r { display: block; border: 1px solid var(--line); border-radius: 4px; padding: 0 .4rem; }
pre { margin: 0; font-size: 12.5px; line-height: 1.45; white-space: pre-wrap; }
.bar { display: flex; gap: .5rem; align-items: baseline; flex-wrap: wrap; }
.bar h2 { margin-right: .6rem; }
button { font: inherit; color: inherit; cursor: pointer; }
.bar button {
  border: 1px solid var(--line); background: var(--panel); border-radius: 6px; padding: .1rem .7rem;
  font-size: 13px;
}
.bar button:hover { background: var(--hover); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: -1px; }
.work { display: grid; grid-template-columns: minmax(0, 1fr) 23rem; gap: 1.5rem; }
.listing {
  background: var(--panel); border: 1px solid var(--line); border-radius: 10px; padding: .7rem 0;
  overflow-x: auto; margin-bottom: 3rem;
}
.title { padding: .9rem 1rem .3rem; font-family: system-ui, sans-serif; }
.title p { font-size: 13.5px; }
.row {
  display: grid; grid-template-columns: 3.6rem 10.5rem minmax(24rem, 1.25fr) minmax(15rem, 1fr);
  font-size: 12.5px; line-height: 1.55; padding-right: 1rem; border-left: 3px solid transparent;
  min-width: 62rem; scroll-margin: 4rem;
}
.row > * { white-space: pre; overflow: hidden; text-overflow: ellipsis; }
.row .at, .row .hex { color: var(--soft); }
.row .at { text-align: right; padding-right: .9rem; }
.row .hex { padding-right: .6rem; }
.row:hover, .row:focus, .row.chosen { background: var(--hover); }
.row.fma { border-left-color: var(--fma); } .row.fma .says { color: var(--fma); }
.row.load { border-left-color: var(--load); } .row.load .says { color: var(--load); }
.row.broadcast { border-left-color: var(--broadcast); }
.row.broadcast .says { color: var(--broadcast); }
.row.store { border-left-color: var(--store); } .row.store .says { color: var(--store); }
.row.branch { border-left-color: var(--branch); } .row.branch .says { color: var(--branch); }
.label { color: var(--soft); padding-left: 3.6rem; font-size: 12.5px; }
.loop { margin: .15rem 0 .15rem .5rem; border-left: 2px solid var(--line); }
.loop > button {
  display: block; width: 100%; text-align: left; border: 0; background: none; padding: .1rem .6rem;
  font-size: 12.5px;
}
.loop > button::before {
  content: "\\25be"; display: inline-block; width: 1.1rem; color: var(--soft);
}
.loop > button[aria-expanded=false]::before { content: "\\25b8"; }
.loop > button:hover { background: var(--hover); }
.loop > button b { font-weight: 650; }
.r { border-radius: 3px; }
.r.hot { background: var(--hot); color: var(--hot-ink); }
aside { position: sticky; top: 1rem; align-self: start; }
.details {
  background: var(--panel); border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem 1.1rem; min-height: 13rem;
}
.details .text { font-size: 14px; overflow-wrap: anywhere; }
.details .says { font-size: 15px; margin: .35rem 0 .7rem; color: var(--accent); }
.fields { display: flex; flex-wrap: wrap; gap: .4rem; margin: .3rem 0 .6rem; }
.fields span { border: 1px solid var(--line); border-radius: 6px; padding: .15rem .5rem; }
.fields i { display: block; font: 11px system-ui, sans-serif; color: var(--soft); }
.keys { font-size: 12.5px; color: var(--soft); margin-top: .9rem; }
kbd {
  font: 11.5px ui-monospace, monospace; border: 1px solid var(--line); border-radius: 4px;
  padding: 0 .3rem;
}
.legend span { margin-right: .9rem; white-space: nowrap; }
.legend span::before {
  content: ""; display: inline-block; width: .55rem; height: .55rem; border-radius: 2px;
  margin-right: .35rem; background: currentColor;
}
@media (max-width: 75rem) {
  .work { grid-template-columns: minmax(0, 1fr); }
  aside { position: sticky; top: auto; bottom: 0; order: 2; }
  .details { min-height: 0; border-radius: 10px 10px 0 0; box-shadow: 0 -2px 12px #0002; }
  .keys { display: none; }
}
@media print { aside, .bar button { display: none; } .work { display: block; } }
"""

SCRIPT = """
"use strict";
const listing = document.querySelector(".listing"), details = document.querySelector(".details");
const uses = new Map();
for (const e of document.querySelectorAll(".r")) {
  const name = e.dataset.r;
  if (!uses.has(name)) uses.set(name, []);
  uses.get(name).push(e);
}
let hot = [], chosen = null;
function light(name) {
  for (const e of hot) e.classList.remove("hot");
  hot = name ? uses.get(name) || [] : [];
  for (const e of hot) e.classList.add("hot");
}
function put(selector, text) { details.querySelector(selector).textContent = text; }
function show(row) {
  if (!row || row === chosen) return;
  if (chosen) chosen.classList.remove("chosen");
  chosen = row;
  row.classList.add("chosen");
  details.querySelector(".hint").hidden = true;
  details.querySelector(".found").hidden = false;
  put(".text", row.querySelector(".text").textContent.trim());
  put(".says", row.querySelector(".says").textContent);
  put(".where", "offset 0x" + row.querySelector(".at").textContent.trim() + ", " + row.dataset.n +
    " bytes" + (row.dataset.roles ? "; uses " + row.dataset.roles : ""));
  const box = details.querySelector(".fields");
  box.replaceChildren(...row.dataset.fields.split("|").map(field => {
    const [name, hex] = field.split("="), out = document.createElement("span");
    const title = document.createElement("i");
    title.textContent = name;
    out.append(title, hex);
    return out;
  }));
}
function fold(button, open) {
  button.setAttribute("aria-expanded", open);
  button.nextElementSibling.hidden = !open;
}
document.addEventListener("mouseover", event => {
  const register = event.target.closest(".r");
  light(register && register.dataset.r);
  show(event.target.closest(".row"));
});
document.addEventListener("focusin", event => show(event.target.closest(".row")));
document.addEventListener("click", event => {
  const button = event.target.closest(".loop > button");
  if (button) fold(button, button.getAttribute("aria-expanded") !== "true");
  const all = event.target.closest("[data-all]");
  if (all) {
    for (const each of listing.querySelectorAll(".loop > button"))
      fold(each, all.dataset.all === "open");
  }
});
listing.addEventListener("keydown", event => {
  const by = {ArrowDown: 1, ArrowUp: -1}[event.key];
  const here = document.activeElement.closest(".row, .loop > button");
  if (!by || !here) return;
  const stops = [...listing.querySelectorAll(".row, .loop > button")]
    .filter(e => !e.closest("[hidden]"));
  const next = stops[stops.indexOf(here) + by];
  if (!next) return;
  event.preventDefault();
  if (here.matches(".row")) here.tabIndex = -1;
  if (next.matches(".row")) next.tabIndex = 0;
  next.focus();
});
"""
