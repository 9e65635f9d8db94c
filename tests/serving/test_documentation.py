"""The client and the container recipe of docs/serving.md, run as they stand there."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from causal_tune.cli.serve import serve_command
from tests.serving.conftest import Server, png

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "serving.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.S)
    return str(found)


@pytest.mark.ray
@pytest.mark.slow
def test_the_client_gets_verdicts_and_reasons(server: Server) -> None:
    names: dict[str, object] = {}
    exec(compile(block("python"), "docs/serving.md", "exec"), names)
    score = names["score"]
    assert callable(score)
    first, second = score(server.url, {"a.png": png(), "b.png": b"hello"}, token=server.token)
    assert (first["name"], first["verdict"] in ("real", "generated", "unsure")) == ("a.png", True)
    assert "begins with 'hello'" in second["error"]
    (only,) = score(server.url, {"b.png": b"hello"}, token=server.token)
    assert only["error"]
    with pytest.raises(RuntimeError, match="Bearer"):
        score(server.url, {"a.png": png()}, token="wrong")


@pytest.mark.ray
@pytest.mark.slow
def test_the_health_check_of_the_container_follows_the_server(server: Server) -> None:
    words = shlex.split(re.findall(r"^HEALTHCHECK .*? CMD (.*)$", block("dockerfile"), flags=re.M)[0])
    host, port = server.address
    words = [sys.executable, *(word.replace("127.0.0.1:8000", f"{host}:{port}") for word in words[1:])]
    assert subprocess.run(words, timeout=60).returncode == 0
    nowhere = [word.replace(f":{port}", ":9") for word in words]
    assert subprocess.run(nowhere, timeout=60, stderr=subprocess.DEVNULL).returncode != 0


def test_the_container_starts_the_command_as_it_is() -> None:
    recipe = block("dockerfile")
    program, name, *words = json.loads(re.findall(r"^CMD (\[.*\])$", recipe, flags=re.M)[0])
    assert (program, name) == ("causal-tune", "serve")
    given = serve_command.make_context(name, words).params
    assert (given["host"], given["port"]) == ("0.0.0.0", 8000)
    (extra,) = re.findall(r'"/src\[(\w+)\]"', recipe)
    assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()
