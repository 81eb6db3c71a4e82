"""The report's style sheet. No font, image or address from elsewhere; light and dark follow the reader's setting."""

from __future__ import annotations

from flows.report.markup import Markup

STYLE = Markup("""
:root{color-scheme:light dark;--paper:#fbfaf7;--card:#fff;--ink:#1c1c1a;--muted:#5b5952;--line:#dcd9d0;
--one:#0b5cad;--two:#a8480a;--three:#4d6b1f;--four:#7a3c8c;--faint:#b9b5a9}
@media (prefers-color-scheme:dark){:root{--paper:#151513;--card:#1e1e1b;--ink:#edeae3;--muted:#aca89d;--line:#383630;
--one:#82bbf6;--two:#f2a766;--three:#a9cc74;--four:#d3a1e3;--faint:#67645b}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,"Segoe UI",Roboto,"Helvetica Neue",
"DejaVu Sans",sans-serif;overflow-wrap:anywhere}
main,header,footer{max-width:1120px;margin:0 auto;padding:0 24px}
h1,h2,h3{font-family:"Iowan Old Style","Palatino Linotype",Palatino,Georgia,"DejaVu Serif",serif;line-height:1.2;
font-weight:600;margin:0}
h1{font-size:2.1rem;padding-top:36px}h2{font-size:1.55rem;margin:56px 0 6px}h3{font-size:1.12rem}
h4{font-size:.82rem;margin:0 0 6px;color:var(--muted);font-weight:600}
p{margin:6px 0}a{color:var(--one)}
.lead{font-size:1.2rem;max-width:46em;margin:10px 0 14px}
.sub,.none{color:var(--muted);max-width:52em}.small{font-size:.84rem;color:var(--muted)}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;border-block:1px solid var(--line);padding:9px 0;font-size:.92rem}
.keys{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:10px 26px;padding:0;margin:14px 0 0;
list-style:none;font-size:.9rem}
.keys b{display:block}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:18px;margin-top:16px}
.card,.row,.panel{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:16px;min-width:0}
.card p{margin:8px 0 0}
.row{margin-top:18px}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:18px;margin-top:14px}
.triple{display:grid;grid-template-columns:repeat(3,minmax(0,1fr)) minmax(0,.46fr);gap:8px;margin-top:10px}
.row .triple{max-width:760px}
.maps{display:flex;flex-direction:column;gap:6px;justify-content:flex-start}
figure{margin:0;min-width:0}
figcaption{font-size:.8rem;line-height:1.3;color:var(--muted);margin-bottom:4px}
figcaption b{color:var(--ink);font-size:.95rem}
.triple>figure>figcaption{min-height:2.6em;display:flex;flex-direction:column;justify-content:flex-end}
.maps figcaption{margin-bottom:2px}
.px{position:relative;line-height:0;overflow:hidden;border-radius:3px}
.px img{width:100%;height:auto;display:block}
.pixelated{image-rendering:pixelated}
.px svg{position:absolute;inset:0;width:100%;height:100%}
.px path{fill:none;vector-effect:non-scaling-stroke;stroke-linecap:square}
.rim{stroke:#111;stroke-width:3px;stroke-opacity:.7}.contour{stroke:#fff;stroke-width:1.3px}
.trio .rim,.maps .rim{stroke-width:2px}.trio .contour,.maps .contour{stroke-width:1px}
.close{margin-top:4px}
.side{display:grid;grid-template-columns:minmax(0,760px) minmax(190px,1fr);gap:20px;align-items:start}
@media (max-width:900px){.close{margin-top:4px}
.side{grid-template-columns:1fr}}
dl.numbers{margin:0;display:grid;grid-template-columns:auto auto;gap:2px 14px;font-size:.88rem;
justify-content:start;margin-top:12px}
dl.numbers dt{color:var(--muted)}dl.numbers dd{margin:0;font-variant-numeric:tabular-nums}
.chips{display:flex;flex-wrap:wrap;gap:6px;margin:8px 0 0;padding:0;list-style:none}
.chips li{border:1px solid var(--one);color:var(--one);border-radius:99px;padding:0 10px;font-size:.86rem}
.transfers{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,236px),1fr));gap:14px 20px;
margin-top:6px}
.trio{display:grid;grid-template-columns:repeat(3,1fr);gap:3px}
.other{border-top:1px solid var(--line);margin-top:16px;padding-top:12px}
.chart{width:100%;max-width:440px;height:auto;display:block;margin-top:10px}
.chart text{font-size:12.5px;fill:var(--muted);white-space:pre;paint-order:stroke;stroke:var(--card);
stroke-width:3px;stroke-linejoin:round}.chart .bar-title{fill:var(--ink);font-weight:600}
.chart .value{fill:var(--ink);font-variant-numeric:tabular-nums}
.rule{stroke:var(--line);stroke-width:1}.limit{stroke:var(--muted);stroke-width:1;stroke-dasharray:3 3}
.curve{fill:none;stroke-width:1.8}.s0{stroke:var(--one);fill:var(--one)}.s1{stroke:var(--two);fill:var(--two)}
.s2{stroke:var(--three);fill:var(--three)}.s3{stroke:var(--four);fill:var(--four)}
.curve.s1{stroke-dasharray:6 3}.curve.s2{stroke-dasharray:2 3}.curve.s3{stroke-dasharray:9 3 2 3}
polyline.curve{fill:none}.dot{stroke-width:0}
.bar.before{fill:var(--faint)}.bar.after{fill:var(--one)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;margin-top:8px}
th,td{text-align:left;padding:6px 18px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
td.value{font-variant-numeric:tabular-nums;white-space:nowrap}
th{font-weight:600;color:var(--muted)}
.lattice{border-spacing:3px;border-collapse:separate;table-layout:fixed;width:100%;max-width:640px}
.lattice td,.lattice th{border:0;padding:0;text-align:center;font-weight:400;font-size:.8rem;vertical-align:middle}
.lattice .axis{width:5.5em}
.steps{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:10px;margin-top:10px}
.steps figcaption{min-height:2.6em;display:flex;align-items:flex-end}
.terms{display:grid;grid-template-columns:minmax(120px,14em) 1fr;gap:6px 20px;margin-top:10px;font-size:.94rem}
.terms dt{font-weight:600}.terms dd{margin:0}
@media (max-width:600px){.terms{grid-template-columns:1fr}.terms dd{margin-bottom:8px}
main,header,footer{padding:0 14px}h1{font-size:1.6rem}
.triple,.row .triple{grid-template-columns:repeat(3,minmax(0,1fr))}.maps{grid-column:1/-1;flex-direction:row}
.maps figure{max-width:45%}}
details summary{cursor:pointer;font-weight:600;margin-top:12px}
footer{padding-block:36px 48px}
@media print{.row,.card,.panel{break-inside:avoid}}
""")
