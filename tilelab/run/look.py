"""How the pages of runs look and what they do; no part of it comes from elsewhere."""

STYLE = """
:root{color-scheme:light dark;--ink:#1e2126;--faint:#6b7280;--paper:#f6f7f9;--card:#fff;--line:#e3e6ea;
  --plain:#c9ced6;--bad:#b42318}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--faint:#9aa3af;--paper:#15171b;--card:#1e2126;
  --line:#2e333b;--plain:#4a515c;--bad:#ff8a7a}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1500px;padding:28px;font:14px/1.45 system-ui,sans-serif;color:var(--ink);
  background:var(--paper)}
h1{font-size:24px;margin:0}
header p{color:var(--faint);margin:4px 0 12px}
.bad{color:var(--bad)}
.bar{display:flex;height:8px;border-radius:4px;overflow:hidden;background:var(--line)}
.bar i{display:block}
header .bar{height:14px;border-radius:7px}
.legend span{margin-right:18px;color:var(--ink);white-space:nowrap}
.legend i,td i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px}
.failed{background:var(--card);border:1px solid var(--bad);border-radius:10px;padding:12px 16px;margin:16px 0}
.failed h2{font-size:15px;margin:0 0 6px;color:var(--bad)}
.failed td{padding:3px 14px 3px 0;vertical-align:top;overflow-wrap:anywhere}
.failed td:first-child{font-weight:600;white-space:nowrap}
nav{margin:18px 0 14px;color:var(--faint)}
input,select{font:inherit;color:inherit;background:var(--card);border:1px solid var(--line);border-radius:7px;
  padding:5px 9px}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(215px,1fr));gap:16px}
article{background:var(--card);border:1px solid var(--line);border-radius:10px;overflow:hidden;
  padding-bottom:10px}
figure{margin:0;aspect-ratio:1;background:#0d0e10;display:flex}
figure img{width:100%;height:100%;object-fit:contain}
.none{margin:auto;color:#9aa3af}
h3{font-size:14px;margin:10px 12px 0;overflow-wrap:anywhere}
article p{color:var(--faint);margin:0 12px 8px;font-size:12px}
article .bar{margin:0 12px 6px}
article table{width:calc(100% - 24px);margin:0 12px;border-collapse:collapse;font-size:13px}
article td:last-child{text-align:right;font-variant-numeric:tabular-nums}
details{margin:6px 12px 0;font-size:12px;color:var(--faint)}
ul{margin:4px 0;padding-left:16px}
"""

SCRIPT = """
const all=[...document.querySelectorAll('article')],main=document.querySelector('main');
find.oninput=()=>{const q=find.value.toLowerCase();all.forEach(a=>a.hidden=!a.dataset.name.includes(q))};
sort.onchange=()=>{const k=sort.value,v=a=>+a.dataset.v.split(',')[k];
main.append(...(k=='n'?all:[...all].sort((a,b)=>v(b)-v(a))))};
"""

SHEET = """
body{max-width:1100px}
h2{font-size:15px;margin:0 0 8px}
.look{position:relative;border-radius:10px;overflow:hidden;background:#0d0e10;line-height:0}
.look img{width:100%}
#over{position:absolute;left:0;top:0}
.fade{display:flex;gap:10px;align-items:center;color:var(--faint);margin:10px 0 18px}
.fade input{flex:1;max-width:320px;padding:0}
.faint{color:var(--faint);font-size:12px;margin:6px 0 0}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(400px,1fr));gap:16px}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
section table{width:100%;border-collapse:collapse;margin-top:8px}
section td{padding:2px 0}
section td:not(:first-child){text-align:right;font-variant-numeric:tabular-nums}
section.wide{margin-top:16px}
section.wide td:not(:first-child){text-align:left;overflow-wrap:anywhere}
section.wide td:first-child{color:var(--faint);width:120px;vertical-align:top}
svg{width:100%}
svg polyline{fill:none;stroke-width:1.8}
svg line{stroke:var(--line)}
svg text{font-size:10px;fill:var(--faint)}
"""
