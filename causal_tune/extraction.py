"""Images into features, once: index rows -> crops -> CLIP -> shards. The only door to Ray Data.

Reading and decoding run as tasks, CLIP as a pool of actors; between them pass uint8 crops. The unit
of work is one shard of the store (`features.shard_ranges`): an actor writes it under a temporary
name and renames it, so a killed run loses at most one shard an actor, and the next run of the same
command makes only the shards whose files do not exist. A shard's images are encoded in the same
batches whoever does it, so its bytes do not depend on the number of actors or on interruptions.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

from causal_tune import cluster
from causal_tune.clip import describe_encoder, load_encoder
from causal_tune.errors import InvalidConfig, UnreadableImage
from causal_tune.features import (
    FeatureStore,
    ShardReport,
    StoreSpec,
    finish_store,
    read_shard_report,
    shard_path,
    shard_ranges,
    write_shard,
)
from causal_tune.fidelity import Fidelity, fidelity_of
from causal_tune.images.decode import CROP_SIZE, PREPROCESSING, decode_crop, read_image_bytes
from causal_tune.images.index import index_sha256
from causal_tune.lock import owned

__all__ = ["ActorPlan", "Extraction", "Progress", "decode_shard", "extract", "plan_actors"]


_DECODE_CPUS = 0.5
"""What a decoding task is booked with: decoding 64 images takes a fraction of the time of encoding them."""

_CPUS_PER_ACTOR = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far an extraction is, in images."""

    num_indexed: int
    num_stored: int
    num_quarantined: int
    num_encoded_now: int
    """Images that this run encoded; the others were stored by an earlier run."""
    elapsed_s: float
    """Since the first shard of this run could begin, model loading included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """A finished extraction; `num_stored + num_quarantined == num_indexed`."""

    store: FeatureStore
    num_indexed: int
    num_stored: int
    num_quarantined: int
    num_encoded_now: int
    elapsed_s: float
    fidelity: Fidelity | None
    """How near the features come to torch in float32; None for that itself, or where it was not measured."""


def decode_shard(task: dict[str, Any]) -> dict[str, Any]:
    """Read and decode the images of one shard.

    From {shard, rows} to {shard, rows, crops, quarantine}: `rows` are index rows as Arrow bytes, those
    that were read in the result; `crops` are theirs, uint8 [n, 224, 224, 3]; `quarantine` is the JSON of
    the others' paths and reasons. An image whose bytes are not those that were indexed is quarantined:
    its label may no longer hold.
    """
    rows = _from_bytes(task["rows"])
    kept: list[int] = []
    crops: list[NDArray[np.uint8]] = []
    quarantine: list[dict[str, str]] = []
    for position, row in enumerate(rows.select(["path", "sha256"]).to_pylist()):
        try:
            data = read_image_bytes(row["path"])
            if hashlib.sha256(data).hexdigest() != row["sha256"]:
                raise UnreadableImage(
                    "the file has changed since it was indexed; run `causal-tune index` again"
                )
            crops.append(decode_crop(data, CROP_SIZE))
            kept.append(position)
        except UnreadableImage as error:
            quarantine.append({"path": row["path"], "reason": str(error)})
    return {
        "shard": task["shard"],
        "rows": _to_bytes(rows.take(pa.array(kept, pa.int64()))),
        "crops": np.stack(crops) if crops else np.empty((0, CROP_SIZE, CROP_SIZE, 3), dtype=np.uint8),
        "quarantine": json.dumps(quarantine),
    }


def _to_bytes(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def _from_bytes(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()


class _ShardEncoder:
    """One actor: an encoder that turns decoded shards into shard files."""

    def __init__(
        self,
        encoder: str,
        layers: Sequence[str],
        dtype: str,
        runtime: str,
        num_threads: int,
        batch_size: int,
        store_path: Path,
    ) -> None:
        self.encoder = load_encoder(
            encoder, layers=layers, dtype=dtype, runtime=runtime, num_threads=num_threads
        )
        self.batch_size = batch_size
        self.store_path = store_path

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        crops = task["crops"]
        features: dict[str, list[NDArray[np.float32]]] = {
            layer: [np.empty((0, width), dtype=np.float32)] for layer, width in self.encoder.widths.items()
        }
        for start in range(0, len(crops), self.batch_size):
            for layer, values in self.encoder.encode(crops[start : start + self.batch_size]).items():
                features[layer].append(values)
        report = write_shard(
            self.store_path,
            int(task["shard"]),
            _from_bytes(task["rows"]),
            {layer: np.concatenate(values) for layer, values in features.items()},
            json.loads(task["quarantine"]),
        )
        return asdict(report)


def _tasks(index: pa.Table, pending: Iterable[int]) -> list[dict[str, Any]]:
    ranges = shard_ranges(index.num_rows)
    numbered = index.append_column(
        "row", pa.array(range(index.num_rows), pa.int64())
    ).replace_schema_metadata()
    return [
        {"shard": shard, "rows": _to_bytes(numbered.slice(ranges[shard].start, len(ranges[shard])))}
        for shard in pending
    ]


def extract(
    index: pa.Table,
    *,
    encoder: str,
    workspace: Path,
    layers: Sequence[str] = ("proj",),
    dtype: str = "auto",
    runtime: str = "auto",
    batch_size: int = 64,
    num_actors: int | None = None,
    gpus_per_actor: float = 0.0,
    address: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Extraction:
    """The features of every image of `index`, in the store that encoder, preprocessing and index name.

    Shards that exist are kept. `num_actors` defaults to one for eight cores, or one a GPU share;
    on CPUs each actor computes on its share of the cores and is booked as one, which leaves Ray the
    CPUs that reading and decoding need. `batch_size` images go to an encoder at once.

    Raises `InvalidConfig` for sizes out of range, `WeightsError` or `UnknownName` for the encoder,
    `StoreError` where a shard on disk is damaged or another extraction is writing this store.
    """
    if index.num_rows == 0 or batch_size < 1 or (num_actors is not None and num_actors < 1):
        raise InvalidConfig(
            f"Extraction needs at least one image, actor and batch row; there are {index.num_rows} images, "
            f"num_actors is {num_actors} and batch_size {batch_size}."
        )
    device = "cuda" if gpus_per_actor else "cpu"
    description = describe_encoder(encoder, layers=layers, dtype=dtype, runtime=runtime, device=device)
    spec = StoreSpec(
        encoder=description.values,
        preprocessing=PREPROCESSING,
        index_sha256=index_sha256(index),
        num_indexed=index.num_rows,
    )
    store_path = (workspace / "stores" / spec.fingerprint).absolute()
    shards = range(len(shard_ranges(index.num_rows)))
    begin = time.monotonic()
    num_stored = num_quarantined = num_encoded_now = 0

    def tell() -> None:
        if on_progress:
            on_progress(
                Progress(
                    num_indexed=index.num_rows,
                    num_stored=num_stored,
                    num_quarantined=num_quarantined,
                    num_encoded_now=num_encoded_now,
                    elapsed_s=time.monotonic() - begin,
                )
            )

    def count(report: ShardReport) -> None:
        nonlocal num_stored, num_quarantined
        num_stored += report.num_stored
        num_quarantined += report.num_quarantined

    with owned(store_path, "extraction"):
        done = [shard for shard in shards if shard_path(store_path, shard).exists()]
        pending = sorted(set(shards).difference(done))
        for shard in done:
            count(read_shard_report(store_path, shard))
        tell()
        # before the actors load: what a runtime makes once for all is then there
        fidelity = fidelity_of(description, device=device)
        if pending:
            with cluster.connected(address):
                for report in _encode(
                    index,
                    pending,
                    store_path=store_path,
                    encoder=encoder,
                    layers=layers,
                    dtype=description.dtype,
                    runtime=description.runtime,
                    batch_size=batch_size,
                    num_actors=num_actors,
                    gpus_per_actor=gpus_per_actor,
                ):
                    count(report)
                    num_encoded_now += report.num_stored
                    tell()
        store = finish_store(store_path, spec, fidelity=asdict(fidelity) if fidelity else None)
    return Extraction(
        store=store,
        num_indexed=index.num_rows,
        num_stored=num_stored,
        num_quarantined=num_quarantined,
        num_encoded_now=num_encoded_now,
        elapsed_s=time.monotonic() - begin,
        fidelity=fidelity,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorPlan:
    """How many encoders run side by side and what each is booked with."""

    num_actors: int
    cpus_per_actor: float
    num_threads: int
    """Threads that encode in each actor."""


def plan_actors(
    *, num_cpus: int, num_gpus: float, gpus_per_actor: float, num_actors: int | None, num_shards: int
) -> ActorPlan:
    """Encoders for a cluster's resources: one a GPU share, or one for eight CPUs, or as many as asked for.

    Reading and decoding always keep a CPU: a pool that has booked them all and waits for crops would
    wait for ever. `InvalidConfig` where the cluster cannot hold the actors that are asked for.

    >>> plan_actors(num_cpus=2, num_gpus=0, gpus_per_actor=0, num_actors=None, num_shards=10)
    ActorPlan(num_actors=1, cpus_per_actor=1, num_threads=2)
    >>> plan_actors(num_cpus=16, num_gpus=2, gpus_per_actor=0.5, num_actors=None, num_shards=10)
    ActorPlan(num_actors=4, cpus_per_actor=1, num_threads=4)
    """
    if gpus_per_actor:
        most = int(num_gpus / gpus_per_actor)
        if most < (num_actors or 1):
            raise InvalidConfig(
                f"{num_actors or 1} actors of {gpus_per_actor:g} GPUs were asked for; Ray has {num_gpus:g} GPUs. "
                "Lower --gpus-per-actor or --actors, or leave them out to encode on CPUs."
            )
        num_actors = num_actors or most
    # a batch of 64 keeps eight threads busy; more of them are worth another copy of the weights
    num_actors = min(num_actors or -(-num_cpus // _CPUS_PER_ACTOR), num_shards)
    # booked with less than they use where they would otherwise leave no CPU to the decoders
    cpus_per_actor = 1 if num_cpus > num_actors else (num_cpus - _DECODE_CPUS) / num_actors
    return ActorPlan(
        num_actors=num_actors, cpus_per_actor=cpus_per_actor, num_threads=max(1, num_cpus // num_actors)
    )


def _encode(
    index: pa.Table,
    pending: Sequence[int],
    *,
    store_path: Path,
    encoder: str,
    layers: Sequence[str],
    dtype: str,
    runtime: str,
    batch_size: int,
    num_actors: int | None,
    gpus_per_actor: float,
) -> Iterable[ShardReport]:
    resources = ray.cluster_resources()
    plan = plan_actors(
        num_cpus=int(resources.get("CPU", 1)),
        num_gpus=resources.get("GPU", 0.0),
        gpus_per_actor=gpus_per_actor,
        num_actors=num_actors,
        num_shards=len(pending),
    )
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # our own progress says it
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    dataset = (
        ray.data.from_items(_tasks(index, pending), override_num_blocks=len(pending))
        .map(decode_shard, num_cpus=_DECODE_CPUS)
        .map(
            _ShardEncoder,
            fn_constructor_kwargs={
                "encoder": encoder,
                "layers": tuple(layers),
                "dtype": dtype,
                "runtime": runtime,
                "num_threads": plan.num_threads,
                "batch_size": batch_size,
                "store_path": store_path,
            },
            compute=ray.data.ActorPoolStrategy(size=plan.num_actors),
            num_cpus=plan.cpus_per_actor,
            num_gpus=gpus_per_actor,
        )
    )
    for row in dataset.iter_rows():
        yield ShardReport(**row)
