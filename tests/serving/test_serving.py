import asyncio
import base64
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from causal_tune.cli.serve import open_to_all, read_token
from causal_tune.detector import load_detector
from causal_tune.errors import InvalidConfig
from causal_tune.guard import Guard
from causal_tune.images.decode import decode_sized
from causal_tune.serving.limits import Limits, Refused
from causal_tune.serving.reading import Held
from causal_tune.serving.replicas import Judgement, Serving, _Scorer
from tests.conftest import run_cli
from tests.serving.conftest import DETECTOR, Server, multipart, png


def test_a_replica_notes_pictures_that_cannot_be_judged(tmp_path: Path) -> None:
    folder = tmp_path / "detector"
    shutil.copytree(DETECTOR, folder)
    description = json.loads((folder / "detector.json").read_text())
    guard = Guard(max_enlargement=2.0).to_dict()
    (folder / "detector.json").write_text(json.dumps({**description, "guard": guard}))
    replica = _Scorer(str(folder), asdict(Serving()))
    crops = [decode_sized(png(size=size)) for size in (240, 100)]
    with ThreadPoolExecutor(1) as thread:  # the browser's tests leave a loop running in this one
        answers = thread.submit(lambda: asyncio.run(replica.score_batch(crops))).result()
    good, small = [Judgement(**one) for one in answers]
    assert (good.note, good.verdict in ("real", "generated")) == (None, True)
    assert small.verdict == "unsure"
    assert str(small.note).startswith("too small: 100 x 100 pixels")


@pytest.mark.ray
@pytest.mark.slow
class TestScores:
    def test_they_are_those_of_the_detector(self, server: Server) -> None:
        images = [png(seed) for seed in range(4)]
        answer = server.score(*images)
        assert answer.status == 200
        expected = load_detector(DETECTOR).score_batch(images)
        for result, one in zip(answer.document["results"], expected, strict=True):
            assert result["score"] == pytest.approx(one.score, abs=1e-5)
            assert result["probability"] == pytest.approx(one.probability, abs=1e-5)
            assert (result["verdict"], result["name"]) == (one.verdict, "a.png")
        assert answer.document["model"] == {"id": load_detector(DETECTOR).id, "calibrated": False}

    def test_json_and_multipart_give_the_same(self, server: Server) -> None:
        body = json.dumps({"images": [base64.b64encode(png(seed)).decode() for seed in range(2)]})
        answer = server.ask("POST", "/v1/score", body, {"Content-Type": "application/json"})
        both = [server.score(png(0), png(1)).document, answer.document]
        first, second = ([result["score"] for result in document["results"]] for document in both)
        assert first == pytest.approx(second, abs=1e-6)

    def test_an_unreadable_image_costs_only_its_own_verdict(self, server: Server) -> None:
        answer = server.score(png(), b"hello", png())
        assert answer.status == 200
        assert ["error" in result for result in answer.document["results"]] == [False, True, False]

    def test_a_name_is_only_given_back(self, server: Server) -> None:
        body, headers = multipart(png(), name="../../etc/passwd")
        answer = server.ask("POST", "/v1/score", body, headers)
        assert answer.document["results"][0]["name"] == "../../etc/passwd"


@pytest.mark.ray
@pytest.mark.slow
class TestOperation:
    def test_health_needs_no_token_and_metrics_count(self, server: Server) -> None:
        assert server.ask("GET", "/healthz", token=False).document == {"status": "ok"}
        ready = server.ask("GET", "/readyz", token=False)
        assert (ready.status, ready.document["replicas"]) == (200, 1)

        def scored() -> float:
            text = server.ask("GET", "/metrics").body.decode()
            lines = [line for line in text.splitlines() if line.startswith("causal_tune_images_total")]
            return sum(float(line.split()[-1]) for line in lines if "unreadable" not in line)

        before = scored()
        server.score(png(), png())
        assert scored() == before + 2

    def test_images_of_many_clients_share_a_batch(self, server: Server) -> None:
        def full() -> float:
            text = server.ask("GET", "/metrics").body.decode()
            buckets = dict(line.split() for line in text.splitlines() if "batch_images_bucket" in line)
            return float(buckets['causal_tune_batch_images_bucket{le="+Inf"}']) - float(
                buckets['causal_tune_batch_images_bucket{le="1.0"}']
            )

        before = full()
        images = [png(seed) for seed in range(4)]
        with ThreadPoolExecutor(8) as clients:
            sent = [
                clients.submit(server.score, *images, source=f"127.0.2.{client + 1}") for client in range(8)
            ]
            assert {answer.result().status for answer in sent} == {200}
        assert full() > before

    def test_a_log_line_holds_neither_token_nor_name_nor_image(self, server: Server) -> None:
        answer = server.ask("POST", "/v1/score", *multipart(png(), name="holiday.png"))
        identity = answer.headers["x-request-id"]
        deadline = time.monotonic() + 20  # the line is written after the answer
        found: list[dict[str, Any]] = []
        while not found and time.monotonic() < deadline:
            found = [line for line in server.lines() if line.get("request") == identity]
            time.sleep(0.05)
        (line,) = found
        assert {"path": "/v1/score", "status": 200, "num_images": 1}.items() <= line.items()
        text = server.log.read_text()
        assert server.token not in text
        assert "holiday" not in text

    def test_a_replica_that_is_killed_loses_no_request(self, server: Server) -> None:
        statuses: list[int] = []
        ended = threading.Event()

        def load(client: int) -> None:
            while not ended.is_set():
                statuses.append(server.score(png(client), source=f"127.0.1.{client + 1}").status)

        with ThreadPoolExecutor(4) as clients:
            running = [clients.submit(load, client) for client in range(4)]
            time.sleep(0.5)
            (replica,) = server.replicas()
            before = len(statuses)
            replica.kill()
            deadline = time.monotonic() + 90
            while len(statuses) < before + 20 and time.monotonic() < deadline:
                time.sleep(0.1)
            ended.set()
            for one in running:
                one.result()
        assert len(statuses) >= before + 20
        assert set(statuses) <= {200, 503}
        assert statuses.count(200) > before
        assert server.score(png()).status == 200
        assert server.replicas()[0].pid != replica.pid


def test_a_token_is_read_from_a_file_or_the_environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CAUSAL_TUNE_TOKEN", "environment-0123456789")
    assert read_token(None) == "environment-0123456789"
    path = tmp_path / "token"
    path.write_text("from-a-file-0123456789\n")
    assert read_token(path) == "from-a-file-0123456789"
    for text in ("short", "two words are no token at all", "nötig-0123456789-abc", ""):
        path.write_text(text)
        with pytest.raises(InvalidConfig, match="openssl"):
            read_token(path)
    with pytest.raises(InvalidConfig, match="cannot be read"):
        read_token(tmp_path / "missing")
    monkeypatch.delenv("CAUSAL_TUNE_TOKEN")
    assert read_token(None) is None


def test_limits_that_contradict_each_other_are_an_error() -> None:
    with pytest.raises(InvalidConfig, match="100,000,000"):
        Limits(max_pixels=10**9)
    with pytest.raises(InvalidConfig, match="smaller limit"):
        Limits(max_body_bytes=2**30)


def test_wrong_usage_ends_before_anything_is_started(tmp_path) -> None:
    import socket

    assert run_cli("serve", tmp_path).exit_code == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        result = run_cli("serve", DETECTOR, "--port", taken.getsockname()[1])
    assert result.exit_code == 2
    assert "cannot be listened on" in result.output


def test_only_an_address_that_others_reach_needs_a_token() -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1"):
        assert open_to_all(host, None) is None
    for host in ("0.0.0.0", "::", "192.168.0.7"):
        assert "no token" in str(open_to_all(host, None))
        assert open_to_all(host, "0123456789abcdef") is None


def test_all_bodies_together_have_a_limit() -> None:
    held = Held(Limits(max_body_bytes=100, max_held_bytes=250))
    held.take(200)
    with pytest.raises(Refused) as refused:
        held.take(51)
    assert (refused.value.status, refused.value.retry_after_s, held.num_bytes) == (503, 1, 200)
    held.num_bytes -= 200
    held.take(51)
