"""Images into features, once: index rows -> crops -> CLIP -> shards. The only door to Ray Data.

Reading and decoding run as tasks, CLIP as a pool of actors; between them pass uint8 crops. The unit of work
is a piece of a shard (`features.pieces`): an actor writes it under a temporary name and renames it, so a
killed run loses at most one piece an actor, and the next run of the same command makes only the pieces whose
files do not exist. What one store holds of an image, another with the same encoder and preprocessing takes
from there. An image's features are a function of the image, so a store's bytes depend neither on the number
of actors nor on interruptions nor on where they were taken from.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from causal_tune import cluster
from causal_tune.clip import describe_encoder, load_encoder
from causal_tune.encoders import absolute_name
from causal_tune.errors import InvalidConfig
from causal_tune.features import (
    FeatureStore,
    StoreSpec,
    finish_store,
    read_sources,
    stores_of_the_same_features,
    write_shard,
)
from causal_tune.features.work import Work
from causal_tune.fidelity import Fidelity, fidelity_of
from causal_tune.images.index import index_sha256
from causal_tune.images.pieces import decode_piece, rows_from_bytes
from causal_tune.images.preprocessing import Preprocessing
from causal_tune.images.views import CLEAN
from causal_tune.lock import owned

__all__ = ["ActorPlan", "Extraction", "Progress", "extract", "plan_actors", "run_pieces"]


_DECODE_CPUS = 0.5
"""What a decoding task is booked with: decoding 64 images takes a fraction of the time of encoding them."""

_CPUS_PER_ACTOR = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far an extraction is, in images."""

    num_indexed: int
    num_done: int
    """Those that nothing is lacking of, in any view."""
    num_stored: int
    num_quarantined: int
    num_encoded_now: int
    """Crops that this run encoded, all views together; the others were stored by an earlier run."""
    elapsed_s: float
    """Since the first piece of this run could begin, model loading included."""
    stage: str = ""
    """What is being done before the first images, such as `starting Ray`; empty while images are encoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """A finished extraction; `num_stored + num_quarantined == num_indexed`."""

    store: FeatureStore
    num_indexed: int
    num_stored: int
    num_quarantined: int
    num_encoded_now: int
    """Crops that this run encoded, all views together."""
    num_taken: int
    """Features that this run took from where the same image was encoded before, all views together."""
    elapsed_s: float
    fidelity: Fidelity | None
    """How near the features come to torch in float32; None for that itself, or where it was not measured."""


class _PieceEncoder:
    """One actor: an encoder that turns decoded pieces into files."""

    def __init__(
        self,
        encoder: str,
        layers: Sequence[str],
        dtype: str,
        runtime: str,
        num_threads: int,
        batch_size: int,
    ) -> None:
        self.encoder = load_encoder(
            encoder, layers=layers, dtype=dtype, runtime=runtime, num_threads=num_threads
        )
        self.batch_size = batch_size

    def __call__(self, decoded: dict[str, Any]) -> dict[str, Any]:
        views = json.loads(decoded["views"])
        rows = rows_from_bytes(decoded["rows"])
        encoded = self._encode(decoded["crops"])
        begin, num_taken = 0, 0
        for view in views:
            sources = view["sources"]
            new = [place for place, source in enumerate(sources) if source is None]
            features = {}
            for layer, values in encoded.items():
                features[layer] = np.empty((len(sources), values.shape[1]), dtype=np.float32)
                features[layer][new] = values[begin : begin + len(new)]
            begin, num_taken = begin + len(new), num_taken + len(sources) - len(new)
            columns: dict[str, list[str]] = {
                "operation": view["operations"],
                "parameters": view["parameters"],
            }
            for batch, places, positions in read_sources(sources):
                for layer, values in features.items():
                    values[places] = batch.column(layer).to_numpy_ndarray()[positions]
                if view["name"] != CLEAN:
                    for name, column in columns.items():
                        for place, text in zip(places, batch.column(name).take(positions), strict=True):
                            column[place] = text.as_py()
            table = rows.take(pa.array(view["kept"], pa.int64()))
            if view["name"] != CLEAN:
                for name, column in columns.items():
                    table = table.append_column(name, pa.array(column, pa.string()))
            write_shard(Path(view["path"]), table, features, view["quarantine"])
        return {"piece": decoded["piece"], "num_encoded": len(decoded["crops"]), "num_taken": num_taken}

    def _encode(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        features: dict[str, list[NDArray[np.float32]]] = {
            layer: [np.empty((0, width), dtype=np.float32)] for layer, width in self.encoder.widths.items()
        }
        for start in range(0, len(crops), self.batch_size):
            for layer, values in self.encoder.encode(crops[start : start + self.batch_size]).items():
                features[layer].append(values)
        return {layer: np.concatenate(values) for layer, values in features.items()}


def extract(
    index: pa.Table,
    *,
    encoder: str,
    workspace: Path,
    layers: Sequence[str] = ("proj",),
    views: Sequence[str] = (),
    preprocessing: Preprocessing = Preprocessing(),  # noqa: B008  frozen
    dtype: str = "auto",
    runtime: str = "auto",
    batch_size: int = 64,
    num_actors: int | None = None,
    gpus_per_actor: float = 0.0,
    address: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Extraction:
    """The features of every image of `index`, in the store that encoder, preprocessing and index name.

    What exists is kept. `views` (`images.views`) are made beside the clean one, of the images that they
    apply to; they may be asked for later. `num_actors` defaults to one for eight cores, or one a GPU share;
    on CPUs each actor computes on its share of the cores and is booked as one, which leaves Ray the CPUs
    that reading and decoding need. `batch_size` images go to an encoder at once.

    Raises `InvalidConfig` for sizes out of range, `WeightsError` or `UnknownName` for the encoder,
    `StoreError` where a shard on disk is damaged or another extraction is writing this store, `Interrupted` after
    Ctrl-C or SIGTERM and `WorkFailed` where Ray fails, both with what is kept.
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
        preprocessing=preprocessing.name,
        index_sha256=index_sha256(index),
        num_indexed=index.num_rows,
    )
    store_path = (workspace / "stores" / spec.fingerprint).absolute()
    work = Work(index, store_path, (CLEAN, *views), preprocessing)
    begin = time.monotonic()
    num_encoded = num_taken = 0

    def tell(stage: str = "") -> None:
        if on_progress:
            on_progress(
                Progress(
                    num_indexed=index.num_rows,
                    num_done=work.num_done,
                    num_stored=work.num_stored,
                    num_quarantined=work.num_quarantined,
                    num_encoded_now=num_encoded,
                    elapsed_s=time.monotonic() - begin,
                    stage=stage,
                )
            )

    def encode_what_is_missing() -> None:
        nonlocal num_encoded, num_taken
        siblings = stores_of_the_same_features(workspace, spec)
        tell("starting Ray")
        with cluster.connected(address):
            tell("loading the encoder")
            while work.pending:
                for done in run_pieces(
                    work.next_tasks(siblings),
                    decode_piece,
                    _PieceEncoder,
                    {
                        "encoder": absolute_name(encoder),
                        "layers": tuple(layers),
                        "dtype": description.dtype,
                        "runtime": description.runtime,
                        "batch_size": batch_size,
                    },
                    num_actors=num_actors,
                    gpus_per_actor=gpus_per_actor,
                ):
                    work.take(int(done["piece"]))
                    num_encoded += int(done["num_encoded"])
                    num_taken += int(done["num_taken"])
                    tell()
                work.merge()

    with owned(store_path, "extraction"):
        store = work.finished_store()
        if store is None:
            work.find_done()
            try:
                tell("measuring what rounding costs")
                # before the actors load: what a runtime makes once for all is then there
                fidelity = fidelity_of(description, device=device)
                if work.pending:
                    encode_what_is_missing()
            except (KeyboardInterrupt, cluster.RayFailed) as error:
                num_done = work.num_done
                kept = (
                    f"{num_done:,} of {index.num_rows:,} images are done and kept in {store_path}. Run the "
                    "same command again to continue."
                    if num_done
                    else "No image was done yet. Run the same command again."
                )
                raise cluster.stopped(error, f"Encoding with {encoder}", kept) from None
            store = finish_store(store_path, spec, views, fidelity=asdict(fidelity) if fidelity else None)
    measured = store.description.get("fidelity")
    return Extraction(
        store=store,
        num_indexed=index.num_rows,
        num_stored=store.num_images,
        num_quarantined=store.num_quarantined,
        num_encoded_now=num_encoded,
        num_taken=num_taken,
        elapsed_s=time.monotonic() - begin,
        fidelity=Fidelity.from_json(measured) if measured else None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorPlan:
    """How many encoders run side by side and what each is booked with."""

    num_actors: int
    cpus_per_actor: float
    num_threads: int
    """Threads that encode in each actor."""


def plan_actors(
    *, num_cpus: int, num_gpus: float, gpus_per_actor: float, num_actors: int | None, num_pieces: int
) -> ActorPlan:
    """Encoders for a cluster's resources: one a GPU share, or one for eight CPUs, or as many as asked for.

    Reading and decoding always keep a CPU: a pool that has booked them all and waits for crops would
    wait for ever. `InvalidConfig` where the cluster cannot hold the actors that are asked for.

    >>> plan_actors(num_cpus=2, num_gpus=0, gpus_per_actor=0, num_actors=None, num_pieces=10)
    ActorPlan(num_actors=1, cpus_per_actor=1, num_threads=2)
    >>> plan_actors(num_cpus=16, num_gpus=2, gpus_per_actor=0.5, num_actors=None, num_pieces=10)
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
    num_actors = min(num_actors or -(-num_cpus // _CPUS_PER_ACTOR), num_pieces)
    # booked with less than they use where they would otherwise leave no CPU to the decoders
    cpus_per_actor = 1 if num_cpus > num_actors else (num_cpus - _DECODE_CPUS) / num_actors
    return ActorPlan(
        num_actors=num_actors, cpus_per_actor=cpus_per_actor, num_threads=max(1, num_cpus // num_actors)
    )


def run_pieces(
    tasks: Sequence[Mapping[str, Any]],
    read: Callable[[dict[str, Any]], dict[str, Any]],
    actor: type,
    arguments: Mapping[str, Any],
    *,
    num_actors: int | None = None,
    gpus_per_actor: float = 0.0,
) -> Iterator[Mapping[str, Any]]:
    """Each of `tasks` through `read`, as a task, and through a pool of `actor`s; results as they come.

    An actor is made with `arguments` and `num_threads`. A Ray has to be connected. `cluster.RayFailed` where a task
    raised what is no error of this package.
    """
    import ray.data  # here, for it takes seconds that a store which is finished need not wait

    resources = ray.cluster_resources()
    plan = plan_actors(
        num_cpus=int(resources.get("CPU", 1)),
        num_gpus=resources.get("GPU", 0.0),
        gpus_per_actor=gpus_per_actor,
        num_actors=num_actors,
        num_pieces=len(tasks),
    )
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # our own progress and errors say it
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    dataset = (
        ray.data.from_items(list(tasks), override_num_blocks=len(tasks))
        .map(read, num_cpus=_DECODE_CPUS)
        .map(
            actor,
            fn_constructor_kwargs={**arguments, "num_threads": plan.num_threads},
            compute=ray.data.ActorPoolStrategy(size=plan.num_actors),
            num_cpus=plan.cpus_per_actor,
            num_gpus=gpus_per_actor,
        )
    )
    with cluster.told_in_a_line():
        yield from dataset.iter_rows()
