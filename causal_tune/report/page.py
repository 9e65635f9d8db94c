"""A report as files: one HTML page without script or network, Markdown, and each table as CSV and LaTeX,
and each figure as SVG with its points as an Arrow file.
"""

import base64
import re
from pathlib import Path, PurePath

import pyarrow as pa

from causal_tune import __version__
from causal_tune.atomic import atomic_path, write_text
from causal_tune.report.figures import Drawing
from causal_tune.report.section import Picture, Report, Section
from causal_tune.wording import html, inline_html, inline_markdown, markdown, shortened

__all__ = ["html_page", "markdown_page", "write_report"]

_STYLE = """
:root { color-scheme: light dark; --line: #d5d9df; --soft: #5b6470; --back: #fff; --text: #1b1f24; --card: #f6f7f9;
  --mark: #0072B2; --shade: rgb(0 0 0 / 22%); }
@media (prefers-color-scheme: dark) { :root { --line: #3a4048; --soft: #a3adb9; --back: #15181c; --text: #e6e9ed;
  --card: #1e2227; --mark: #56B4E9; --shade: rgb(0 0 0 / 70%); } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 100rem;
  margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin: .4rem 0; } h2 { font-size: 1.25rem; margin: 0 0 .6rem; }
section { margin-top: 2.8rem; } p { max-width: 78ch; margin: .7rem 0; }
.verdict { background: var(--card); border-left: 4px solid var(--mark); padding: .4rem 1rem; max-width: 84ch; }
.verdict p { margin: .5rem 0; } .verdict p:first-child { font-weight: 600; }
nav { font-size: .9rem; margin-top: 1.2rem; } nav strong { color: var(--soft); font-weight: 600; }
nav ul { list-style: none; margin: .3rem 0; padding: 0; columns: 2; } nav li { break-inside: avoid; }
 nav a { color: inherit; text-decoration: none;
  display: block; padding: .12rem .4rem .12rem 0; } nav a:hover { color: var(--mark); text-decoration: underline; }
@media (min-width: 72rem) {
  body { display: grid; grid-template-columns: 13rem minmax(0, 1fr); column-gap: 2.4rem; padding: 1.4rem 2rem; }
  nav { position: sticky; top: 1.4rem; align-self: start; max-height: calc(100vh - 2.8rem); overflow-y: auto;
    margin: 0; }
  nav ul { columns: 1; } }
.wide { overflow-x: auto; margin: 0 0 1.4rem; background:
  linear-gradient(to right, var(--back) 40%, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--back) 40%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / .8rem 100% no-repeat,
  linear-gradient(to left, var(--shade), transparent) right / .8rem 100% no-repeat; }
.hint { display: none; color: var(--mark); font-size: .85rem; }
@media (max-width: 26rem) { .hint.w1 { display: block; } } @media (max-width: 44rem) { .hint.w2 { display: block; } }
@media (max-width: 64rem) { .hint.w3 { display: block; } } .hint.w4 { display: block; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
.caption, figcaption, footer { color: var(--soft); text-align: left; font-size: .9rem; }
.caption { margin: 1.2rem 0 .3rem; } figcaption { padding-top: .3rem; max-width: 78ch; }
th, td { padding: .28rem .55rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; } td.long { white-space: normal; min-width: 18rem; overflow-wrap: anywhere; }
td small { display: block; color: var(--soft); font-size: .85em; line-height: 1.2; }
th { vertical-align: bottom; line-height: 1.25; max-width: 9rem; } .text { text-align: left; }
th:first-child, td:first-child { padding-left: 0; }
.figures { display: flex; flex-wrap: wrap; gap: 1.6rem 2.4rem; align-items: flex-end; margin: 1.4rem 0; }
.figures figure { margin: 0; width: var(--width); max-width: 100%; overflow-x: auto; }
.figures svg { display: block; width: 100%; height: auto; min-width: calc(.72 * var(--width)); }
.figures .hint { flex-basis: 100%; margin: 0 0 -1.2rem; }
.shots { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.3rem, 1fr)); gap: .9rem;
  margin: .6rem 0 1.4rem; }
.shots figure { margin: 0; min-width: 0; } .shots img, .none { width: 100%; aspect-ratio: 1; border-radius: 4px;
  display: block; } .none { background: var(--card); color: var(--soft); font-size: .8rem; padding: .6rem;
  display: grid; place-content: center; text-align: center; }
.shots figcaption { font-size: .82rem; line-height: 1.3; overflow-wrap: anywhere; }
.shots strong { color: var(--text); }
h3 { font-size: 1rem; margin: 1rem 0 .2rem; }
pre { background: var(--card); padding: .8rem 1rem; font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-size: .9em; overflow-wrap: anywhere; }
footer { margin-top: 3rem; }
@media print { body { display: block; max-width: none; font-size: 11px; } nav, .hint { display: none; }
  h2 { break-after: avoid; } table, figure { break-inside: avoid; } }
"""

_PIXELS_OF_A_POINT = 1.5
"""Of figures: their text is as large as that of tables."""
_LEAST = 0.72
"""To what a narrow screen shrinks a figure; what is still wider scrolls."""


def html_page(report: Report) -> str:
    """One page that needs nothing beside itself; every text from outside is escaped."""
    verdict = "".join(f"<p>{inline_html(line)}</p>" for line in report.verdict)
    contents = "".join(
        f"<li><a href=#part-{place}>{html(section.title)}</a></li>"
        for place, section in enumerate(report.sections)
    )
    body = "\n".join(_html_section(section, place) for place, section in enumerate(report.sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html(report.title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<nav aria-label=Contents><strong>Contents</strong><ul>{contents}</ul></nav>\n"
        f"<main><h1>{html(report.title)}</h1>\n<div class=verdict>{verdict}</div>\n{body}\n"
        f"<footer>causal-tune {__version__}</footer></main></body></html>\n"
    )


def _html_section(section: Section, place: int) -> str:
    parts = [f"<section id=part-{place}><h2>{html(section.title)}</h2>"]
    parts += [f"<p>{inline_html(part)}</p>" for part in section.text.split("\n\n") if part]
    if section.code:
        parts.append(f"<pre><code>{html(section.code)}</code></pre>")
    for group in dict.fromkeys(picture.group for picture in section.pictures):
        shots = "".join(_html_picture(one) for one in section.pictures if one.group == group)
        parts.append(f"<h3>{html(group)}</h3><div class=shots>{shots}</div>")
    parts += [table.html() for table in section.tables]
    if section.figures:
        drawn = "\n".join(_html_figure(caption, drawing) for caption, drawing in section.figures.values())
        parts.append(f"<div class=figures>{drawn}</div>")
    return "\n".join([*parts, "</section>"])


def _html_figure(caption: str, drawing: Drawing) -> str:
    width = _PIXELS_OF_A_POINT * drawing.width
    breadth = sum(_LEAST * width > pixels for pixels in (360, 660))
    hint = f"<p class='hint w{breadth}'>The figure scrolls sideways &#8594;</p>" if breadth else ""
    return (
        f'{hint}<figure style="--width: {width:.0f}px">{drawing.svg}'
        f"<figcaption>{inline_html(caption)}</figcaption></figure>"
    )


def _html_picture(picture: Picture) -> str:
    if picture.jpeg:
        source = f"data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode()}"
        shown = f'<img alt="{html(picture.title)}" src="{source}">'
    else:
        shown = f"<div class=none>{html(picture.missing)}</div>"
    name = PurePath(picture.detail).name
    return (
        f'<figure title="{html(picture.detail)}">{shown}'
        f"<figcaption><strong>{html(picture.title)}</strong><br>{html(shortened(name, 48))}</figcaption></figure>"
    )


def markdown_page(report: Report) -> str:
    """The same in Markdown, with the figures as files beside it."""
    parts = [f"# {markdown(report.title)}", *map(inline_markdown, report.verdict)]
    for section in report.sections:
        parts.append(f"## {markdown(section.title)}")
        parts += [inline_markdown(part) for part in section.text.split("\n\n") if part]
        if section.code:
            fence = "`" * (1 + max(map(len, re.findall("``+", section.code)), default=2))
            parts.append(f"{fence}\n{section.code}\n{fence}")
        parts += [table.markdown() for table in section.tables]
        parts += [
            f"![{inline_markdown(caption)}](figures/{name}.svg)"
            for name, (caption, _) in section.figures.items()
        ]
    return "\n\n".join(parts) + "\n"


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write all files of a report to `folder`, and say which."""
    texts = {folder / "report.html": html_page(report), folder / "report.md": markdown_page(report)}
    drawings: dict[Path, Drawing] = {}
    for section in report.sections:
        for table in section.tables:
            texts[folder / "tables" / f"{table.name}.csv"] = table.csv()
            texts[folder / "tables" / f"{table.name}.tex"] = table.latex()
        for name, (_, drawing) in section.figures.items():
            texts[folder / "figures" / f"{name}.svg"] = drawing.svg
            drawings[folder / "figures" / f"{name}.arrow"] = drawing
    for path, text in texts.items():
        write_text(path, text)
    for path, drawing in drawings.items():
        with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), drawing.data.schema) as writer:
            writer.write_table(drawing.data)
    return [*texts, *drawings]
