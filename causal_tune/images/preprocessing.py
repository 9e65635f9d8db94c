"""What is done to an image between its file and the encoder, as a value with a stable name.

The name enters the fingerprint of a feature store and is carried by a detector: equal names promise
equal pixels. `causal_tune.images.decode` does what the value says.
"""

import re
from contextlib import suppress
from dataclasses import dataclass, fields

from causal_tune.errors import InvalidConfig

__all__ = ["CROP_SIZE", "SMALL_POLICIES", "Preprocessing"]

CROP_SIZE = 224
"""Side of the square crop, in pixels: what CLIP ViT-B/16 and ViT-L/14 take."""

SMALL_POLICIES = ("resize", "pad", "reflect")
"""What can be done to an image smaller than the crop, the default first; `causal_tune.images.decode` says how."""

_VERSION = "v1"
"""Version of the rules in `causal_tune.images.decode`; a change of any crop is a new one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """Which crop an encoder sees; raises `InvalidConfig` for values out of range.

    >>> Preprocessing().name
    'center-crop-224/v1'
    >>> Preprocessing(small="pad", recompress=90).name
    'center-crop-224/v1+small=pad+recompress=90'
    """

    crop_size: int = CROP_SIZE
    """Side of the square crop, in pixels: the encoder's own."""
    small: str = SMALL_POLICIES[0]
    """One of `SMALL_POLICIES`."""
    recompress: int | None = None
    """JPEG quality, 1 to 100, to which every image is brought at its native size before the crop; None: none is.

    Photographs mostly come as JPEG and generated images as PNG, and a detector that learns the file format
    looks perfect until both come as JPEG. Recompressing both sides takes that cue away, bar one: what was
    JPEG before is now compressed twice.
    """

    def __post_init__(self) -> None:
        if self.crop_size < 1:
            raise InvalidConfig(f"The crop size is {self.crop_size}; it should be at least 1 pixel.")
        if self.small not in SMALL_POLICIES:
            raise InvalidConfig(
                f"Small images are to be treated by {self.small!r}; expected one of {', '.join(SMALL_POLICIES)}."
            )
        if self.recompress is not None and not 1 <= self.recompress <= 100:
            raise InvalidConfig(f"The JPEG quality to recompress to is {self.recompress}; expected 1 to 100.")

    @property
    def name(self) -> str:
        """Crop, version of the rules, and every option that is not the default, in the order of the fields."""
        options = [
            f"+{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if field.name != "crop_size" and getattr(self, field.name) != field.default
        ]
        return f"center-crop-{self.crop_size}/{_VERSION}{''.join(options)}"

    @classmethod
    def parse(cls, name: str) -> "Preprocessing":
        """The value called `name`; `InvalidConfig` where this release knows no such rules.

        >>> Preprocessing.parse("center-crop-224/v1+recompress=90").recompress
        90
        """
        found = re.fullmatch(
            r"center-crop-([1-9]\d*)/v1(?:\+small=([a-z]+))?(?:\+recompress=([1-9]\d*))?", name, re.ASCII
        )
        if found:
            size, small, quality = found.groups()
            with suppress(InvalidConfig):
                parsed = cls(
                    crop_size=int(size),
                    small=small or SMALL_POLICIES[0],
                    recompress=int(quality) if quality else None,
                )
                if parsed.name == name:  # one value, one name: a default that is spelled out is another
                    return parsed
        raise InvalidConfig(
            f"The preprocessing {name!r} is not known to this release, which knows names like "
            f"{cls(small='pad', recompress=90).name!r}. Use the release that wrote it, or extract again."
        )
