"""Images of strangers become crops in child processes, a few at a time."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from causal_tune.errors import ImageTooLarge, UnreadableImage
from causal_tune.images.decode import SizedCrop, decode_sized, open_image
from causal_tune.images.isolated import isolated
from causal_tune.images.preprocessing import Preprocessing
from causal_tune.serving.limits import Limits

__all__ = ["Decoders", "bounded_crop"]


def bounded_crop(data: bytes, preprocessing: Preprocessing, max_pixels: int) -> SizedCrop:
    """The crop of an encoded image, as `decode_sized` has it; `UnreadableImage` above `max_pixels`."""
    width, height = open_image(data).size
    if width * height > max_pixels:
        raise ImageTooLarge(f"{width:,} x {height:,} pixels are more than the limit of {max_pixels:,}")
    return decode_sized(data, preprocessing)


class Decoders:
    """Threads that each have a child process, which a hostile file may crash."""

    def __init__(self, num_decoders: int, preprocessing: Preprocessing, limits: Limits) -> None:
        self._preprocessing = preprocessing
        self._limits = limits
        self._threads = ThreadPoolExecutor(num_decoders, thread_name_prefix="decoder")

    async def crops(self, images: Sequence[bytes]) -> list[SizedCrop | UnreadableImage]:
        """A crop or the reason why there is none for each image, in order."""
        loop = asyncio.get_running_loop()
        return await asyncio.gather(
            *(loop.run_in_executor(self._threads, self._one, data) for data in images)
        )

    def close(self) -> None:
        """End the threads, and their children with them."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _one(self, data: bytes) -> SizedCrop | UnreadableImage:
        call = (data, self._preprocessing, self._limits.max_pixels)
        (crop,) = isolated(bounded_crop, [call], self._limits.decode_limit_s)
        return crop
