"""Style and script of the report, written into the page itself."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #f5f7f9; --card: #ffffff; --ink: #1c2530; --faint: #d5dbe1;
  --soft: #55606b; --accent: #0060a8; --stripe: #f0f3f6;
  --none: #1a7f37; --some: #9a6700; --high: #c0262d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0d1117; --card: #161b22; --ink: #e3e8ee; --faint: #3a434e;
    --soft: #a3adb8; --accent: #6cb6ff; --stripe: #1b2129;
    --none: #4ac26b; --some: #e0a63a; --high: #ff7b72;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem; max-width: 80rem; background: var(--ground);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 0.75rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 0.5rem; }
header p { margin: 0.25rem 0; color: var(--soft); }
.verdict h2 { margin: 1rem 0 0.25rem; font-size: 0.85rem; color: var(--soft); }
.verdict p {
  margin: 0.5rem 0; padding: 0.5rem 0.75rem; border-left: 0.3rem solid;
  background: var(--card); border-radius: 0.25rem;
}
.verdict p.harm-none { border-color: var(--none); }
.verdict p.harm-some { border-color: var(--some); }
.verdict p.harm-high { border-color: var(--high); font-weight: 600; }
header .verdict p { color: var(--ink); }
td .harm-none { color: var(--none); }
td .harm-some { color: var(--some); }
td .harm-high { color: var(--high); font-weight: 600; }
.scroll {
  overflow-x: auto; background: var(--card); border: 1px solid var(--faint);
  border-radius: 0.4rem; max-height: 36rem; overflow-wrap: normal;
}
table { border-collapse: collapse; width: 100%; font-size: 0.875rem; }
th, td { padding: 0.35rem 0.7rem; text-align: left; white-space: nowrap; }
thead th {
  position: sticky; top: 0; z-index: 1; background: var(--card); padding: 0;
  box-shadow: inset 0 -1px var(--faint); vertical-align: bottom;
}
th:first-child, td:first-child {
  position: sticky; left: 0; z-index: 1; background: inherit;
}
thead th:first-child { z-index: 2; background: var(--card); }
tbody tr { background: var(--card); }
tbody tr:nth-child(even) { background: var(--stripe); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
th button {
  all: unset; box-sizing: border-box; display: block; width: 100%; cursor: pointer;
  padding: 0.5rem 0.7rem; font-weight: 600; color: var(--ink);
}
th.right button { text-align: right; }
th button:focus-visible, .scroll:focus-visible { outline: 2px solid var(--accent); }
th button::after { content: " ↕"; color: var(--soft); font-weight: 400; }
th[aria-sort="ascending"] button::after { content: " ↑"; color: var(--accent); }
th[aria-sort="descending"] button::after { content: " ↓"; color: var(--accent); }
.numbers {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
  gap: 0.5rem; margin: 0;
}
.numbers div {
  background: var(--card); border: 1px solid var(--faint); border-radius: 0.4rem;
  padding: 0.5rem 0.75rem;
}
.numbers dt { color: var(--soft); font-size: 0.85rem; }
.numbers dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
section[aria-labelledby="plots-title"] {
  display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr));
}
section[aria-labelledby="plots-title"] h2 { grid-column: 1 / -1; margin-bottom: 0; }
figure {
  margin: 0; justify-content: flex-end;
  background: var(--card); border: 1px solid var(--faint); border-radius: 0.4rem;
  padding: 0.5rem; display: flex; flex-direction: column-reverse;
}
figure img { display: block; width: 100%; height: auto; }
figcaption { padding: 0.25rem 0.5rem 0.5rem; }
figcaption span { display: block; color: var(--soft); font-size: 0.85rem; }
.meanings dt { font-weight: 600; margin-top: 0.75rem; }
.meanings dd { margin: 0; max-width: 46rem; }
footer { margin-top: 2rem; color: var(--soft); font-size: 0.85rem; }
@media (max-width: 40rem) {
  table, thead, tbody { display: block; }
  th, td { white-space: normal; overflow-wrap: anywhere; }
  thead tr { display: flex; flex-wrap: wrap; }
  thead th, th:first-child, td:first-child { position: static; }
  thead th { box-shadow: none; }
  th button { padding: 0.25rem 0.6rem; }
  tbody tr {
    display: grid; grid-template-columns: 1fr 1fr; gap: 0 1rem;
    padding: 0.4rem 0.7rem; border-top: 1px solid var(--faint);
  }
  td {
    display: flex; justify-content: space-between; align-items: baseline;
    gap: 0.5rem; padding: 0.1rem 0;
  }
  td::before { content: attr(data-label); color: var(--soft); font-size: 0.8rem; }
  td:first-child { grid-column: 1 / -1; font-weight: 600; }
  td:first-child::before { content: none; }
}
@media print { .scroll { max-height: none; overflow: visible; } }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const numeric = [...body.rows].some((row) => row.cells[column].dataset.value);
    head.classList.toggle("right", numeric);
    head.querySelector("button").addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      const key = (row) => {
        const cell = row.cells[column];
        return numeric ? parseFloat(cell.dataset.value ?? "NaN") : cell.textContent;
      };
      const compare = (x, y) => {
        const [a, b] = [key(x), key(y)];
        if (!numeric) return a.localeCompare(b, undefined, { numeric: true });
        return Number.isNaN(a) - Number.isNaN(b) || a - b;
      };
      const rows = [...body.rows].sort((x, y) => (descending ? -1 : 1) * compare(x, y));
      body.append(...rows);
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    });
  });
}
"""
