"""How a report looks as a web page: on screens in light and dark rooms, on telephones, and on paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfc; --ink: #1f2328; --soft: #5b636b; --line: #d9dbd8; --rule: #b9bdb9; --link: #0b5a8c;
  --hover: #f1f4f5;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #17191c; --ink: #e2e4e6; --soft: #a0a7ae; --line: #30343a; --rule: #4a5058; --link: #7db8e0;
    --hover: #202428;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 88rem; padding: 2.5rem clamp(1rem, 4vw, 3rem) 5rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif;
  overflow-wrap: break-word;
}
h1, h2, h3 { line-height: 1.25; font-weight: 600; text-wrap: balance; break-after: avoid; }
h1 { font-size: 1.9rem; margin: 0 0 1rem; letter-spacing: -0.01em; max-width: 46rem; }
h2 { font-size: 1.35rem; margin: 3.5rem 0 0.8rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 2.2rem 0 0.6rem; }
p { margin: 0 0 0.9rem; max-width: 46rem; }
a { color: var(--link); text-underline-offset: 0.18em; text-decoration-thickness: 1px; }
nav { margin: 2rem 0; font-size: 0.92rem; line-height: 1.45; }
nav p { margin: 0 0 0.5rem; color: var(--soft); }
nav ol { margin: 0; padding: 0; list-style: none; }
nav li { margin: 0 0 0.4rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
.scroll { overflow: auto; max-height: 85vh; max-width: 100%; width: fit-content;
  border-block: 1.5px solid var(--rule); }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 3px; }
table { border-collapse: separate; border-spacing: 0; font-size: 0.9rem; line-height: 1.4;
  font-variant-numeric: lining-nums tabular-nums; }
th, td { padding: 0.42rem 0.75rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  background: var(--paper); }
tr > :first-child { padding-left: 0.2rem; }
tbody tr:last-child > * { border-bottom: 0; }
tbody tr:hover > * { background: var(--hover); }
thead th { position: sticky; top: 0; z-index: 1; vertical-align: bottom; font-weight: 600;
  border-bottom: 1px solid var(--rule); }
tr > :first-child { position: sticky; left: 0; z-index: 1; }
thead tr > :first-child { z-index: 2; }
tbody th { font-weight: 400; }
.words { display: block; width: max-content; max-width: min(26rem, 42vw); overflow-wrap: anywhere; }
.number { text-align: right; }
td.number, tbody th.number { white-space: nowrap; }
.interval { display: block; color: var(--soft); font-size: 0.86em; }
sup { font-size: 0.72em; line-height: 0; color: var(--soft); margin-left: 0.1em; }
.notes { margin-top: 0.6rem; font-size: 0.87rem; line-height: 1.5; color: var(--soft); }
.notes p { margin: 0 0 0.35rem; }
figure { margin: 0; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 3px; }
figcaption { margin-top: 0.6rem; max-width: 46rem; font-size: 0.9rem; line-height: 1.5; color: var(--soft); }
@media screen and (min-width: 72rem) {
  body { display: grid; grid-template-columns: 12rem minmax(0, 1fr); column-gap: 3.5rem; }
  body > header, body > main { grid-column: 2; }
  body > nav { grid-column: 1; grid-row: 1 / span 2; position: sticky; top: 2.5rem; align-self: start; margin: 0;
    max-height: calc(100vh - 5rem); overflow: auto; }
}
@media print {
  @page { margin: 16mm 14mm; }
  html { font-size: 9.5pt; }
  body { max-width: none; padding: 0; background: #fff; color: #000; }
  a { color: inherit; text-decoration: none; }
  h2 { margin-top: 2rem; }
  p, li, figcaption { orphans: 3; widows: 3; }
  .scroll { overflow: visible; max-height: none; max-width: none; }
  table { font-size: 7.5pt; line-height: 1.3; }
  th, td { padding: 0.3rem 0.5rem; background: none; }
  thead { display: table-header-group; }
  thead th, tr > :first-child { position: static; }
  tr, figure, .notes { break-inside: avoid; }
  section > p { break-after: avoid; }
  .interval { white-space: normal; }
  .interval span { white-space: nowrap; }
  .words { max-width: 60mm; }
  tr > :first-child .words { max-width: 40mm; }
  img { max-height: 235mm; width: auto; }
  .plot img { max-width: 135mm; max-height: 105mm; }
}
"""
