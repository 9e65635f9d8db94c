"""How fast is a training step of the causal head, against obvious code and against its matrix products alone?

    python benchmarks/training_step.py [--store STORE --train-generator G] [--rounds 30]

One thread, batch 256, the default options of a trial. In one run, each in a process of its own and in turn, five
steps at a time, so that a noisy machine disturbs all alike and none inherits the caches or the heap of another:

- `plain`: the three updates written the obvious way in float32: a forward pass of the mask network for each of
  them with noise of its own, `torch.cdist`, HSIC by its formula with the centring matrix, default Adam.
- `ours`: `CausalTrainer.step` as a trial runs it, in the precision that a trial chooses on this processor.
- `products`: every matrix product of our step alone, forward and backward, in the dtypes of our step.

`speedup_over_plain` is plain over ours, `times_bare_products` ours over products, both of medians. With a store
also an epoch of it: all steps of one pass, and the evaluation of every set.
"""

import argparse
import json
import math
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from sklearn.metrics import accuracy_score, average_precision_score
from torch import Tensor, nn
from torch.nn import functional

from causal_tune.causal.head import CausalHead, CausalSettings
from causal_tune.features import FeatureStore, StudyData, load_study_data
from causal_tune.memory import keep_freed_memory
from causal_tune.processor import has_bfloat16
from causal_tune.training import train
from causal_tune.trial import TrialConfig

BATCH = 256


class Plain:
    """CausalCLIP's training as one writes it down; the same networks and weights as the default trial."""

    def __init__(self, width: int, config: TrialConfig) -> None:
        self.config = config
        self.mask_network = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.classifier = nn.Linear(width, 1)
        self.adversary = nn.Linear(width, 1)
        self.optimisers = [
            torch.optim.Adam(part.parameters(), lr=config.learning_rate)
            for part in (self.adversary, self.classifier, self.mask_network)
        ]

    def mask(self, x: Tensor) -> Tensor:
        return self.noisy(self.mask_network(x))

    def noisy(self, logits: Tensor) -> Tensor:
        gumbel = -torch.log(-torch.log(torch.rand(logits.shape).clamp(min=1e-7)))
        return torch.sigmoid((logits + gumbel) / self.config.tau)

    def consistency(self, zc: Tensor, logits: Tensor) -> Tensor:
        drop = torch.bernoulli(torch.full_like(zc, self.config.p))
        q = torch.sigmoid(logits)
        r = torch.sigmoid(self.classifier(zc * (1 - drop)).squeeze(1))
        eps = 1e-7
        return (
            q * torch.log((q + eps) / (r + eps)) + (1 - q) * torch.log((1 - q + eps) / (1 - r + eps))
        ).mean()

    @staticmethod
    def hsic(x: Tensor, y: Tensor) -> Tensor:
        n = len(x)
        H = torch.eye(n) - 1 / n
        kernels = []
        for z in (x, y):
            distances = torch.cdist(z, z)
            s = distances[~torch.eye(n, dtype=torch.bool)].median().detach().clamp(min=1e-6)
            kernels.append(torch.exp(-(distances**2) / (2 * s**2)))
        K, L = kernels
        return torch.trace(K @ H @ L @ H) / (n - 1) ** 2

    def step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        c = self.config
        adversary_optimiser, classifier_optimiser, mask_optimiser = self.optimisers
        with torch.no_grad():
            znc = (1 - self.mask(x)) * x
        adversary_loss = functional.binary_cross_entropy_with_logits(self.adversary(znc).squeeze(1), y)
        adversary_optimiser.zero_grad()
        adversary_loss.backward()
        nn.utils.clip_grad_norm_(self.adversary.parameters(), c.grad_clip)
        adversary_optimiser.step()

        with torch.no_grad():
            zc = self.mask(x) * x
        logits = self.classifier(zc).squeeze(1)
        loss = functional.binary_cross_entropy_with_logits(logits, y)
        loss = loss + c.beta * self.consistency(zc, logits)
        classifier_optimiser.zero_grad()
        loss.backward()
        classifier_optimiser.step()

        mask = self.mask(x)
        zc, znc = mask * x, (1 - mask) * x
        logits = self.classifier(zc).squeeze(1)
        terms = {
            "classification": functional.binary_cross_entropy_with_logits(logits, y),
            "adversarial": functional.binary_cross_entropy_with_logits(self.adversary(znc).squeeze(1), y),
            "sparsity": mask.abs().sum(dim=1).mean(),
            "hsic": self.hsic(zc, znc),
            "invariance": self.consistency(zc, logits),
        }
        total = (
            terms["classification"]
            - c.alpha * terms["adversarial"]
            + c.lambda1 * terms["sparsity"]
            + c.lambda2 * terms["hsic"]
            + c.beta * terms["invariance"]
        )
        mask_optimiser.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.mask_network.parameters(), c.grad_clip)
        mask_optimiser.step()
        return {name: value.item() for name, value in terms.items()}

    @torch.no_grad()
    def evaluate(self, data: StudyData) -> list[tuple[float, float]]:
        results = []
        for one in (data.validation, *data.generators.values()):
            logits = self.mask_network(one.features)
            masks = [self.noisy(logits) for _ in range(32)]
            mask = torch.stack(masks).mean(dim=0)
            scores = torch.sigmoid(self.classifier(mask * one.features).squeeze(1)).numpy()
            labels = one.labels.numpy()
            results.append((average_precision_score(labels, scores), accuracy_score(labels, scores > 0.5)))
        return results

    def epoch(self, data: StudyData, num_steps: int) -> None:
        rows = torch.cat(
            [
                torch.randperm(len(data.train))
                for _ in range(math.ceil(num_steps * BATCH / len(data.train)) + 1)
            ]
        )
        size = len(data.train) // math.ceil(len(data.train) / BATCH)
        for batch in rows[: num_steps * size].view(num_steps, size):
            self.step(data.train.features[batch], data.train.labels[batch])
        self.evaluate(data)


def ours(width: int, config: TrialConfig) -> object:
    names = {field.name for field in fields(CausalSettings)}
    settings = {name: value for name, value in config.to_dict().items() if name in names}
    head = CausalHead(width, CausalSettings(**settings), torch.Generator().manual_seed(0))
    return head.trainer(torch.Generator().manual_seed(1))


def products(width: int, dtype: torch.dtype) -> Callable[[], None]:
    """The products of our step: mask network, classifier and adversary, and the two Gram matrices."""
    x = torch.randn(BATCH, width).to(dtype)
    weights = [torch.randn(width, width).to(dtype) for _ in range(2)]
    vector, z = torch.randn(width, 1), torch.randn(BATCH, width)
    gram, z_rounded = torch.randn(BATCH, BATCH).to(dtype), z.to(dtype)

    def run() -> None:
        hidden = x @ weights[0].T
        out = hidden @ weights[1].T
        _ = out.T @ hidden  # second layer's weights
        inner = out @ weights[1]
        _ = inner.T @ x  # first layer's weights
        for _ in range(6):  # classifier twice on Zc and twice on Zcf, adversary twice on Znc
            column = z @ vector
            _ = column.T @ z
        for _ in range(2):
            _ = z_rounded @ z_rounded.T
            _ = gram @ z_rounded

    return run


def summary(times: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(times), 3),
        "min": round(min(times), 3),
        "max": round(max(times), 3),
    }


def serve(make: Callable[[], Callable[[], object]], pipe: Connection) -> None:
    """Time what `make` makes as often as the pipe asks for: seconds of each of so many runs in a row."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    run = make()
    run()
    run()
    while number := pipe.recv():
        times = []
        for _ in range(number):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        pipe.send(times)


def measure(
    makers: dict[str, Callable[[], Callable[[], object]]], rounds: int, in_a_row: int
) -> dict[str, list[float]]:
    """Milliseconds of each, taken in turn, each in a process of its own: they share no memory and no allocator."""
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], {}
    for name, make in makers.items():
        pipes[name], far_end = context.Pipe()
        processes.append(context.Process(target=serve, args=(make, far_end), daemon=True))
        processes[-1].start()
        far_end.close()
    times: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(in_a_row)
            times[name] += [1e3 * seconds for seconds in pipe.recv()]
    for process, pipe in zip(processes, pipes.values(), strict=True):
        pipe.send(0)
        process.join()
    return times


def ratios(times: dict[str, list[float]]) -> dict[str, object]:
    medians = {name: statistics.median(values) for name, values in times.items()}
    result: dict[str, object] = {"speedup_over_plain": round(medians["plain"] / medians["ours"], 3)}
    if "products" in medians:
        result["times_bare_products"] = round(medians["ours"] / medians["products"], 3)
    return {**result, "ms": {name: summary(values) for name, values in times.items()}}


def batch(width: int) -> tuple[Tensor, Tensor]:
    y = (torch.arange(BATCH) % 2).float()
    return torch.randn(BATCH, width, generator=torch.Generator().manual_seed(2)) + 0.1 * y[:, None], y


def plain_step(width: int, config: TrialConfig) -> Callable[[], object]:
    return partial(Plain(width, config).step, *batch(width))


def our_step(width: int, config: TrialConfig) -> Callable[[], object]:
    keep_freed_memory()  # as `train` does
    return partial(ours(width, config).step, *batch(width))


def plain_epoch(data: StudyData, config: TrialConfig, num_steps: int) -> Callable[[], object]:
    return partial(Plain(data.train.features.shape[1], config).epoch, data, num_steps)


def our_epoch(data: StudyData, config: TrialConfig) -> Callable[[], object]:
    return partial(train, config, data)


def measure_step(width: int, config: TrialConfig, rounds: int) -> dict[str, object]:
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    makers = {
        "plain": partial(plain_step, width, config),
        "ours": partial(our_step, width, config),
        "products": partial(products, width, dtype),
    }
    return ratios(measure(makers, rounds, in_a_row=5))


def measure_epoch(data: StudyData, config: TrialConfig, rounds: int) -> dict[str, object]:
    one = replace(config, max_epochs=1)
    num_steps = train(one, data).num_steps
    makers = {"plain": partial(plain_epoch, data, one, num_steps), "ours": partial(our_epoch, data, one)}
    result = ratios(measure(makers, max(3, rounds // 6), in_a_row=1))
    return {**result, "num_steps": num_steps, "num_judged": sum(len(one) for one in data.generators.values())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, help="a feature store, for the time of an epoch")
    parser.add_argument("--train-generator", help="its training generator; all others are judged")
    parser.add_argument("--layer", default="proj")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--widths", type=int, nargs="+", default=[768, 512])
    options = parser.parse_args()

    torch.set_num_threads(1)
    precision = "bfloat16" if has_bfloat16(torch.device("cpu")) else "float32"
    config = TrialConfig(precision=precision)
    result: dict[str, object] = {
        "question": "milliseconds of a step, against obvious code and against its matrix products alone",
        "batch": BATCH,
        "precision": precision,
        "step": {str(width): measure_step(width, config, options.rounds) for width in options.widths},
    }
    if options.store:
        store = FeatureStore(options.store)
        known = sorted(set(store.rows["generator"].to_pylist()))
        chosen = options.train_generator or known[0]
        data = load_study_data(
            options.store,
            train_generators=[chosen],
            test_generators=[name for name in known if name != chosen],
            layer=options.layer,
        )
        result["epoch"] = measure_epoch(data, config, options.rounds)
    result["processor"] = platform.processor() or platform.machine()
    result["num_threads"] = torch.get_num_threads()
    result["versions"] = {"torch": version("torch")}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
