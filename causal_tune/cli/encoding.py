"""How images become features: the options that `extract` and the jobs share, as one value."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from causal_tune.cli.output import names
from causal_tune.errors import InvalidConfig
from causal_tune.images.preprocessing import SMALL_POLICIES, Preprocessing
from causal_tune.images.views import DEGRADED, augmented_view, degraded_views
from causal_tune.runtimes import RUNTIMES

__all__ = ["Encoding", "encoding_options", "runtime_option"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """What `extraction.extract` is asked for, beside the images and the place."""

    encoder: str
    layers: tuple[str, ...] = ("proj",)
    dtype: str = "auto"
    runtime: str = "auto"
    preprocessing: Preprocessing = Preprocessing()  # noqa: RUF009  frozen
    views: tuple[str, ...] = ()
    batch_size: int = 64
    num_actors: int | None = None
    gpus_per_actor: float = 0.0


def runtime_option(auto: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--runtime`: what computes the encoder; `auto` says what is taken by default."""
    return click.option(
        "--runtime",
        type=click.Choice(["auto", *sorted(RUNTIMES)]),
        default="auto",
        show_default=True,
        help=f"What computes the encoder. auto: {auto}.",
    )


def _degraded(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return degraded_views(names(context, parameter, given))
    except InvalidConfig as error:
        raise click.BadParameter(str(error)) from error


def encoding_options(
    encoder: str | None = None, degrade: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options, given to the command as one `encoding`, with these defaults; without `encoder` it must be named."""
    options: list[Callable[[Any], Any]] = [
        click.option(
            "--encoder",
            required=encoder is None,
            default=encoder,
            show_default=True,
            help="A name of `causal-tune encoders`, MODEL:TAG, or a weights file.",
        ),
        click.option(
            "--layers",
            multiple=True,
            default=("proj",),
            show_default=True,
            callback=names,
            help="Comma-separated: proj, pre, cls@K, mean@K. All come from one pass.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "bfloat16", "float32", "int8"]),
            default="auto",
            show_default=True,
            help="What it computes in. int8 (needs the extra causal-tune[int8]) costs accuracy, and prints how much.",
        ),
        runtime_option("OpenVINO on CPUs with AVX-512, else torch"),
        click.option(
            "--views",
            "num_augmented",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            metavar="K",
            help="Augmented views (blur, JPEG, random crop, mirror) of each image that is not of split test.",
        ),
        click.option(
            "--degrade",
            multiple=True,
            default=tuple(degrade),
            show_default=bool(degrade),
            callback=_degraded,
            metavar="NAMES",
            help=f"Degraded views of each image that is not of split train: {', '.join(DEGRADED)}, or jpeg-Q, "
            "blur-S, lr-N. Comma-separated.",
        ),
        click.option(
            "--small",
            type=click.Choice(SMALL_POLICIES),
            default=Preprocessing().small,
            show_default=True,
            help="What is done to images smaller than the crop. Zeros of `pad` tell small generators apart.",
        ),
        click.option(
            "--recompress",
            type=click.IntRange(1, 100),
            metavar="QUALITY",
            help="Bring every image to JPEG of this quality first, real and generated alike. [default: none]",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(1),
            default=64,
            show_default=True,
            help="Images that go to an encoder at once.",
        ),
        click.option(
            "--actors",
            "num_actors",
            type=click.IntRange(1),
            help="Encoders side by side. [default: by resources]",
        ),
        click.option(
            "--gpus-per-actor",
            type=click.FloatRange(0),
            default=0.0,
            show_default=True,
            help="May be a fraction.",
        ),
    ]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_encoding(
            *,
            encoder: str,
            layers: tuple[str, ...],
            dtype: str,
            runtime: str,
            num_augmented: int,
            degrade: tuple[str, ...],
            small: str,
            recompress: int | None,
            batch_size: int,
            num_actors: int | None,
            gpus_per_actor: float,
            **others: Any,
        ) -> Any:
            encoding = Encoding(
                encoder=encoder,
                layers=layers,
                dtype=dtype,
                runtime=runtime,
                preprocessing=Preprocessing(small=small, recompress=recompress),
                views=(*map(augmented_view, range(num_augmented)), *degrade),
                batch_size=batch_size,
                num_actors=num_actors,
                gpus_per_actor=gpus_per_actor,
            )
            return command(encoding=encoding, **others)

        decorated: Callable[..., Any] = with_encoding
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate
