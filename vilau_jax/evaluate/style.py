"""The style sheet of the report: one column on a phone, light and dark."""

CSS = """
:root { color-scheme: light dark; --ink:#1d2433; --soft:#566076; --pale:#aab2c2; --back:#fff;
  --card:#f4f6fa; --line:#dde2ec; --accent:#2f62c9; --good:#1c7f55; --bad:#bb3b33; }
@media (prefers-color-scheme: dark) { :root { --ink:#e7eaf2; --soft:#a3acbf; --pale:#69738a;
  --back:#12151c; --card:#1b202b; --line:#2e3546; --accent:#86adff; --good:#5cc596;
  --bad:#f0857d; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin:0; background:var(--back); color:var(--ink); line-height:1.55;
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif; }
main { max-width:1080px; margin:0 auto; padding:20px 16px 64px; }
h1 { font-size:1.75rem; line-height:1.2; margin:.4em 0 .3em; }
h2 { font-size:1.28rem; margin:2.4em 0 .5em; padding-top:.7em; border-top:1px solid var(--line);
  }
h3 { font-size:1.02rem; margin:1.5em 0 .4em; }
p, ul { max-width:72ch; margin:.55em 0; } ul { padding-left:1.2em; }
a { color:var(--accent); } .soft, figcaption { color:var(--soft); } .small { font-size:.86rem; }
.good { color:var(--good); } .bad { color:var(--bad); }
nav { font-size:.92rem; display:flex; flex-wrap:wrap; gap:.2em 1.1em; margin:.8em 0; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(135px,1fr)); gap:10px;
  margin:1em 0; }
.tile { background:var(--card); border-radius:10px; padding:10px 12px; }
.tile b { display:block; font-size:1.4rem; line-height:1.25; font-variant-numeric:tabular-nums;
  }
.tile span { color:var(--soft); font-size:.83rem; line-height:1.3; display:block; }
.wide { overflow-x:auto; -webkit-overflow-scrolling:touch; }
table { border-collapse:collapse; width:100%; font-size:.92rem; }
th, td { text-align:left; padding:.38em .55em; border-bottom:1px solid var(--line);
  vertical-align:top; }
th { color:var(--soft); font-weight:600; } tr.head th { padding-top:1.15em; color:var(--ink); }
td code { font-size:.78rem; overflow-wrap:normal; } table { max-width:860px; }
td.n, th.n { text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap; }
code { font:.86em ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;
  overflow-wrap:anywhere; }
pre { background:var(--card); border-radius:10px; padding:12px 14px; overflow-x:auto;
  margin:.6em 0; }
.gallery { display:grid; grid-template-columns:repeat(auto-fill,minmax(var(--cell,112px),1fr));
  gap:12px 10px; }
figure { margin:0; }
figure img { width:100%; display:block; border-radius:6px; border:1px solid var(--line); }
figcaption { font-size:.84rem; line-height:1.3; margin-top:.3em; }
.charts { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));
  gap:14px; margin:.9em 0; }
.chart { background:var(--card); border-radius:10px; padding:8px; min-width:0; max-width:560px;
  width:100%; }
.chart svg { width:100%; height:auto; display:block; }
.chart svg text { font-family:inherit !important; }
.strip { display:grid; gap:5px; align-items:start; }
.strip img { width:100%; display:block; border-radius:5px; }
.strip span { font-size:.78rem; color:var(--soft); line-height:1.25; }
.rows { display:grid; gap:14px; }
.twin { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(430px,100%),1fr));
  gap:14px 32px; }
.asks { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(310px,100%),1fr));
  gap:12px; }
.ask { display:flex; gap:12px; background:var(--card); border-radius:10px; padding:10px; }
.ask img { width:92px; height:92px; border-radius:6px; flex:none; }
.ask ul { margin:0; padding:0; list-style:none; min-width:0; overflow-wrap:anywhere; }
.ask li { font-size:.87rem; line-height:1.35; margin-bottom:.35em; }
"""
