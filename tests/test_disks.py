"""Disks that are full or read-only and paths that cannot be: a sentence, before the work where that can be known."""

import os
import pickle
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest

from causal_tune.atomic import atomic_directory, atomic_path, check_target, disk_error, write_text
from causal_tune.errors import DiskError, TrackingError
from causal_tune.features import sets, write_shard
from causal_tune.features.sets import load_study_data
from causal_tune.images.index import INDEX_SCHEMA, write_index
from causal_tune.ledger import Ledger, TrialRecord
from causal_tune.lock import owned
from causal_tune.study.run import _Run
from causal_tune.study.spec import read_spec
from causal_tune.tracking import EXPERIMENT, Tracker, default_uri
from tests.conftest import run_cli, write_images
from tests.study.tiny import make_tiny_spec
from tests.test_features import feature_values, make_store, rows_table

STORED = Path(__file__).parent / "stored"


def fill(disk: Path, leave: int = 0) -> Path:
    """Fill a small disk but for `leave` bytes, rounded to its blocks of 4 KiB."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
        file.truncate(max(0, file.tell() - leave))
    return path


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def write_a_shard(folder: Path) -> None:
    rows = list(range(64))
    write_shard(folder / "00000.arrow", rows_table(rows), {"proj": feature_values(rows)}, [])


def write_an_index(folder: Path) -> None:
    rows = [{"path": f"/{number:0200d}", "label": 0, "generator": "a", "split": ""} for number in range(5000)]
    filled = [{**dict.fromkeys(INDEX_SCHEMA.names), **row} for row in rows]
    write_index(pa.Table.from_pylist(filled, schema=INDEX_SCHEMA), folder / "index.parquet")


def write_a_trial(folder: Path) -> None:
    record = TrialRecord(number=0, id="00000-x", state="failed", config={"note": "x" * 9000}, seed=0)
    Ledger(folder).add(record)


def write_a_folder(folder: Path) -> None:
    with atomic_directory(folder / "detector") as temporary:
        (temporary / "model.safetensors").write_bytes(bytes(9000))


@pytest.mark.parametrize("write", [write_a_shard, write_an_index, write_a_trial, write_a_folder])
def test_a_full_disk_is_told_and_nothing_half_written_stays(small_disk: Path, write: object) -> None:
    filler = fill(small_disk, leave=4096)
    with pytest.raises(
        DiskError, match=rf"disk of {small_disk}.* has no space left: .* no part of it is left"
    ) as caught:
        write(small_disk / "folder")  # type: ignore[operator]
    assert ".tmp" not in str(caught.value)
    assert files(small_disk) == ["filler"]
    filler.unlink()
    write(small_disk / "folder")  # type: ignore[operator]
    assert len(files(small_disk)) == 1


def test_a_large_set_that_the_disk_has_no_room_for_ends_no_process(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(small_disk / "store", 300)
    fill(small_disk, leave=4096)
    monkeypatch.setattr(sets, "_IN_MEMORY_BYTES", 1000)
    with pytest.raises(DiskError, match="has no space left"):
        load_study_data(small_disk / "store", train_generators=["a"], test_generators=["b"])


def test_a_set_that_was_cut_is_gathered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path, 300)
    expected = load_study_data(tmp_path, train_generators=["a"]).train.features.clone()
    monkeypatch.setattr(sets, "_IN_MEMORY_BYTES", 100)
    for _ in range(2):
        assert load_study_data(tmp_path, train_generators=["a"]).train.features.equal(expected)
        for path in (tmp_path / "sets").iterdir():
            path.write_bytes(path.read_bytes()[:-100])


def test_a_read_only_disk_is_told(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for write in (write_a_shard, write_an_index, write_a_trial, write_a_folder, check_target):
        with pytest.raises(
            DiskError, match=rf"^{small_disk}.* cannot be written: its file system is read-only"
        ):
            write(small_disk / "folder")
    with pytest.raises(DiskError, match="read-only"), owned(small_disk / "store", "extraction"):
        pass


def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(DiskError, match="permission denied"):
        write_text(tmp_path / "a", "a")


def test_names_up_to_the_longest_are_written_and_longer_ones_told(tmp_path: Path) -> None:
    for name in ("n" * 255, "\N{GREEK SMALL LETTER ALPHA}" * 127):
        write_text(tmp_path / name, "whole")
        assert (tmp_path / name).read_text() == "whole"
    with atomic_directory(tmp_path / ("d" * 255)) as temporary:
        (temporary / "file").touch()
    for long in ("n" * 256, "\N{GREEK SMALL LETTER ALPHA}" * 128):
        for write in (check_target, lambda path: write_text(path, "")):
            with pytest.raises(DiskError, match=r"name is too long \(256 bytes; most"):
                write(tmp_path / long)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_path_through_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for write in (check_target, lambda path: write_text(path, "")):
        with pytest.raises(DiskError, match=r"/file.* cannot be written: a .*file"):
            write(tmp_path / "file" / "below")


def test_an_error_of_something_else_passes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "new"):
        (tmp_path / "source").read_bytes()
    assert disk_error(ConnectionResetError(104, "reset")) is None
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_read_is_a_paragraph_too() -> None:
    for words in (("predict", "d" * 300, "x"), ("audit", "i" * 300), ("export", "s" * 300)):
        result = run_cli(*words)
        assert result.exit_code in (1, 2)
        assert "its name is too long (300 bytes" in " ".join(result.output.split())


def test_the_error_of_a_worker_arrives_whole() -> None:
    error = pickle.loads(pickle.dumps(DiskError("The disk of /x is full.")))
    assert (str(error), error.exit_code) == ("The disk of /x is full.", 1)


@pytest.fixture(params=["full", "read-only", "name", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """Somewhere that nothing can be written to, and words that say why."""
    if request.param == "name":
        return tmp_path / ("n" * 250 + ".parquet"), "name is too long"
    if request.param == "file":
        (tmp_path / "file").touch()
        return tmp_path / "file" / "x.parquet", "is a file, not a folder"
    disk = request.getfixturevalue("small_disk")
    if request.param == "full":
        fill(disk)
        return disk / "x.parquet", "has no space left"
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    return disk / "x.parquet", "its file system is read-only"


@pytest.mark.parametrize(
    "words",
    [
        ("index", "nowhere"),
        ("export", "nowhere"),
        ("export", "nowhere", "--mlflow-model"),
        ("report", "nowhere"),
        ("compare", "nowhere"),
        ("audit", "nowhere"),
        ("predict", str(STORED / "detector-format-1"), "nowhere"),
    ],
    ids=" ".join,
)
def test_commands_say_so_before_they_look_at_anything(
    place: tuple[Path, str], words: tuple[str, ...]
) -> None:
    target, why = place
    option = () if words[-1].startswith("--") else ("-o",)
    result = run_cli(*words, *option, target)
    assert result.exit_code == 2
    assert why in " ".join(result.output.split())
    assert "nowhere" not in result.output


def test_a_trial_that_the_disk_has_no_room_for_is_not_kept_by_halves(
    small_disk: Path, tmp_path: Path
) -> None:
    study = _Run(make_tiny_spec(tmp_path), small_disk, 1, None, None)
    study.is_sure = True  # nothing but the trial is to be written
    record = TrialRecord(
        number=0, id="00000-x", state="finished", config={}, seed=0, checkpoint="00000-x.safetensors"
    )
    filler = fill(small_disk, leave=20_000)
    with pytest.raises(
        DiskError, match=r"checkpoints/00000-x\.safetensors was not written.*What was finished before"
    ):
        study._record(record, bytes(50_000))
    assert files(small_disk) == ["filler"]
    assert not study.records
    filler.unlink()
    study._record(record, bytes(50_000))
    assert [one.id for one in study.ledger.records()] == ["00000-x"]


def test_a_full_disk_keeps_a_study_from_mlflow_with_a_sentence(small_disk: Path) -> None:
    fill(small_disk, leave=200_000)  # MLflow's empty database takes more
    tracker = Tracker(default_uri(small_disk), EXPERIMENT, read_spec(STORED / "study-format-1"))
    with pytest.raises(TrackingError, match=r"mlflow\.db cannot grow: its disk is full\. Free some space"):
        tracker.start()


def test_a_full_disk_ends_an_extraction_with_a_sentence(
    small_disk: Path, tmp_path: Path, ray_local: None
) -> None:
    images = write_images(tmp_path / "images", {"alpha": 40})
    assert run_cli("index", images, "--layout", "csv", "-o", tmp_path / "i.parquet").exit_code == 0
    layers = "proj,pre,cls@1,cls@2,mean@1,mean@2"
    words = ["extract", tmp_path / "i.parquet", "--encoder", "tiny-random", "--layers", layers]
    words += ["--workspace", small_disk / "runs"]
    fill(small_disk, leave=70_000)  # 16 images take 24 KB
    result = run_cli(*words)
    assert result.exit_code == 1, result.output
    said = " ".join(result.output.split())
    assert "has no space left" in said
    assert "What was finished before is kept" in said
    assert "Traceback" not in said
    assert "ray" not in said.partition("Error: ")[2].lower()
