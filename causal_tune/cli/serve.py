"""`serve`: a detector behind an HTTP address."""

import importlib.util
import ipaddress
import os
import time
from pathlib import Path

import click

from causal_tune.cli.encoding import runtime_option
from causal_tune.cli.output import emit, err, json_option, out, under_workspace, workspace_option
from causal_tune.errors import InvalidConfig

__all__ = ["serve_command"]

_TOKEN_VARIABLE = "CAUSAL_TUNE_TOKEN"
_MIN_TOKEN = 16


@click.command("serve", epilog="Example: causal-tune serve detectors/real --port 8000")
@click.argument("detector")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"A file with the token that clients must send. Without it, ${_TOKEN_VARIABLE} counts.",
)
@click.option("--replicas", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--cpus", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Of one replica."
)
@click.option(
    "--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Images of one forward pass."
)
@click.option(
    "--batch-wait-ms",
    type=click.FloatRange(0),
    default=5.0,
    show_default=True,
    help="For which an image waits for others at most.",
)
@click.option(
    "--decoders", type=click.IntRange(1), default=2, show_default=True, help="Processes that decode."
)
@click.option("--max-body-mb", type=click.FloatRange(0, min_open=True), default=32.0, show_default=True)
@click.option("--max-images", type=click.IntRange(1), default=32, show_default=True, help="Of one request.")
@click.option(
    "--max-pixels", type=click.IntRange(1), default=50_000_000, show_default=True, help="Of one image."
)
@click.option(
    "--rate",
    type=click.FloatRange(0),
    default=50.0,
    show_default=True,
    help="Requests a second and client address. 0: no limit.",
)
@click.option(
    "--read-timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds for a request to arrive.",
)
@click.option(
    "--drain-delay",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Seconds after SIGTERM for which /readyz says no and requests are still taken: longer than the interval "
    "at which your load balancer asks it.",
)
@click.option(
    "--drain-timeout",
    type=click.IntRange(1),
    default=30,
    show_default=True,
    help="Seconds after that for requests that have begun.",
)
@click.option("--address", help="A Ray cluster for the replicas. Default: a local Ray, or $RAY_ADDRESS.")
@runtime_option("what training used, if available here")
@workspace_option
@json_option
def serve_command(
    detector: str,
    host: str,
    port: int,
    token_file: Path | None,
    replicas: int,
    cpus: float,
    batch_size: int,
    batch_wait_ms: float,
    decoders: int,
    max_body_mb: float,
    max_images: int,
    max_pixels: int,
    rate: float,
    read_timeout: float,
    drain_delay: float,
    drain_timeout: int,
    address: str | None,
    runtime: str,
    workspace: Path,
    as_json: bool,
) -> None:
    """Serve DETECTOR, a name or a folder: scores at /v1/score, a page at /, /healthz, /readyz, /metrics.

    SIGTERM drains it.
    """
    lacking = [name for name in ("ray.serve", "python_multipart", "markdown_it") if not _is_there(name)]
    if lacking:
        raise InvalidConfig(
            f"Serving needs packages that are not installed ({', '.join(lacking)}). "
            "Install them with `pip install 'causal-tune[serve]'`."
        )
    token = read_token(token_file)
    from causal_tune.cluster import connected
    from causal_tune.detector import load_detector
    from causal_tune.serving.app import Gate
    from causal_tune.serving.decoding import Decoders
    from causal_tune.serving.limits import Limits
    from causal_tune.serving.records import log, log_to_stderr
    from causal_tune.serving.replicas import Replicas, Serving
    from causal_tune.serving.server import listen, run

    limits = Limits(
        max_body_bytes=int(max_body_mb * 2**20),
        max_images=max_images,
        max_pixels=max_pixels,
        rate=rate,
        read_timeout_s=read_timeout,
    )
    folder = under_workspace(workspace, "detectors", detector)
    loaded = load_detector(folder)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    bound = listen(host, port)
    host, port = bound.getsockname()[:2]
    if warning := open_to_all(host, token):
        err.print(warning)
    started = time.monotonic()
    pool = Decoders(decoders, loaded.preprocessing, limits)
    serving = Serving(
        replicas=replicas, cpus=cpus, batch=batch_size, batch_wait_s=batch_wait_ms / 1000, runtime=runtime
    )
    asked = Replicas(folder, serving, answer_timeout_s=limits.answer_timeout_s)
    with connected(address):
        asked.start()
        gate = Gate(detector=loaded, card=text, replicas=asked, decoders=pool, limits=limits, token=token)
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        document = {"url": url, "model": loaded.id, "replicas": replicas, "pid": os.getpid()}

        def announce() -> None:
            log_to_stderr()
            log("listening", url=url, model=loaded.id, seconds=round(time.monotonic() - started, 1))
            emit(as_json, document, lambda: out.print(f"{loaded.name} answers at {url}. Ctrl-C ends it."))

        try:
            run(gate, bound, drain_delay_s=drain_delay, drain_s=drain_timeout, announce=announce)
        finally:
            pool.close()
            asked.stop()
    log("ended")


def open_to_all(host: str, token: str | None) -> str | None:
    """A warning where other machines reach this address and need no token."""
    if token or ipaddress.ip_address(host).is_loopback:
        return None
    return (
        f"Warning: {host} can be reached from other machines and there is no token: whoever reaches it can "
        f"use it. Give --token-file or ${_TOKEN_VARIABLE}."
    )


def _is_there(module: str) -> bool:
    if module == "ray.serve":  # the module is there without what it imports
        module = "grpc_reflection"
    return importlib.util.find_spec(module) is not None


def read_token(path: Path | None) -> str | None:
    """The token in a file, or else in the environment; None where there is neither."""
    if path is not None:
        try:
            token, source = path.read_text(encoding="utf-8").strip(), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidConfig(
                f"The token file {path} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}. "
                "Make one with `openssl rand -hex 32 > FILE`."
            ) from error
    else:
        token, source = os.environ.get(_TOKEN_VARIABLE, "").strip(), f"${_TOKEN_VARIABLE}"
        if not token:
            return None
    if len(token) < _MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidConfig(
            f"The token in {source} has to be {_MIN_TOKEN} or more letters and digits in one line. "
            "Make one with `openssl rand -hex 32`."
        )
    return token
