"""`docs/paper_map.md` is complete, and everything it names exists."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import causal_tune.causal
from tests.reference import causal_numpy as reference

ROOT = Path(__file__).parents[2]
MAP = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")
MODULES = [module.name for module in pkgutil.iter_modules(causal_tune.causal.__path__)]
PUBLIC = [
    f"causal.{module}.{name}"
    for module in MODULES
    for name in importlib.import_module(f"causal_tune.causal.{module}").__all__
]


def column_of(name: str, text: str = MAP) -> list[str]:
    """The cells of the table row whose second column names `name`."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]
        if len(cells) == 7 and f"`{name}`" in cells[2]:
            return cells[1:6]
    return []


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_of_the_method_has_a_complete_row(name):
    cells = column_of(name)
    assert cells, f"docs/paper_map.md has no row for {name}"
    paper, _, _, test, deviation = cells
    assert paper
    assert deviation
    for path in re.findall(r"`(tests/[^`]+)`", test):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert name.rsplit(".", 1)[-1] in text or "HEADS" in text


def test_a_missing_row_is_found():
    assert column_of("causal.losses.hsic", MAP.replace("causal.losses.hsic", "elsewhere")) == []


def test_every_function_that_is_named_exists():
    for dotted in re.findall(r"`((?:causal|training)\.[\w.]+)`", MAP):
        module, name = dotted.rsplit(".", 1)
        assert hasattr(importlib.import_module(f"causal_tune.{module}"), name), dotted
    named = re.findall(r"`reference\.(\w+)`", MAP)
    assert len(named) > 10
    for name in named:
        assert hasattr(reference, name), name


def test_every_equation_from_4_to_13_has_a_row():
    first_cells = [line.split("|")[1] for line in MAP.splitlines() if line.startswith("| Eq")]
    numbers = set()
    for cell in first_cells:
        match = re.match(r" Eqs?\. \((\d+)\)(?:-\((\d+)\))?", cell)
        numbers |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    assert numbers == set(range(4, 14))
