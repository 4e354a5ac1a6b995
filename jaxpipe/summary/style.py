"""How a run's page looks, in the light and in the dark."""

STYLE = """\
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #fff; --ink: #1c2430; --soft: #5b6675;
  --edge: #dde1e7; --grid: #e8ebef; --line-0: #1f5fbf; --line-1: #c2410c; --mark: #a855a0;
  --good: #166534; --good-back: #dcfce7; --bad: #991b1b; --bad-back: #fee2e2;
  --wait: #854d0e; --wait-back: #fef3c7; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --card: #1d2128; --ink: #e6e9ee;
  --soft: #a3adba; --edge: #333a45; --grid: #2b313a; --line-0: #74aaf7; --line-1: #f59e6b;
  --mark: #d8a0d2; --good: #bbf7d0; --good-back: #14401f; --bad: #fecaca; --bad-back: #5a1a1a;
  --wait: #fde68a; --wait-back: #4d3a0c; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, "DejaVu Sans", sans-serif }
main { max-width: 1240px; margin: 0 auto; padding: 28px 20px 48px }
h1 { font-size: 26px; margin: 0 12px 0 0; display: inline }
h2 { font-size: 17px; margin: 0 0 10px }
header { margin-bottom: 18px }
header p { margin: 6px 0 0; color: var(--soft) }
.state { border-radius: 99px; padding: 3px 12px; font-size: 13px; font-weight: 600;
  vertical-align: 4px }
.finished { color: var(--good); background: var(--good-back) }
.failed { color: var(--bad); background: var(--bad-back) }
.stopped { color: var(--wait); background: var(--wait-back) }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)); gap: 12px;
  margin-bottom: 16px }
.tile, section { background: var(--card); border: 1px solid var(--edge); border-radius: 10px }
.tile { padding: 10px 14px }
.tile b { display: block; font-size: 21px; font-weight: 600; line-height: 1.25 }
.tile span { color: var(--soft); font-size: 13px }
section { padding: 16px 18px; margin-bottom: 16px; overflow-x: auto }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr));
  gap: 16px }
.pair section { margin: 0 }
.pair { margin-bottom: 16px }
.plot { display: block; width: 100%; height: auto }
.plot text, .share text { fill: var(--soft); font-size: 12px }
.plot .name { fill: var(--ink); font-size: 14px; font-weight: 600 }
.plot .end { text-anchor: end }
.plot .middle { text-anchor: middle }
.plot .grid { stroke: var(--grid); fill: none }
.plot .axis { stroke: var(--soft); fill: none }
.plot .mark { stroke: var(--mark); stroke-width: 1.5; stroke-dasharray: 4 3; fill: none }
.plot .line { fill: none; stroke-width: 1.8; stroke-linejoin: round }
.plot .line-0 { stroke: var(--line-0) }
.plot .line-1 { stroke: var(--line-1) }
.plot .dot { stroke: none }
.plot .dot.line-0 { fill: var(--line-0) }
.plot .dot.line-1 { fill: var(--line-1) }
.picture { background: #fff; color-scheme: light; border-radius: 8px; overflow-x: auto;
  border: 1px solid var(--edge) }
.picture svg { display: block; max-width: 100%; min-width: 720px; height: auto }
.picture .bar:hover rect { stroke: #000 }
.share { display: flex; height: 26px; border-radius: 6px; overflow: hidden; margin-bottom: 12px }
.share div { min-width: 1px }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 7px }
table { border-collapse: collapse; font-size: 14px }
td, th { padding: 3px 18px 3px 0; text-align: left; vertical-align: top }
th { color: var(--soft); font-weight: 500; white-space: nowrap }
td.number { text-align: right; font-variant-numeric: tabular-nums }
pre { font: 12.5px/1.45 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; margin: 0;
  overflow-x: auto }
ul { margin: 0; padding-left: 20px }
li time { color: var(--soft); margin-right: 8px; font-variant-numeric: tabular-nums }
p.note { color: var(--soft); margin: 10px 0 0; max-width: 75em; font-size: 14px }
footer { color: var(--soft); font-size: 13px }
"""

SECTIONS = {
    "step": ("training steps", "#1f5fbf"),
    "compile": ("first step, with compilation", "#d9b51c"),
    "start": ("start", "#8a6fc9"),
    "data": ("waiting for data", "#b82a00"),
    "evaluation": ("evaluation", "#0a8f80"),
    "check": ("comparing copies", "#7d5a3c"),
    "save": ("writing checkpoints", "#5f9e3a"),
    "restore": ("reading checkpoints", "#c4679f"),
    "timeline": ("measuring a step", "#6b7a90"),
    "other": ("other", "#a8b0bb"),
}
"""Sections of a run's time: what they are called on the page, and their colours."""
