"""Scores of any number of images: files in, one row each out, in order. An interrupted run continues.

The images are read and scored in pieces, by the same tasks and actors as an extraction. A piece's scores are a file
in a folder beside the output, written under a temporary name and renamed; when all are there they are joined in
order, and the folder goes.

    .scores.csv.parts/
        task.json          what the parts are a function of; parts of anything else are made anew
        parts/00000.arrow  score, probability, verdict, note and reason of 16 or 64 images
"""

import csv
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from causal_tune import cluster
from causal_tune.atomic import atomic_path, write_json
from causal_tune.detector import Detector, load_detector
from causal_tune.errors import InvalidConfig
from causal_tune.extraction import run_pieces
from causal_tune.images.files import join, kind_of, located
from causal_tune.images.pieces import read_piece
from causal_tune.images.walk import list_images
from causal_tune.lock import owned

__all__ = ["SUFFIXES", "Prediction", "ScoreProgress", "Scored", "image_paths", "predict"]

SUFFIXES = (".csv", ".jsonl", ".parquet")
"""What an output's name may end in."""

_NO_RAY = 128
"""Images up to which this process scores by itself: to start Ray takes longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One image: what `detector.Score` says of it, or the reason why there is none."""

    path: str
    """As it was named; bytes that are not UTF-8 are shown as `\\xff`, for tables hold text."""
    score: float | None
    probability: float | None
    verdict: str | None
    note: str | None
    """Why the picture cannot be judged; its verdict is `unsure` whatever the score."""
    reason: str | None
    """Why there is no score."""
    model: str
    """`Detector.id` of the detector that was asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreProgress:
    """How far a prediction is, in images."""

    num_images: int
    num_done: int
    num_unreadable: int
    stage: str = ""
    """What is being done before the first images, such as `starting Ray`; empty while images are scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A finished prediction."""

    num_images: int
    verdicts: Mapping[str, int]
    """Images by verdict."""
    num_noted: int
    """Of those that are `unsure`, the images with a note."""
    num_unreadable: int
    num_done_before: int
    """Of an earlier run that was interrupted."""
    elapsed_s: float
    first: list[Scored]
    """The first rows, up to the number that was asked for."""


def image_paths(inputs: Sequence[str]) -> tuple[list[str], Counter[str]]:
    """The images that `inputs` name, and the numbers of other files that the folders among them hold, by reason.

    A file is taken as it is named, whatever its suffix and whether it is there or not; a folder, local or behind a
    URI, gives its files with an image's suffix or none, at any depth, sorted. `IndexingError` where a folder cannot
    be listed.
    """
    chosen: list[str] = []
    skipped: Counter[str] = Counter()
    for name in inputs:
        where = located(name)
        if kind_of(where) != "folder":
            chosen.append(name)
            continue
        tree = list_images(where, any_name=True)
        chosen += [join(name, *folder.parts, image) for folder in tree.folders for image in folder.names]
        skipped += tree.skipped
    return chosen, skipped


def _piece_size(num_images: int) -> int:
    """Images that are read, scored and kept at a time: few where there are few, which shows progress at once."""
    return 16 if num_images <= 4_096 else 64


class _PieceScorer:
    """One actor: a detector that turns decoded pieces into files."""

    def __init__(
        self, detector: str, runtime: str, num_threads: int | None = None, batch_size: int = 64
    ) -> None:
        self.detector = load_detector(detector)
        self.detector.encoder(runtime, num_threads)
        self.batch_size = batch_size

    def __call__(self, read: dict[str, Any]) -> dict[str, Any]:
        crops, sizes, reasons = read["crops"], json.loads(read["sizes"]), json.loads(read["reasons"])
        scores = iter(
            [
                score
                for begin in range(0, len(crops), self.batch_size)
                for score in self.detector.score_crops(
                    crops[begin : begin + self.batch_size], sizes[begin : begin + self.batch_size]
                )
            ]
        )
        rows = [asdict(next(scores)) if reason is None else {"reason": reason} for reason in reasons]
        with (
            atomic_path(Path(read["part"])) as temporary,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, _PART) as writer,
        ):
            writer.write_table(pa.Table.from_pylist(rows, schema=_PART))
        return {"piece": read["piece"]}


_PART = pa.schema(
    [
        ("score", pa.float64()),
        ("probability", pa.float64()),
        ("verdict", pa.string()),
        ("note", pa.string()),
        ("reason", pa.string()),
    ]
)
_ROW = pa.schema([("path", pa.string()), *_PART, ("model", pa.string())])


def predict(
    detector: Path,
    paths: Sequence[str],
    output: Path | None = None,
    *,
    runtime: str = "auto",
    batch_size: int = 64,
    num_actors: int | None = None,
    gpus_per_actor: float = 0.0,
    address: str | None = None,
    num_first: int = 0,
    on_progress: Callable[[ScoreProgress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Prediction:
    """Score `paths` with the detector of a folder, one row each in their order, and write them to `output`.

    The suffix of `output` (`SUFFIXES`) says how. Killed at any moment and called again, it scores only the pieces
    that are missing and ends with the same file. A few images are scored without Ray. Raises `InvalidConfig`
    for another suffix, no images or sizes out of range, `DetectorError` for the detector, `StudyError` where
    another process writes the same output, `Interrupted` after Ctrl-C or SIGTERM and `WorkFailed` where Ray fails.
    """
    check_output(output)
    if not paths or batch_size < 1:
        raise InvalidConfig(
            f"{len(paths)} images in batches of {batch_size} were asked for; 1 is the least of both."
        )
    loaded = load_detector(detector)
    begin = time.monotonic()
    size = _piece_size(len(paths))
    task = {
        "format": 2,
        "detector": _content_hash(loaded),
        "encoder": loaded.encoder_description(runtime).fingerprint,
        "images": hashlib.sha256("\0".join(map(located, paths)).encode(errors="surrogateescape")).hexdigest(),
        "piece": size,
    }
    with TemporaryDirectory() if output is None else nullcontext(_parts_folder(output)) as name:
        folder = Path(name)
        with owned(folder, "prediction"):
            if _begin(folder, task) and on_note:
                on_note(f"{folder} held scores of other images or of another detector; they are made anew.")
            parts = [folder / "parts" / f"{piece:05d}.arrow" for piece in range(-(-len(paths) // size))]
            done = {piece: _count(part) for piece, part in enumerate(parts) if _is_whole(part)}
            num_done_before = sum(num for num, _ in done.values())
            if output is not None and output.exists() and not done and on_note:
                on_note(
                    f"{output} is there from an earlier run; all images are scored again and it is replaced."
                )

            def tell(stage: str = "") -> None:
                if on_progress:
                    on_progress(
                        ScoreProgress(
                            num_images=len(paths),
                            num_done=sum(num for num, _ in done.values()),
                            num_unreadable=sum(num for _, num in done.values()),
                            stage=stage,
                        )
                    )

            pending = [piece for piece in range(len(parts)) if piece not in done]
            tasks = [
                {
                    "piece": piece,
                    "part": str(parts[piece].absolute()),
                    "paths": json.dumps([*map(located, paths[piece * size : (piece + 1) * size])]),
                    "preprocessing": loaded.preprocessing.name,
                }
                for piece in pending
            ]
            arguments = {"detector": str(detector.absolute()), "runtime": runtime, "batch_size": batch_size}
            try:
                for result in _run(tasks, arguments, num_actors, gpus_per_actor, address, tell, size):
                    piece = int(result["piece"])
                    done[piece] = _count(parts[piece])
                    tell()
            except (KeyboardInterrupt, cluster.RayFailed) as error:
                raise cluster.stopped(
                    error, f"Scoring with {loaded.name}", _kept(done, len(paths), output)
                ) from None
            prediction = _join(paths, parts, output, loaded.id, num_first, num_done_before, begin)
        if output is not None:
            shutil.rmtree(folder)
    return prediction


def check_output(output: Path | None) -> None:
    """`InvalidConfig` where the suffix of `output` is none of `SUFFIXES`."""
    if output is not None and output.suffix.lower() not in SUFFIXES:
        raise InvalidConfig(
            f"The output {output} should end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}."
        )


def _parts_folder(output: Path) -> Path:
    return output.with_name(f".{output.name}.parts")


def _content_hash(detector: Detector) -> str:
    content = json.dumps(detector.description, sort_keys=True)  # it holds the hash of the tensors
    return hashlib.sha256(content.encode()).hexdigest()


def _begin(folder: Path, task: Mapping[str, Any]) -> bool:
    """Make the folder ready for `task`; whether parts of another one were thrown away."""
    path = folder / "task.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        found = None
    if found == task:
        return False
    there = (folder / "parts").exists()
    if there:
        shutil.rmtree(folder / "parts")
    write_json(path, task)
    return there


def _run(
    tasks: Sequence[dict[str, Any]],
    arguments: Mapping[str, Any],
    num_actors: int | None,
    gpus_per_actor: float,
    address: str | None,
    tell: Callable[[str], None],
    size: int,
) -> Iterator[Mapping[str, Any]]:
    if len(tasks) * size <= _NO_RAY:
        if tasks:
            tell("loading the detector")
        scorer = _PieceScorer(**arguments) if tasks else None
        for task in tasks:
            assert scorer is not None
            yield scorer(read_piece(task))
        return
    tell("starting Ray")
    with cluster.connected(address):
        tell("loading the detector")
        yield from run_pieces(
            tasks,
            read_piece,
            _PieceScorer,
            arguments,
            num_actors=num_actors,
            gpus_per_actor=gpus_per_actor,
        )


def _kept(done: Mapping[int, tuple[int, int]], num_images: int, output: Path | None) -> str:
    if output is None:
        return "Scores are kept only with -o FILE."
    num_done = sum(num for num, _ in done.values())
    return (
        f"{num_done:,} of {num_images:,} images are scored and kept. Run the same command again to continue."
    )


def _rows(part: Path) -> pa.Table:
    with pa.memory_map(str(part)) as source:
        return pa.ipc.open_file(source).read_all()


def _is_whole(part: Path) -> bool:
    """Whether a part is there and can be read; one that was damaged since is made anew."""
    try:
        return bool(_rows(part).schema.equals(_PART))
    except (pa.ArrowException, OSError):
        return False


def _count(part: Path) -> tuple[int, int]:
    """Images of a part, and how many of them were not readable."""
    rows = _rows(part)
    return rows.num_rows, rows.num_rows - rows["reason"].null_count


def _join(
    paths: Sequence[str],
    parts: Sequence[Path],
    output: Path | None,
    model: str,
    num_first: int,
    num_done_before: int,
    begin: float,
) -> Prediction:
    verdicts: dict[str, int] = {}
    first: list[Scored] = []
    num_unreadable = num_noted = 0

    size = _piece_size(len(paths))

    def tables() -> Iterator[pa.Table]:
        nonlocal num_unreadable, num_noted
        for piece, part in enumerate(parts):
            rows = _rows(part)
            names = [_as_text(path) for path in paths[piece * size : (piece + 1) * size]]
            for verdict in rows["verdict"].drop_null().to_pylist():
                verdicts[verdict] = verdicts.get(verdict, 0) + 1
            num_unreadable += rows.num_rows - rows["reason"].null_count
            num_noted += rows.num_rows - rows["note"].null_count
            table = rows.add_column(0, "path", pa.array(names, pa.string()))
            table = table.append_column("model", pa.array([model] * len(names), pa.string()))
            if len(first) < num_first:
                first.extend(Scored(**row) for row in table.slice(0, num_first - len(first)).to_pylist())
            yield table

    if output is None:
        for _ in tables():
            pass
    else:
        with atomic_path(output) as temporary:
            _WRITERS[output.suffix.lower()](tables(), temporary)
    return Prediction(
        num_images=len(paths),
        verdicts=verdicts,
        num_noted=num_noted,
        num_unreadable=num_unreadable,
        num_done_before=num_done_before,
        elapsed_s=time.monotonic() - begin,
        first=first,
    )


def _write_csv(tables: Iterator[pa.Table], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _ROW.names)
        writer.writeheader()
        for table in tables:
            writer.writerows(table.to_pylist())


def _write_jsonl(tables: Iterator[pa.Table], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for table in tables:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())


def _write_parquet(tables: Iterator[pa.Table], path: Path) -> None:
    with pq.ParquetWriter(path, _ROW) as writer:
        for table in tables:
            writer.write_table(table)


_WRITERS: Mapping[str, Callable[[Iterator[pa.Table], Path], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}


def _as_text(path: str) -> str:
    return os.fsencode(path).decode(errors="backslashreplace")
