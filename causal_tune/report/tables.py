"""One table, written as Markdown, LaTeX, CSV and HTML, and how numbers stand in its cells."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from causal_tune.wording import (
    html,
    inline_html,
    inline_latex,
    inline_markdown,
    latex,
    markdown_cell,
    title_of,
)

__all__ = ["Table", "over_seeds", "percent", "signed", "with_ends"]


_LONG = 60
"""Characters of a cell that stay on one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Cells as text; the first column is a name, the others are numbers unless `<` ends their title.

    A title that comes from outside ends in `>` (`wording.title_of`).
    """

    name: str
    """Its file's name."""
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def titles(self) -> list[str]:
        """The columns without their marks."""
        return [*map(title_of, self.columns)]

    def _is_text(self, place: int) -> bool:
        return place == 0 or self.columns[place].endswith("<")

    def _kind(self, place: int, value: str) -> str:
        names = ["text"] * self._is_text(place) + ["long"] * (len(value) > _LONG)
        return f' class="{" ".join(names)}"' if names else ""

    def _breadth(self) -> int:
        """How wide a screen has to be for all columns: 0 for any, 1 a phone's, 2 a tablet's, 3 a desktop, 4 more."""
        widths = []
        for place, title in enumerate(self.titles):
            words = max(map(len, title.split()), default=0)
            values = [max(map(len, _ENDS.sub(r"\1\n\2", row[place]).split("\n"))) for row in self.rows]
            widths.append(min(max([words, *values]), _LONG) + 2)
        return sum(sum(widths) > limit for limit in (46, 84, 126, 160))

    def markdown(self) -> str:
        """A pipe table under its caption.

        >>> print(Table(name="t", caption="Two.", columns=["a", "b"], rows=[["x|y", "1"]]).markdown())
        Two.
        <BLANKLINE>
        | a | b |
        |---|--:|
        | x\\|y | 1 |
        """

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(map(markdown_cell, cells)) + " |"

        rule = "|".join("---" if self._is_text(place) else "--:" for place in range(len(self.columns)))
        return "\n".join(
            [inline_markdown(self.caption), "", line(self.titles), f"|{rule}|", *map(line, self.rows)]
        )

    def latex(self) -> str:
        """A `table` with a `tabular` of booktabs, made smaller (graphicx) where it is wider than the line."""
        places = "".join("l" if self._is_text(place) else "r" for place in range(len(self.columns)))

        def line(cells: Sequence[str]) -> str:
            text = " & ".join(map(latex, cells)) + r" \\"
            # LaTeX takes a bracket or star after the line before it for an option of that line's end
            return "{}" * text.startswith(("[", "*")) + text

        caption = inline_latex(self.caption)
        body = "\n".join(map(line, self.rows))
        fit = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
        return (
            "\\begin{table}\n\\centering\n\\caption{" + caption + "}\n\\label{tab:" + self.name + "}\n"
            f"{fit}\n\\begin{{tabular}}{{{places}}}\n\\toprule\n{line(self.titles)}\n\\midrule\n{body}\n\\bottomrule\n"
            "\\end{tabular}}\n\\end{table}\n"
        )

    def csv(self) -> str:
        """Comma-separated, with a header."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.titles)
        writer.writerows(self.rows)
        return text.getvalue()

    def html(self) -> str:
        """A table that scrolls where the screen is narrow, and says so; every text is escaped."""

        def cells(tag: str, values: Sequence[str]) -> str:
            return "".join(
                f"<{tag}{self._kind(place, value)}>{_with_small_ends(value)}</{tag}>"
                for place, value in enumerate(values)
            )

        body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in self.rows)
        breadth = self._breadth()
        hint = f"<p class='hint w{breadth}'>The table scrolls sideways &#8594;</p>\n" if breadth else ""
        return (
            f"<p class=caption id=tab-{html(self.name)}>{inline_html(self.caption)}</p>\n{hint}"
            f"<div class=wide tabindex=0><table aria-labelledby=tab-{html(self.name)}>\n"
            f"<thead><tr>{cells('th', self.titles)}</tr></thead>\n<tbody>{body}</tbody></table></div>"
        )


_ENDS = re.compile(r"([-+]?[\d.]+) (\[[-+]?[\d.]+, [-+]?[\d.]+\]|± [\d.]+)( [*†‡])?")


def _with_small_ends(cell: str) -> str:
    """A cell as HTML, with an interval below its value.

    >>> _with_small_ends("90.0 [85.0, 94.0] †")
    '90.0 †<small>[85.0, 94.0]</small>'
    """
    if found := _ENDS.fullmatch(cell):
        return f"{html(found[1] + (found[3] or ''))}<small>{html(found[2])}</small>"
    return html(cell)


def percent(value: float | None, digits: int = 2) -> str:
    """A share of 1 in per cent.

    >>> percent(0.98765), percent(None)
    ('98.77', 'undefined')
    """
    return "undefined" if value is None else f"{100 * value:.{digits}f}"


def with_ends(value: float | None, ends: Sequence[float] | None) -> str:
    """A share in per cent, with the ends of its interval where there is one.

    >>> with_ends(0.9, (0.85, 0.94))
    '90.0 [85.0, 94.0]'
    """
    if value is None or ends is None:
        return percent(value, 1)
    return f"{percent(value, 1)} [{percent(ends[0], 1)}, {percent(ends[1], 1)}]"


def signed(value: float, ends: Sequence[float] | None) -> str:
    """A difference in points, with the ends of its interval where there is one.

    >>> signed(0.01, (-0.02, 0.04))
    '+1.00 [-2.00, +4.00]'
    """
    text = f"{100 * value:+.2f}"
    return text if ends is None else f"{text} [{100 * ends[0]:+.2f}, {100 * ends[1]:+.2f}]"


def over_seeds(interval: Mapping[str, Any], *, signed: bool = False) -> str:
    """A mean over seeds in per cent, with half of its interval where there is one.

    >>> over_seeds({"mean": 0.9, "high": 0.91}), over_seeds({"mean": 0.01, "high": None}, signed=True)
    ('90.00 ± 1.00', '+1.00')
    """
    if not math.isfinite(interval["mean"]):
        return "undefined"
    text = f"{100 * interval['mean']:+.2f}" if signed else f"{100 * interval['mean']:.2f}"
    return text if interval["high"] is None else f"{text} ± {100 * (interval['high'] - interval['mean']):.2f}"
