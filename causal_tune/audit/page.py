"""An audit as one HTML page: no script, no network, readable in light and dark."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from causal_tune import __version__
from causal_tune.audit.findings import Audit, Finding, ImageRef
from causal_tune.audit.words import count_rows, method_name, number_text, score_rows
from causal_tune.wording import html, inline_html, plural

__all__ = ["html_page"]

_STYLE = """
:root { color-scheme: light dark; --line: #d5d9df; --soft: #5b6470; --back: #fff; --text: #1b1f24;
  --bad: #b3261e; --note: #7a5b00; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) { :root { --line: #3a4048; --soft: #9aa4b0; --back: #15181c; --text: #e6e9ed;
  --bad: #ff8a80; --note: #e3c15a; --card: #1e2227; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.lead, footer, caption, .step, figcaption { color: var(--soft); }
.verdict { font-size: 1.1rem; font-weight: 600; }
article { border-left: 4px solid var(--note); background: var(--card); padding: .6rem 1rem; margin: .8rem 0; }
article.finding { border-color: var(--bad); }
article h3 { font-size: .9rem; margin: 0; color: var(--note); }
article.finding h3 { color: var(--bad); }
article p { margin: .3rem 0; overflow-wrap: anywhere; } code { overflow-wrap: anywhere; }
.shots { display: flex; flex-wrap: wrap; gap: .6rem; margin: .3rem 0 .8rem; } .shots img { max-height: 8rem; }
summary { cursor: pointer; color: var(--soft); } details ul { margin: .3rem 0; padding-left: 1.2rem; }
.wide { overflow-x: auto; background:
  linear-gradient(to right, var(--back) 40%, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--back) 40%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to right, rgb(0 0 0 / 25%), transparent) left / .8rem 100% no-repeat,
  linear-gradient(to left, rgb(0 0 0 / 25%), transparent) right / .8rem 100% no-repeat; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; } .text { text-align: left; } .alarm { color: var(--bad); font-weight: 700; }
footer { margin-top: 3rem; font-size: .85rem; }
"""

_KINDS = {
    "leak": "Leak",
    "near_leak": "Leak of near copies",
    "both_labels": "Both labels",
    "bias": "Shortcut",
    "one_class": "One class",
    "imbalance": "Imbalance",
    "unreadable": "Unreadable",
    "shared_reals": "Shared real images",
    "duplicates": "Copies",
    "near_duplicates": "Near copies",
    "resized": "Resized",
    "too_few": "Too few images",
    "skipped": "Files left out",
    "not_checked": "Not checked",
}


def html_page(audit: Audit, source: str, pictures: Mapping[str, bytes] = MappingProxyType({})) -> str:
    """The page of an audit of `source` (a path, as given); every text from outside is escaped.

    `pictures` are JPEGs of examples, by path.
    """
    findings = [item for item in audit.findings if item.severity == "finding"]
    notes = [item for item in audit.findings if item.severity == "note"]
    trains = (
        f"Training generators: {', '.join(map(html, audit.train_generators))}."
        if audit.train_generators
        else "What trains and what judges: the splits of the index."
    )
    names, scores = score_rows(audit.probes)
    probes = [
        [
            html(item.scope or "all"),
            f"{item.num_real:,}",
            f"{item.num_generated:,}",
            "-" if item.prevalence is None else f"{item.prevalence:.2f}",
            *(
                f'<span class="alarm">{number_text(s)}</span>' if s and s.is_alarming else number_text(s)
                for s in row
            ),
        ]
        for item, row in zip(audit.probes, scores, strict=True)
    ]
    matches = [
        [
            method_name(item),
            f"{item.num_compared:,}",
            f"{item.num_groups:,}",
            f"{item.num_images:,}",
            f"{item.num_shared_reals:,}",
            f"{item.num_both_labels:,}",
            f"{item.num_leaks:,}",
        ]
        for item in audit.matches
    ]
    parts = [
        f"<h1>Audit of {html(source)}</h1>",
        f'<p class="lead">{plural(audit.num_images, "image")}. {trains}</p>',
        f'<p class="verdict">{plural(len(findings), "finding")}, {plural(len(notes), "note")}.</p>',
        *(["<h2>Findings</h2>"] if findings else []),
        *(_article(item, pictures) for item in findings),
        *(["<h2>Notes</h2>"] if notes else []),
        *(_article(item, pictures) for item in notes),
        "<h2>Images</h2>",
        _table(
            "", ["generator", "split", "class", "format", "images"], _escaped(count_rows(audit)), num_text=4
        ),
        "<h2>What the files alone give away</h2>",
        _table(
            "Average precision, both classes weighted equally, of a classifier that sees only these properties of "
            "the files; cross-validated. 0.50 is chance.",
            ["generator", "real", "generated", "prevalence", *names],
            probes,
        ),
        "<h2>Copies</h2>",
        _table(
            "Groups of images that show the same picture.",
            ["compared by", "contents", "groups", "images in them", "shared reals", "both labels", "leaks"],
            matches,
        ),
    ]
    if audit.unreadable:
        rows = [[html(reason), f"{number:,}"] for reason, number in audit.unreadable.items()]
        parts += ["<h2>Unreadable images</h2>", _table("", ["reason", "images"], rows)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Audit of {html(source)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + f"\n</main><footer>causal-tune {__version__}</footer></body></html>\n"
    )


def _article(item: Finding, pictures: Mapping[str, bytes]) -> str:
    examples = ""
    if item.examples:
        groups = "".join(
            f"<li>{' = '.join(map(_reference, group))}{_shown(group, pictures)}</li>"
            for group in item.examples
        )
        examples = f"<details><summary>Examples</summary><ul>{groups}</ul></details>"
    title = _KINDS[item.kind] + (f": {html(item.subject)}" if item.subject else "")
    return (
        f'<article class="{item.severity}"><h3>{title}</h3><p>{inline_html(item.what)}</p>'
        f'<p class="step">Next: {inline_html(item.next_step)}</p>{examples}</article>'
    )


def _reference(item: ImageRef) -> str:
    kind = "generated" if item.label else "real"
    split = f"/{item.split}" if item.split else ""
    return f"<code>{html(item.path)}</code> ({html(item.generator)}{html(split)}, {kind})"


def _shown(group: Sequence[ImageRef], pictures: Mapping[str, bytes]) -> str:
    shots = [
        f'<img alt="{html(one.path)}" title="{html(one.path)}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(pictures[one.path]).decode()}">'
        for one in group
        if one.path in pictures
    ]
    return f"<div class=shots>{''.join(shots)}</div>" if shots else ""


def _table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], num_text: int = 1) -> str:
    """A table of cells that are HTML already; the first `num_text` columns are text."""

    def cells(tag: str, values: Sequence[str]) -> str:
        classes = [' class="text"' if place < num_text else "" for place in range(len(values))]
        return "".join(f"<{tag}{name}>{value}</{tag}>" for name, value in zip(classes, values, strict=True))

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<caption>{caption}</caption>" if caption else ""
    return (
        f'<div class="wide"><table>{head}<thead><tr>{cells("th", columns)}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _escaped(rows: Iterable[Sequence[str]]) -> list[list[str]]:
    return [[html(cell) for cell in row] for row in rows]
