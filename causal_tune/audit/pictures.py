"""Small pictures of the images that an audit names as examples."""

import io
from typing import Any

from PIL import Image

from causal_tune.audit.findings import Audit
from causal_tune.errors import UnreadableImage
from causal_tune.images.decode import decode_upright
from causal_tune.images.files import is_remote, read_image_bytes
from causal_tune.images.isolated import isolated

__all__ = ["example_pictures", "thumbnail"]

MOST_PICTURES = 40
_SIDE = 160  # pixels of the longer side


def example_pictures(audit: Audit) -> dict[str, bytes]:
    """JPEGs by path: of the examples of each finding and note, without those that are remote or cannot be read."""
    paths = [
        one.path
        for item in audit.findings
        for group in item.examples
        for one in group
        if not is_remote(one.path)
    ]
    chosen = list(dict.fromkeys(paths))[:MOST_PICTURES]
    calls: list[tuple[Any, ...]] = [(path, _SIDE) for path in chosen]
    found = zip(chosen, isolated(thumbnail, calls), strict=True)
    return {path: jpeg for path, jpeg in found if not isinstance(jpeg, UnreadableImage)}


def thumbnail(path: str, side: int) -> bytes:
    """A JPEG of a whole image, upright, of at most `side` pixels; `UnreadableImage` where there is none."""
    image = decode_upright(read_image_bytes(path))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()
