"""Files of a workspace that were cut, emptied, zeroed or lost: a sentence that names the file, never a traceback."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from causal_tune.errors import CausalTuneError
from causal_tune.features import FeatureStore
from causal_tune.features.stores import list_stores
from causal_tune.images.index import INDEX_SCHEMA, read_index, write_index
from causal_tune.ledger import Ledger
from causal_tune.prediction import predict
from causal_tune.study.finalists import FINALISTS, read_finalists
from causal_tune.study.spec import read_spec
from tests.conftest import draw, run_cli
from tests.test_features import make_store

STORED = Path(__file__).parent / "stored"


def damages(content: bytes) -> Iterator[tuple[str, bytes]]:
    """A file as it may be found after a crash, a full disk or a bad copy."""
    size = len(content)
    for part in (0, 0.1, 0.5, 0.9, 0.99):
        yield f"cut at {part}", content[: int(part * size)]
    yield "less by a byte", content[:-1]
    yield "zeros", bytes(size)
    length = min(4096, max(1, size // 8))
    for begin in range(0, size, max(1, size // 12)):
        end = min(size, begin + length)
        yield f"zeros from {begin}", content[:begin] + bytes(end - begin) + content[end:]
    yield "noise", np.random.default_rng(0).bytes(size)


def told(use: Callable[[], Any]) -> str:
    """The sentence that it ends with; empty where it ends well."""
    try:
        use()
    except CausalTuneError as error:
        return str(error)
    return ""


def use_store(path: Path) -> None:
    list_stores(path.parents[1])
    store = FeatureStore(path)
    store.quarantine()
    found = store.features("proj", np.arange(store.rows.num_rows))
    assert np.isfinite(found).all()


def use_study(path: Path) -> None:
    spec = read_spec(path)
    spec.search_space()
    assert spec.roles.train_generators
    records = Ledger(path / "trials").records()
    assert all(record.config for record in records)
    read_finalists(path, len(records))


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    make_store(tmp_path / "stores" / "0123", 70, bad=frozenset({3, 68}))
    shutil.copytree(STORED / "study-format-1", tmp_path / "studies" / "old")
    (tmp_path / "studies" / "old" / FINALISTS).write_text(
        '{"format": 1, "budget": {"search_trials": 3}, "a": "b"}'
    )
    rows = [
        {"path": f"/{n}.png", "label": n % 2, "generator": "a", "split": "", "sha256": "0" * 64}
        for n in range(99)
    ]
    filled = [{**dict.fromkeys(INDEX_SCHEMA.names), **row} for row in rows]
    (tmp_path / "index").mkdir()
    write_index(pa.Table.from_pylist(filled, schema=INDEX_SCHEMA), tmp_path / "index" / "i.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("stores/0123/store.json", lambda workspace: use_store(workspace / "stores" / "0123")),
        ("stores/0123/shards/00000.arrow", lambda workspace: use_store(workspace / "stores" / "0123")),
        ("stores/0123/quarantine.arrow", lambda workspace: use_store(workspace / "stores" / "0123")),
        ("studies/old/study.json", lambda workspace: use_study(workspace / "studies" / "old")),
        ("studies/old/trials/*.json", lambda workspace: use_study(workspace / "studies" / "old")),
        ("studies/old/finalists.json", lambda workspace: use_study(workspace / "studies" / "old")),
        ("index/i.parquet", lambda workspace: read_index(workspace / "index" / "i.parquet")),
    ],
)
def test_a_damaged_file_is_named(workspace: Path, name: str, use: Callable[[Path], Any]) -> None:
    path = sorted(workspace.glob(name))[0]
    content = path.read_bytes()
    num_told = 0
    for _, damaged in damages(content):
        path.write_bytes(damaged)
        if message := told(lambda: use(workspace)):
            num_told += 1
            assert path.name in message or "0123" in message
            assert "\n" not in message
            assert len(message) < 800
    assert num_told > 6 or name.endswith("quarantine.arrow")  # the shards say the same
    path.unlink()
    message = told(lambda: use(workspace))
    assert not message or path.parent.name in message or path.parent.parent.name in message


def test_commands_end_with_a_paragraph(workspace: Path) -> None:
    for name, commands in {
        "stores/0123/store.json": (("stores",), ("stores", "gc")),
        "studies/old/study.json": (("leaderboard", "old"), ("stores", "gc"), ("export", "old")),
        "studies/old/trials/00000-*.json": (
            ("leaderboard", "old"),
            ("report", "old"),
            ("compare", "old", "old"),
        ),
        "index/i.parquet": (("audit", workspace / "index" / "i.parquet"),),
    }.items():
        path = next(workspace.glob(name))
        content = path.read_bytes()
        for damaged in (b"", content[: len(content) // 2], bytes(len(content)), b"null", b"{}", b"[]"):
            path.write_bytes(damaged)
            for words in commands:
                place = () if words[0] == "audit" else ("--workspace", workspace)
                result = run_cli(*words, *place)  # an exception of another kind comes through
                assert result.exit_code in (0, 2), (name, damaged[:20], words, result.output)
                assert result.exit_code == 0 or "Error: " in result.output
        path.write_bytes(content)


@pytest.mark.parametrize(
    "field", ["config", "generators", "epochs", "timings", "train_generators", "space", "versions"]
)
@pytest.mark.parametrize("value", ["null", "3", '"x"', "[]", "{}", "true"])
def test_a_field_of_another_kind_is_named(workspace: Path, field: str, value: str) -> None:
    for path in (workspace / "studies" / "old").rglob("*.json"):
        text = path.read_text()
        before = f'"{field}": '
        if before in text and path.name != FINALISTS:
            # the last one of a name that is there twice counts
            path.write_text(text.rstrip().removesuffix("}") + f', "{field}": {value}}}')
    spec = told(lambda: read_spec(workspace / "studies" / "old").search_space())
    records = told(lambda: Ledger(workspace / "studies" / "old" / "trials").records())
    is_empty = value in ("[]", "{}")  # may be of the right kind
    assert is_empty or f"its {field} is" in f"{spec} {records}"


def test_scores_that_were_damaged_are_made_again(tmp_path: Path) -> None:
    for number in range(65):
        draw(number, generated=False, size=32).save(tmp_path / f"{number:02d}.png")
    paths = sorted(map(str, tmp_path.glob("*.png")))
    output = tmp_path / "scores.csv"
    predict(STORED / "detector-format-1", paths, output)
    expected = output.read_bytes()
    kept = tmp_path / "kept"

    def keep(progress: Any) -> None:
        if progress.num_done == 65:
            shutil.copytree(tmp_path / ".scores.csv.parts", kept, dirs_exist_ok=True)

    predict(STORED / "detector-format-1", paths, output, on_progress=keep)
    for damaged in (b"", bytes(3000), (kept / "parts" / "00000.arrow").read_bytes()[:900]):
        shutil.copytree(
            kept, tmp_path / ".scores.csv.parts", ignore=shutil.ignore_patterns(".lock", ".owner.json")
        )
        (tmp_path / ".scores.csv.parts" / "parts" / "00000.arrow").write_bytes(damaged)
        output.unlink()
        done = predict(STORED / "detector-format-1", paths, output)
        assert done.num_done_before == 65 - 16  # parts of 16 images
        assert output.read_bytes() == expected
