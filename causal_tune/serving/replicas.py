"""The detector on Ray Serve: replicas that score crops in batches, and how the gate asks them."""

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from causal_tune.detector import load_detector
from causal_tune.errors import DetectorError
from causal_tune.images.decode import SizedCrop
from causal_tune.serving.limits import Refused

__all__ = ["Judgement", "Replicas", "Serving"]

_APPLICATION = "causal-tune"
_DEPLOYMENT = "Scorer"


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """How the detector is spread and batched."""

    replicas: int = 1
    cpus: float = 1.0
    """Of one replica."""
    batch: int = 16
    """Images that one forward pass takes at most; 1: no batching."""
    batch_wait_s: float = 0.005
    """For which an image waits for others at most."""
    runtime: str = "auto"
    """Of the encoder."""

    @property
    def max_ongoing(self) -> int:
        """Images at one replica at a time: some batches, or none would ever be full and the router would idle."""
        return max(64, 4 * self.batch)


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What a replica says of one crop."""

    score: float
    probability: float
    verdict: str
    note: str | None
    num_batch: int
    """Images of the forward pass that it went through."""


class _Scorer:
    """One replica: the encoder and the head, one forward pass at a time."""

    def __init__(self, folder: str, serving: dict[str, Any]) -> None:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        settings = Serving(**serving)
        self._detector = load_detector(folder)
        self._detector.encoder(settings.runtime)
        self._thread = ThreadPoolExecutor(1)  # the loop goes on taking in what the next batch is made of
        self._detector.score_crops(np.zeros((1, 224, 224, 3), np.uint8))  # the first pass is slower

    async def score_batch(self, crops: list[SizedCrop]) -> list[dict[str, Any]]:
        """One judgement a crop."""
        loop = asyncio.get_running_loop()
        pixels, sizes = np.stack([crop.pixels for crop in crops]), [crop.size for crop in crops]
        scores = await loop.run_in_executor(self._thread, self._detector.score_crops, pixels, sizes)
        return [{**asdict(score), "num_batch": len(crops)} for score in scores]


class Replicas:
    """The replicas of one detector, seen from the gate."""

    def __init__(self, folder: Path, serving: Serving, *, answer_timeout_s: float) -> None:
        self._folder = folder
        self._serving = serving
        self._timeout_s = answer_timeout_s
        self._handle: Any = None
        self.num_ready = 0
        """Replicas that were running when they were last counted."""
        self.num_retries = 0
        """Images that were given to another replica because theirs was gone."""

    def start(self) -> None:
        """Start the replicas on the Ray of this process and wait until they can score.

        `DetectorError` where the encoder cannot be loaded there.
        """
        from ray import serve  # seconds; the command checks its options before

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        settings = self._serving

        class Scorer(_Scorer):
            @serve.batch(max_batch_size=settings.batch, batch_wait_timeout_s=settings.batch_wait_s)  # type: ignore[untyped-decorator]
            async def score(self, crops: list[SizedCrop]) -> list[dict[str, Any]]:
                return await self.score_batch(crops)

        deployment = serve.deployment(
            Scorer,
            name=_DEPLOYMENT,
            num_replicas=settings.replicas,
            max_ongoing_requests=settings.max_ongoing,
            ray_actor_options={"num_cpus": settings.cpus},
            health_check_period_s=1,  # a replica that is gone is noticed by it
            health_check_timeout_s=30,
            graceful_shutdown_timeout_s=10,
        )
        serve.start(proxy_location="Disabled")
        try:
            self._handle = serve.run(
                deployment.bind(str(self._folder), asdict(settings)), name=_APPLICATION, route_prefix=None
            )
        except RuntimeError as error:
            raise DetectorError(
                f"The detector {self._folder} did not start on Ray Serve: {_cause()}. On a cluster its folder and "
                "the encoder's weights have to lie at the same paths on every node."
            ) from error
        self.num_ready = self.count()

    def stop(self) -> None:
        """End the replicas and Ray Serve."""
        from ray import serve

        serve.shutdown()

    def count(self) -> int:
        """Replicas that are running, as the controller knows it."""
        from ray import serve

        application = serve.status().applications.get(_APPLICATION)
        deployment = application.deployments.get(_DEPLOYMENT) if application else None
        return int(deployment.replica_states.get("RUNNING", 0)) if deployment else 0

    async def score(self, crops: Sequence[SizedCrop]) -> list[Judgement]:
        """One judgement a crop, in order. A replica that dies costs time; `Refused` (503) where none answers."""
        deadline = time.monotonic() + self._timeout_s
        return await asyncio.gather(*(self._score_one(crop, deadline) for crop in crops))

    async def _ask(self, crop: SizedCrop) -> dict[str, Any]:
        answer: dict[str, Any] = await self._handle.score.remote(crop)
        return answer

    async def _score_one(self, crop: SizedCrop, deadline: float) -> Judgement:
        from ray.exceptions import RayError, RayTaskError

        while True:
            try:
                answer = await asyncio.wait_for(self._ask(crop), deadline - time.monotonic())
                return Judgement(**answer)
            except RayTaskError:
                raise
            except RayError:
                self.num_retries += 1
                await asyncio.sleep(0.1)
            except asyncio.TimeoutError:
                raise Refused(
                    503,
                    "no_replica",
                    f"No replica answered within {self._timeout_s:g} s. Try again.",
                    retry_after_s=5,
                ) from None


def _cause() -> str:
    """The last line of what the controller says of the deployment."""
    from ray import serve

    application = serve.status().applications.get(_APPLICATION)
    deployment = application.deployments.get(_DEPLOYMENT) if application else None
    lines = [line.strip() for line in (deployment.message if deployment else "").splitlines() if line.strip()]
    return lines[-1] if lines else "no reason is known"
