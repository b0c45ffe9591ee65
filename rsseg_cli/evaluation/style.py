"""The look of the report: one style sheet, light and dark, on screen and on paper."""

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --panel: #f5f6f7; --ink: #1c2126; --muted: #5d6772;
  --line: #dde1e5; --right: 38, 111, 168; --wrong: 200, 82, 40; --edge: rgba(0, 0, 0, .28); }
@media (prefers-color-scheme: dark) { :root { --paper: #15191d; --panel: #1e2328; --ink: #e6e9ec;
  --muted: #9aa5b0; --line: #323940; --right: 92, 164, 220; --wrong: 232, 124, 84;
  --edge: rgba(255, 255, 255, .35); } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif;
  font-variant-numeric: tabular-nums; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; font-weight: 650; letter-spacing: -.01em;
  overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 48px 0 4px; font-weight: 650; }
p { margin: 0 0 14px; max-width: 76ch; } .note, .lead { color: var(--muted); } .note { font-size: 13.5px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 1px;
  margin: 26px 0 0; border: 1px solid var(--line); border-radius: 6px;
  overflow: hidden; }
.cards div { box-shadow: 0 0 0 1px var(--line); padding: 14px 18px 12px; }
.cards b { display: block; font-size: 28px; line-height: 1.15; font-weight: 620; letter-spacing: -.01em; }
.cards span { color: var(--muted); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: 6px 10px; text-align: right; white-space: nowrap; }
thead th { color: var(--muted); font-weight: 500; font-size: 13px; border-bottom: 1px solid var(--line);
  vertical-align: bottom; }
th:first-child { text-align: left; padding-left: 0; } tbody th { font-weight: 500; }
.classes { width: 100%; } .classes tbody tr + tr > * { border-top: 1px solid var(--line); }
.classes .mean > * { border-top: 2px solid var(--line); font-weight: 650; }
.aside { color: var(--muted); font-weight: 400; font-size: 12.5px; margin-left: 8px; }
.bar { width: 24%; min-width: 130px; }
.bar i { display: block; height: 10px; background: var(--panel); border-radius: 2px; }
.bar i i { background: currentColor; box-shadow: inset 0 0 0 1px var(--edge); }
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin-right: 8px;
  vertical-align: -1px; background: currentColor; box-shadow: inset 0 0 0 1px var(--edge); }
.matrix td { min-width: 84px; text-align: center; border: 2px solid var(--paper); }
.matrix thead th { text-align: center; border: 0; max-width: 130px; overflow: hidden;
  text-overflow: ellipsis; }
.dense td { min-width: 36px; padding: 3px 2px; font-size: 11.5px; } .dense th { padding: 3px 8px 3px 0; }
.dense thead th:not(.axis) { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left;
  max-width: none; max-height: 150px; padding: 8px 0 0; }
.dense thead .swatch { margin: 0 1px 6px 0; }
.matrix .axis { text-align: left; font-style: italic; }
.matrix .total { color: var(--muted); text-align: right; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); gap: 20px 28px; }
.versus { display: grid; grid-template-columns: auto minmax(320px, 1fr); gap: 20px 36px; align-items: start; }
.versus figure { max-width: 520px; }
figure { margin: 0; } figcaption { font-size: 14px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif;
  fill: var(--muted); } svg .name { fill: var(--ink); }
.grid { stroke: var(--line); } .axisline { stroke: var(--muted); } .halo { stroke: var(--edge); fill: none; }
.curve { fill: none; stroke-width: 2.2; } .all { stroke: var(--ink); stroke-dasharray: 6 4; }
.dot { stroke: var(--paper); stroke-width: 1.5; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; padding: 0; margin: 10px 0 16px;
  font-size: 14px; }
.legend .dash { display: inline-block; width: 20px; margin-right: 8px; border-top: 2px dashed var(--ink);
  vertical-align: 4px; }
.legend .hatch { background: repeating-linear-gradient(135deg, #bebebe 0 3px, #979797 3px 5px); }
.place { border-top: 1px solid var(--line); padding: 18px 0 22px; break-inside: avoid; }
.place header { display: flex; flex-wrap: wrap; gap: 2px 18px; align-items: baseline; margin-bottom: 10px; }
.place h3 { margin: 0; font-size: 15px; font-weight: 650; overflow-wrap: anywhere; }
.place header span { color: var(--muted); font-size: 13.5px; }
.triplet { display: grid; grid-template-columns: repeat(3, 1fr); gap: 10px; }
.triplet figcaption { color: var(--muted); font-size: 13px; margin-bottom: 3px; }
.triplet img { display: block; width: 100%; height: auto; image-rendering: pixelated; border-radius: 3px;
  background: var(--panel); }
.triplet .photo { image-rendering: auto; }
.none { background: var(--panel); color: var(--muted); border-radius: 3px; padding: 24px; font-size: 13.5px; }
.scale { display: block; height: 6px; margin-top: 6px; border: solid var(--ink);
  border-width: 0 1.5px 1.5px; }
.what { display: flex; flex-wrap: wrap; gap: 2px 22px; margin: 10px 0 0; font-size: 14px;
  max-width: none; }
.what .swatch { margin: 0 5px 0 0; }
.facts th { text-align: left; color: var(--muted); font-weight: 500; vertical-align: top; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.facts th, .facts td { padding: 3px 18px 3px 0; font-size: 13.5px; }
footer { margin-top: 48px; padding-top: 12px; border-top: 1px solid var(--line); color: var(--muted);
  font-size: 13px; }
@media (max-width: 980px) { .versus { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 640px) { .triplet { grid-template-columns: 1fr; } }
@media print { :root { --paper: #fff; --panel: #f3f4f5; --ink: #000; --muted: #444; --line: #ccc;
    --right: 38, 111, 168; --wrong: 200, 82, 40; --edge: rgba(0, 0, 0, .28); }
  body { font-size: 11pt; } main { max-width: none; padding: 0; } h2 { margin-top: 28px; }
  h2, h2 + p { break-after: avoid; } .cards { grid-template-columns: repeat(3, 1fr); }
  table, .charts figure { break-inside: avoid; } .scroll { overflow: visible; }
  .triplet { grid-template-columns: repeat(3, 1fr); } }
"""
