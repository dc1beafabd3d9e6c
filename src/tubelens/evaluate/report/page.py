"""The page: one file that needs nothing else, readable on a phone and on paper, in light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tubelens.evaluate.report.figures import Drawn, slug
from tubelens.evaluate.report.sections import Section
from tubelens.evaluate.report.tables import Column, Table, is_bold, marks, shown, slim
from tubelens.evaluate.report.thumbnails import Extreme

STYLE = """
:root{--ink:#1a1a1a;--soft:#667;--paper:#fff;--line:#dde;--card:#f6f7f9;--accent:#0b6bb3;--warn:#9a5b00;--warnbg:#fff6e5;
--shade:#0004}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8ea;--soft:#9aa3ad;--paper:#14161a;--line:#31363d;--card:#1c2026;
--accent:#6bb7f0;--warn:#f0b860;--warnbg:#2b2415;--shade:#fff3}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:1rem 1.1rem 4rem;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.6rem;margin:.6rem 0 .2rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.6rem 0 .3rem;border-top:1px solid var(--line);padding-top:1.2rem}
h3{font-size:1rem;margin:1.5rem 0 .3rem}
a{color:var(--accent)}
p{margin:.4rem 0 .8rem;max-width:48rem}
.soft,figcaption,.note{color:var(--soft);font-size:.87rem}
.tiles{display:flex;flex-wrap:wrap;gap:.6rem;margin:1rem 0;padding:0;list-style:none}
.tiles li{background:var(--card);border-radius:.5rem;padding:.5rem .9rem;color:var(--soft);font-size:.83rem}
.tiles b{display:block;font-size:1.25rem;color:var(--ink);font-weight:600}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.92rem}
.warn{background:var(--warnbg);border-left:3px solid var(--warn);padding:.5rem .9rem;margin:.8rem 0;
border-radius:0 .4rem .4rem 0}
.warn ul{margin:.2rem 0;padding-left:1.1rem}.warn summary,.warn b{color:var(--warn);font-weight:600}
.wide{overflow-x:auto;margin:.6rem 0;-webkit-overflow-scrolling:touch;
background:linear-gradient(90deg,var(--paper) 30%,transparent) 0 0/2.5rem 100%,
linear-gradient(270deg,var(--paper) 30%,transparent) 100% 0/2.5rem 100%,
linear-gradient(90deg,var(--shade),transparent) 0 0/.8rem 100%,
linear-gradient(270deg,var(--shade),transparent) 100% 0/.8rem 100%;
background-repeat:no-repeat;background-attachment:local,local,scroll,scroll}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.28rem .65rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{font-weight:600;vertical-align:bottom;white-space:normal}
thead tr:last-child th{border-bottom:1.5px solid var(--soft)}
th[colspan]{text-align:center}
th.t,td.t{text-align:left}
td.w{white-space:normal;min-width:14rem;max-width:34rem;overflow-wrap:anywhere}
.sticky td:first-child,.sticky th:first-child{position:sticky;left:0;background:var(--paper);
white-space:normal;min-width:7.5rem;max-width:16rem;overflow-wrap:break-word}
@media(max-width:40rem){.sticky td:first-child,.sticky th:first-child{max-width:8.5rem}}
tr.anchor td{color:var(--soft);font-style:italic}
tr.first td{border-top:1.5px solid var(--line)}
sup{font-size:.72em;line-height:0;margin-left:.1em}sup.x{color:var(--warn)}
th.s{cursor:pointer;user-select:none}th.s:hover{color:var(--accent)}
th[aria-sort=ascending]::after{content:" ▲";font-size:.7em}
th[aria-sort=descending]::after{content:" ▼";font-size:.7em}
figure{margin:1.2rem 0}figure svg{display:block;height:auto}
details{margin:.7rem 0}summary{cursor:pointer;color:var(--accent)}.warn summary{color:var(--warn)}
.clips{display:grid;
grid-template-columns:repeat(auto-fill,minmax(10.5rem,1fr));gap:.9rem;margin:.6rem 0 1.2rem}
.clip{background:var(--card);
border-radius:.5rem;overflow:hidden;font-size:.83rem;border-top:3px solid #009e73}
.clip.bad{border-top-color:#d55e00}.clip img{display:block;width:100%;height:auto;background:#000}
.clip div{padding:.4rem .6rem .55rem;overflow-wrap:anywhere}.clip .none{color:var(--soft);padding:1rem .6rem}
@media print{details:not([open])>*:not(summary){display:none}nav{display:none}}
"""
SCRIPT = """
document.querySelectorAll('th.s').forEach(function(th){th.tabIndex=0;
function go(){var table=th.closest('table'),body=table.tBodies[0],i=th.cellIndex,
up=th.getAttribute('aria-sort')!=='ascending';
table.querySelectorAll('th').forEach(function(o){o.removeAttribute('aria-sort')});
th.setAttribute('aria-sort',up?'ascending':'descending');
var rows=Array.prototype.slice.call(body.rows);
function key(r){var d=r.cells[i].dataset.v;return d===undefined?r.cells[i].textContent:d===''?null:+d}
rows.map(function(r,n){return[key(r),n,r]}).sort(function(a,b){
if(a[0]===null||b[0]===null)return(a[0]===null)-(b[0]===null)||a[1]-b[1];
var c=typeof a[0]==='number'?a[0]-b[0]:a[0].localeCompare(b[0]);return(up?c:-c)||a[1]-b[1]})
.forEach(function(x){x[2].classList.remove('first');body.appendChild(x[2])})}
th.addEventListener('click',go);
th.addEventListener('keydown',function(e){if(e.key==='Enter'||e.key===' '){e.preventDefault();go()}})});
"""
FEW = 3
"""So many warnings are shown open."""
TEXTS = ("reason", "clip", "repr", "value")
"""Columns that may take several lines."""


def page(title: str, parts: Iterable[str]) -> str:
    """A document of these parts; nothing in it comes from a network."""
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        f"{body}\n<script>{SCRIPT}</script>\n</body></html>\n"
    )


def head(title: str, said: str, tiles: Sequence[tuple[str, str]], links: Sequence[tuple[str, str]]) -> str:
    """The title, one line below it, numbers in tiles, and links to what follows."""
    numbers = "".join(f"<li><b>{escape(v)}</b>{escape(k)}</li>" for k, v in tiles)
    nav = "".join(f'<a href="#{escape(at)}">{escape(text)}</a>' for text, at in links)
    return (
        f'<h1>{escape(title)}</h1><p class="soft">{escape(said)}</p>'
        f'<ul class="tiles">{numbers}</ul><nav>{nav}</nav>'
    )


def warning_box(warnings: Sequence[str], about: str) -> str:
    """Warnings, those after the third folded away; empty without any."""
    if not warnings:
        return ""
    items = [f"<li>{escape(w)}</li>" for w in warnings]
    more = ""
    if len(items) > FEW:
        more = folded(f"and {len(items) - FEW} more", f"<ul>{''.join(items[FEW:])}</ul>")
    return f'<div class="warn"><b>⚠ {escape(about)}</b><ul>{"".join(items[:FEW])}</ul>{more}</div>'


def metric_section(found: Section) -> str:
    """All of one metric."""
    grave = any(loss.shown for loss in found.losses)
    loses = "A map that loses to one that looks at no model says little at this metric"
    about = loses if grave else "Read with care"
    shown_first = found.summary or found.full
    parts = [
        f'<h2 id="{slug(found.metric.name)}">{escape(found.metric.title)}</h2>'
        f'<p class="soft">{escape(found.metric.direction.capitalize())}.</p>',
        warning_box(found.warnings, about),
        html_table(shown_first),
        *(figure(drawn) for drawn in found.figures),
        folded("All numbers", html_table(found.full)) if found.summary else "",
        folded("By class", html_table(found.classes)) if found.classes else "",
    ]
    return "".join(parts)


def folded(title: str, inside: str) -> str:
    """Something that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def figure(drawn: Drawn) -> str:
    """The drawing in the page, its words below it."""
    return (
        f'<figure aria-label="{escape(drawn.title)}"><h3>{escape(drawn.title)}</h3>'
        f'<div class="wide">{drawn.inline()}</div>'
        f"<figcaption>{escape(drawn.note)}</figcaption></figure>"
    )


def html_table(table: Table) -> str:
    """A table that sorts on a click on a heading of its lowest line; the first column stays in sight. What is
    the same in all lines stands in its title.
    """
    table = slim(table)
    above = "".join(
        "<tr>" + "".join(f'<th colspan="{n}">{escape(text)}</th>' for text, n in level) + "</tr>"
        for level in table.above
    )
    heads = "".join(
        f'<th class="s{" t" if c.kind == "text" else ""}" scope="col">{escape(c.title)}</th>'
        for c in table.columns
    )
    rows, before = [], False
    for row in table.rows:
        anchor = bool(row.get("anchor"))
        kind = "anchor first" if anchor and not before else "anchor" if anchor else ""
        before = anchor
        cells = "".join(_cell(row, column) for column in table.columns)
        rows.append(f'<tr class="{kind}">{cells}</tr>' if kind else f"<tr>{cells}</tr>")
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    sticky = " sticky" if table.columns and table.columns[0].fields[0] == "method" else ""
    return (
        f'<h3>{escape(table.title)}</h3><div class="wide{sticky}">'
        f"<table><thead>{above}<tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def _cell(row: Mapping[str, Any], column: Column) -> str:
    text = escape(shown(row, column))
    if column.kind == "text":
        wide = " w" if column.fields[0] in TEXTS else ""
        return f'<td class="t{wide}">{text}</td>'
    value = row.get(column.fields[0])
    number = "" if value is None or not math.isfinite(value) else f"{float(value):.6g}"
    if is_bold(row, column):
        text = f"<b>{text}</b>"
    signs = "".join(
        f'<sup class="x" title="{escape(str(row.get("warning", "")))}">⚠</sup>'
        if s == "⚠"
        else f"<sup>{s}</sup>"
        for s in marks(row, column)
    )
    return f'<td data-v="{number}">{text}{signs}</td>'


def clips(found: Sequence[Extreme]) -> str:
    """Pictures of the clips at both ends, place by place."""
    parts = []
    for panel in dict.fromkeys(e.panel for e in found):
        mine = [e for e in found if e.panel is panel]
        cards = "".join(_card(e) for e in mine)
        title = f"{panel.place}: {mine[0].method} by {panel.metric.title}"
        parts.append(f'<h3>{escape(title)}</h3><div class="clips">{cards}</div>')
    return "".join(parts)


def _card(e: Extreme) -> str:
    if e.picture:
        picture = (
            f'<img src="{e.picture}" alt="middle frame of {escape(e.name)} with its heat" loading="lazy">'
        )
    else:
        picture = f'<div class="none">{escape(e.why)}</div>' if e.why else ""
    return (
        f'<div class="clip{" bad" if e.worst else ""}">{picture}<div><b>{"worst" if e.worst else "best"}: '
        f"{e.value:.3f}</b><br>{escape(e.label)}<br>"
        f'<span class="soft" title="{escape(e.name)}">{escape(Path(e.name).name)}</span></div></div>'
    )
