"""The tables as LaTeX: a document that includes them compiles, whatever their cells hold."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from causal_tune.report.tables import Table
from tests.conftest import Finished, run_cli

NASTY = Table(
    name="nasty_name",
    caption='100 % of `--degrade jpeg-30`: {a} & b_c # $d$ ~ ^ \\ <e> | "f"',
    columns=["set", "what<", "AP, %"],
    rows=[
        ["[in brackets]", "first of a line", "90.0 [85.0, 94.0]"],
        ["* with a star", "the same", "-1.00 ± 2.00 †"],
        ["Zürich/été", "Latin letters", "81.50‡"],
        ["生成 → Ω", "letters that pdfLaTeX lacks", "undefined"],
        ["two\nlines", "a\ttab", ""],
    ],
)


def typeset(folder: Path, tables: Sequence[Path]) -> None:
    """Compile a document of the tables; the test fails with the compiler's own words."""
    compiler = shutil.which("pdflatex") or shutil.which("tectonic")
    if compiler is None:
        pytest.skip("neither pdflatex nor tectonic is installed (Debian: texlive-latex-recommended)")
    lines = ["\\documentclass{article}", "\\usepackage{booktabs,graphicx}", "\\begin{document}"]
    lines += [f"\\input{{{path}}}\n\\clearpage" for path in tables]
    source = folder / "document.tex"
    source.write_text("\n".join([*lines, "\\end{document}"]), encoding="utf-8")
    options = ["-interaction=nonstopmode", "-halt-on-error"] if compiler.endswith("pdflatex") else []
    done = subprocess.run(
        [compiler, *options, source.name],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Overfull" not in done.stdout  # no table is wider than the page
    assert (folder / "document.pdf").stat().st_size > 1000


def test_signs_and_letters_of_every_kind_compile(tmp_path: Path) -> None:
    path = tmp_path / "nasty.tex"
    path.write_text(NASTY.latex(), encoding="utf-8")
    typeset(tmp_path, [path])


def test_every_line_has_its_cells_and_no_sign_is_left_bare() -> None:
    body = NASTY.latex().split("\\toprule\n")[1].split("\\bottomrule")[0]
    lines = [line for line in body.splitlines() if line != "\\midrule"]
    assert len(lines) == 1 + len(NASTY.rows)
    for line in lines:
        assert line.replace("\\&", "").count("&") == 2
        assert line.endswith(" \\\\")
        assert not line.startswith(("[", "*"))  # which LaTeX takes for an option of the line's end before it


@pytest.mark.ray
@pytest.mark.slow
def test_the_tables_of_a_report_compile(finished: Finished, tmp_path: Path) -> None:
    result = run_cli("report", finished.study, "-o", tmp_path / "report", "--workspace", finished.workspace)
    assert result.exit_code == 0, result.output
    tables = sorted((tmp_path / "report" / "tables").glob("*.tex"))
    assert len(tables) >= 8
    typeset(tmp_path, tables)
