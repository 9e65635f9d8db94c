"""Names from outside stand as they are in every form: the terminal, HTML, Markdown and LaTeX."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.cells import cell_len

from causal_tune.cli.output import PlainConsole, table
from causal_tune.report.figures import roc
from causal_tune.report.page import html_page, markdown_page
from causal_tune.report.section import Report, Section
from causal_tune.report.tables import Table
from causal_tune.resampling import Scored
from causal_tune.study.spec import read_spec
from causal_tune.tracking.content import study_page
from causal_tune.wording import html, latex, markdown, shortened, visible

HOSTILE = [
    "sdxl[turbo]",
    "[/v2]",
    "[bold]x[/bold] :smile:",
    "a|b\\|c",
    "<script>alert(1)</script>",
    "&amp; &#60;b&#62;",
    "$\\frac$ 50%_of_{it} ~^#",
    "*a* _b_ __c__ ~~d~~ `e` ``f`` ![g](h) [i](j) [k]: l",
    "two\nlines\tand\r\n# a heading",
    "\x1b[31mred\x1b[0m\x07",
    "photo\u202egnp.exe",
    "caf\udce9",
    "x" * 300,
    "\N{GRINNING FACE} 生成",
    "ends in <",
    "- 1. > +",
    "--- ===",
]
SIGNS = st.sampled_from([*"[]\\|<>$_%&#{}~^`*!()/:;-+=.'\" \n\t\x1b\u202e\u2066aZ1é生", "\N{GRINNING FACE}"])
names = st.one_of(st.sampled_from(HOSTILE), st.text(SIGNS, min_size=1, max_size=40), st.text(max_size=40))
HIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class _Read(HTMLParser):
    """What a browser shows: the text of every element, and which elements there are."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def read(page: str) -> _Read:
    found = _Read()
    found.feed(page)
    found.close()
    return found


def plain(text: str) -> str:
    """As pages show text: runs of spaces are one."""
    return " ".join(visible(text).split())


def shown_in_terminal(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    console = PlainConsole(width=width, file=io.StringIO(), force_terminal=False)
    console.print(table(title, columns, rows))
    return console.file.getvalue()


@settings(deadline=None)
@given(names, st.sampled_from([80, 140]))
def test_the_terminal_shows_a_name_as_it_is(name: str, width: int) -> None:
    text = shown_in_terminal(name, ["generator", f"{name}>", "why<"], [[name, "1", name]], width)
    assert not HIDDEN.search(text)
    if cell_len(visible(name)) <= 24:  # what is longer than the screen goes on in the next line
        assert set(visible(name).split()) <= set(text.split())
    console = PlainConsole(width=width, file=io.StringIO(), force_terminal=False)
    console.print(name, soft_wrap=True)
    assert console.file.getvalue().split() == visible(name, keep="\n").split()


@settings(deadline=None)
@given(names)
def test_html_shows_a_name_as_it_is(name: str) -> None:
    found = read(f"<p>{html(name)}</p>")
    assert found.tags == {"p"}
    assert " ".join(found.cells[0].split()) == " ".join(visible(name, keep="\n").split())
    assert read(f'<p title="{html(name)}">').tags == {"p"}


RENDERER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


@settings(deadline=None)
@given(names)
def test_markdown_shows_a_name_as_it_is(name: str) -> None:
    found = read(RENDERER.render(markdown(name)))
    assert found.tags <= {"p"}
    assert " ".join("".join(found.cells).split()) == plain(name)


@settings(deadline=None)
@given(names, names)
def test_a_table_holds_its_cells_in_every_form(name: str, other: str) -> None:
    one = Table(name="t", caption="Names.", columns=["set", f"{other}>", "why<"], rows=[[name, other, name]])
    rendered = read(RENDERER.render(one.markdown()))
    assert rendered.tags == {"p", "table", "thead", "tbody", "tr", "th", "td"}
    cells = [" ".join(cell.split()) for cell in rendered.cells]
    expected = ["set", plain(other), "why", plain(name), plain(other), plain(name)]
    assert [cell for cell in cells if cell] == ["Names.", *filter(None, expected)]
    page = read(one.html())
    assert page.tags == {"p", "div", "table", "thead", "tbody", "tr", "th", "td"}
    lines = one.latex().split("\\toprule\n")[1].split("\\bottomrule")[0].splitlines()
    assert len(lines) == 3  # titles, rule, cells
    for line in (lines[0], lines[2]):
        assert len(re.findall(r"(?<!\\)&", line)) == 2
        check_latex(line.removesuffix(" \\\\").replace(" & ", " "))


def check_latex(text: str) -> None:
    """No sign that LaTeX takes for a command of its own, and as many braces closed as opened."""
    words = r"\\text(backslash|bar|asciitilde|asciicircum)\{\}|\\`\{\}|\\[&%$#_{}]|-\{\}-|\{\}"
    rest = re.sub(words + r"|\$(<|>|-|\\pm|\\dagger|\\ddagger)\$", "", text)
    assert not re.search(r"[\\&%$#_{}~^]", rest), rest
    assert "\n" not in text


@settings(deadline=None)
@given(names)
def test_latex_has_no_sign_left_bare(name: str) -> None:
    check_latex(latex(name))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_report_has_no_element_that_a_name_made(name: str) -> None:
    one = Table(name="t", caption=name, columns=["set"], rows=[[name]])
    section = Section(title=name, text=f"On {name}.", tables=[one], code=f"causal-tune tune '{name}'")
    report = Report(title=name, verdict=[f"Chosen by {name}."], sections=[section])
    page = html_page(report)
    assert "<script>alert" not in page
    assert not HIDDEN.search(page)
    rendered = read(RENDERER.render(markdown_page(report)))
    assert rendered.tags <= set(["h1", "h2", "p", "pre", "code", "table", "thead", "tbody", "tr", "th", "td"])


NUMBERS = [f"{number}.5 [{number}.1, {number}.9]" for number in range(10, 22)]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140, 320])
def test_a_table_that_is_too_wide_goes_on_below_and_breaks_nothing(width: int) -> None:
    heads = [f"measure{place}" for place in range(len(NUMBERS))]
    names = ["00004-2cbeddd6", "val_generators"]
    rows = [[name, *NUMBERS, "some words of text that may wrap"] for name in names]
    text = shown_in_terminal("Title of it all", ["trial", *heads, "note<"], rows, width)
    lines = text.splitlines()
    assert lines[0] == "Title of it all"
    assert max(cell_len(line.rstrip()) for line in lines) <= width
    for name in names:  # every part begins with the name of the row
        assert sum(line.split()[:1] == [name] for line in lines) == sum("trial" in line for line in lines)
    for number in NUMBERS:
        assert sum(number in line for line in lines) == len(names)
    assert set(heads) <= set(text.split())
    assert (sum("trial" in line for line in lines) == 1) == (width == 320)


def test_a_path_wider_than_the_screen_goes_on_in_the_next_line() -> None:
    path = "/data/" + "/".join(f"folder{number}" for number in range(30)) + "/image.jpg"
    text = shown_in_terminal("Scores", ["path", "score"], [[path, "0.5000"]], 80)
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    assert path in "".join(line.split()[0] for line in lines if line)
    assert any(line.endswith("0.5000") for line in lines)


@pytest.mark.parametrize("name", [name for name in HOSTILE if "\udce9" not in name])
def test_the_page_of_mlflow_has_no_element_that_a_name_made(name: str) -> None:
    stored = Path(__file__).parent / "stored" / "study-format-1"
    spec = replace(read_spec(stored), train_generators=(name,), val_generators=(name,))
    page = study_page(spec, None, verdict=f"A tie of {name}.")
    found = read(RENDERER.render(page))
    assert found.tags <= set(["p", "strong", "code", "pre", "table", "thead", "tbody", "tr", "th", "td"])
    assert plain(name) in {" ".join(cell.split()) for cell in found.cells}


def test_a_figure_shows_a_name_as_it_is() -> None:
    scored = Scored.of(np.array([-1.0, 1.0]), np.array([0, 1]))
    generators = ["_hidden", *(name for name in HOSTILE if "\udce9" not in name)]  # an index holds UTF-8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = roc(dict.fromkeys(generators, scored))
    texts = [one.text or "" for one in ElementTree.fromstring(drawn.svg).iter() if one.tag.endswith("text")]
    assert not any(HIDDEN.search(text) for text in texts)
    shown = {text.removeprefix("\N{ZERO WIDTH SPACE}") for text in texts}
    assert {shortened(visible(name), 28) for name in generators} <= shown
    assert set(drawn.data["set"].to_pylist()) == set(generators)


@pytest.mark.parametrize(
    "form", [visible, html, markdown, latex], ids=["terminal", "HTML", "Markdown", "LaTeX"]
)
def test_plain_names_stay_plain(form: Callable[[str], str]) -> None:
    assert form("stable-diffusion 1.4 (512 px)") == "stable-diffusion 1.4 (512 px)"


def test_a_long_name_is_shortened_in_its_middle() -> None:
    assert shortened("x" * 300, 40) == "x" * 20 + "…" + "x" * 19
    assert shortened("short", 40) == "short"
