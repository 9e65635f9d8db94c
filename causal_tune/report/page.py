"""A report as files: one HTML page without script or network, Markdown, and each table as CSV and LaTeX,
and each figure as SVG with its points as an Arrow file.
"""

import re
from pathlib import Path

import pyarrow as pa

from causal_tune import __version__
from causal_tune.atomic import atomic_path, write_text
from causal_tune.report.figures import Drawing
from causal_tune.report.section import Report, Section
from causal_tune.wording import html, inline_html, inline_markdown, markdown

__all__ = ["html_page", "markdown_page", "write_report"]

_STYLE = """
:root { color-scheme: light dark; --line: #d5d9df; --soft: #5b6470; --back: #fff; --text: #1b1f24; --card: #f6f7f9;
  --mark: #0072B2; }
@media (prefers-color-scheme: dark) { :root { --line: #3a4048; --soft: #9aa4b0; --back: #15181c; --text: #e6e9ed;
  --card: #1e2227; --mark: #56B4E9; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 64rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin-bottom: .4rem; } h2 { font-size: 1.2rem; margin-top: 2.6rem; }
.verdict { background: var(--card); border-left: 4px solid var(--mark); padding: .4rem 1rem; }
.verdict p { margin: .5rem 0; } .verdict p:first-child { font-weight: 600; }
.wide { overflow-x: auto; margin: 0 0 1.4rem; } .caption { margin: 1.2rem 0 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
.caption, figcaption, footer { color: var(--soft); text-align: left; font-size: .9rem; padding-bottom: .4rem; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { vertical-align: bottom; } .text { text-align: left; }
figure { margin: 1.4rem 0; } figure svg { max-width: 100%; height: auto; }
pre { background: var(--card); padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; }
code { font-size: .9em; }
footer { margin-top: 3rem; }
@media print { body { max-width: none; font-size: 11px; } h2 { break-after: avoid; }
  table, figure { break-inside: avoid; } }
"""


def html_page(report: Report) -> str:
    """One page that needs nothing beside itself; every text from outside is escaped."""
    verdict = "".join(f"<p>{inline_html(line)}</p>" for line in report.verdict)
    body = "\n".join(map(_html_section, report.sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html(report.title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{html(report.title)}</h1>\n<div class=verdict>{verdict}</div>\n{body}\n"
        f"<footer>causal-tune {__version__}</footer></body></html>\n"
    )


def _html_section(section: Section) -> str:
    parts = [f"<section><h2>{html(section.title)}</h2>"]
    parts += [f"<p>{inline_html(part)}</p>" for part in section.text.split("\n\n") if part]
    if section.code:
        parts.append(f"<pre><code>{html(section.code)}</code></pre>")
    parts += [table.html() for table in section.tables]
    parts += [
        f"<figure>{drawing.svg}<figcaption>{inline_html(caption)}</figcaption></figure>"
        for caption, drawing in section.figures.values()
    ]
    return "\n".join([*parts, "</section>"])


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
