"""How fast does a served detector answer, what do batches bring, and what does a killed replica cost?

    python benchmarks/serving.py [--detector DIR] [--seconds 5] [--replicas 1] [--cpus 1]

- `bare`: images a second of the model alone on one thread, decoded already, one by one and 16 at a time.
- `served`: `causal-tune serve` on loopback, JPEGs of 256 x 256 one a request, asked by 1, 8 and 32 clients that
  each wait for their answer: requests a second, percentiles of the latency in ms; with batches of 16 and without.
- `killed`: 8 clients; the only replica is killed. Answers by status (0: none), and seconds without any score.

Clients, gate, decoders and replica share this machine. Without --detector, a tiny one with random weights.
"""

import argparse
import hashlib
import http.client
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import torch
from PIL import Image
from safetensors.torch import save as save_safetensors

from causal_tune.clip import describe_encoder
from causal_tune.detector import load_detector


def tiny_detector(folder: Path) -> Path:
    """A linear head with random weights on the encoder of the tests."""
    encoder = describe_encoder("tiny-random", layers=("proj",))
    generator = torch.Generator().manual_seed(0)
    state = {
        "classifier.weight": torch.randn(1, 32, generator=generator),
        "classifier.bias": torch.zeros(1),
    }
    data = save_safetensors(state)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(data)
    description = {
        "format": 1,
        "name": folder.name,
        "head": {"head": "linear", "width": 32, "learning_rate": 0.001},
        "layer": "proj",
        "encoder": {"name": "tiny-random", "dtype": encoder.dtype, "weights_sha256": encoder.weights_sha256},
        "preprocessing": "center-crop-224/v1",
        "labels": {"0": "real", "1": "generated"},
        "threshold": {"value": 0.5, "provenance": "made up"},
        "calibration": None,
        "model_sha256": hashlib.sha256(data).hexdigest(),
        "provenance": {"versions": {"causal-tune": version("causal-tune")}},
    }
    (folder / "detector.json").write_text(json.dumps(description))
    return folder


def bare(folder: Path, seconds: float) -> dict[str, float]:
    detector = load_detector(folder)
    torch.set_num_threads(1)
    crops = np.random.default_rng(0).integers(0, 256, (16, 224, 224, 3), dtype=np.uint8)
    found = {}
    for batch in (1, 16):
        detector.score_crops(crops[:batch])
        started, done = time.perf_counter(), 0
        while (took := time.perf_counter() - started) < seconds:
            detector.score_crops(crops[:batch])
            done += batch
        found[f"batch_{batch}"] = round(done / took, 1)
    return found


class Served:
    """`causal-tune serve` in a process of its own."""

    def __init__(self, folder: Path, *options: object) -> None:
        words = [sys.executable, "-m", "causal_tune", "serve", folder, "--port", 0, "--rate", 0, "--json"]
        self.process = subprocess.Popen(
            [str(word) for word in (*words, *options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        )
        text = ""
        for line in self.process.stdout or ():
            text += line
            if line == "}\n":
                break
        address = urlsplit(json.loads(text)["url"])
        self.address = (str(address.hostname), int(address.port or 80))

    def replica(self) -> psutil.Process:
        below = psutil.Process(self.process.pid).children(recursive=True)
        return next(child for child in below if "ServeReplica" in " ".join(child.cmdline()))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def load(
    served: Served, num_clients: int, seconds: float, body: bytes, ended: threading.Event | None = None
) -> list[tuple[float, float, int]]:
    """(begin, end, status) of every request."""
    answers: list[tuple[float, float, int]] = []
    until = time.perf_counter() + seconds
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}

    def client() -> None:
        connection = http.client.HTTPConnection(*served.address, timeout=120)
        while time.perf_counter() < until and not (ended and ended.is_set()):
            begin = time.perf_counter()
            try:
                connection.request("POST", "/v1/score", body, headers)
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            except (OSError, http.client.HTTPException):
                connection.close()
                status = 0
            answers.append((begin, time.perf_counter(), status))
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def summary(answers: list[tuple[float, float, int]]) -> dict[str, object]:
    latencies = np.array([1000 * (end - begin) for begin, end, status in answers if status == 200])
    took = max(end for _, end, _ in answers) - min(begin for begin, _, _ in answers)
    p50, p95, p99 = np.percentile(latencies, (50, 95, 99)).round(1).tolist()
    return {
        "requests_per_s": round(len(latencies) / took, 1),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "status": dict(Counter(status for *_, status in answers)),
    }


def killed(served: Served, body: bytes) -> dict[str, object]:
    ended = threading.Event()
    answers: list[tuple[float, float, int]] = []
    clients = threading.Thread(target=lambda: answers.extend(load(served, 8, 180, body, ended)))
    clients.start()
    time.sleep(3)
    before = served.replica()
    before.kill()
    at = time.perf_counter()
    connection = http.client.HTTPConnection(*served.address, timeout=150)
    time.sleep(0.5)  # what it had answered has arrived
    connection.request("POST", "/v1/score", body, {"Content-Type": "multipart/form-data; boundary=edge"})
    connection.getresponse().read()
    time.sleep(2)
    ended.set()
    clients.join()
    good = sorted([end for _, end, status in answers if status == 200 and end > at - 1])
    gap = max(later - earlier for earlier, later in pairwise(good))
    return {"status": dict(Counter(status for *_, status in answers)), "seconds_without": round(gap, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--detector", type=Path)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--cpus", type=float, default=1)
    arguments = parser.parse_args()
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((256, 256), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    head = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    body = head + buffer.getvalue() + b"\r\n--edge--\r\n"
    document: dict[str, object] = {
        "cpus": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
    }
    document["versions"] = {
        name: version(name) for name in ("causal-tune", "ray", "torch", "fastapi", "uvicorn")
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.detector or tiny_detector(Path(scratch) / "tiny")
        document["detector"] = load_detector(folder).name
        document["bare"] = bare(folder, arguments.seconds)
        found: dict[str, object] = {}
        for name, batch in (("batches", 16), ("no_batches", 1)):
            options = ("--batch-size", batch, "--replicas", arguments.replicas, "--cpus", arguments.cpus)
            served = Served(folder, *options)
            try:
                load(served, 8, 1, body)
                found[name] = {
                    f"clients_{clients}": summary(load(served, clients, arguments.seconds, body))
                    for clients in (1, 8, 32)
                }
                if batch > 1 and arguments.replicas == 1:
                    document["killed"] = killed(served, body)
            finally:
                served.stop()
        document["served"] = found
    document["load_average"] = os.getloadavg()
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
