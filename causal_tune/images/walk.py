"""The image files under a folder, listed once, with what was skipped and why."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from causal_tune.errors import IndexingError

__all__ = ["IMAGE_SUFFIXES", "ImageFolder", "Tree", "is_utf8", "list_images"]

IMAGE_SUFFIXES = frozenset(
    {*(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif")}
)
"""Last suffixes, in lower case, of the files that count as images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder:
    """One folder that holds image files itself."""

    path: str
    """Absolute."""
    parts: tuple[str, ...]
    """Its names below the root, outermost first; empty for the root itself."""
    names: tuple[str, ...]
    """File names of its images, sorted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """All image files under one root."""

    root: Path
    folders: list[ImageFolder]
    """In the order of their parts."""
    skipped: Counter[str]
    """Reason -> number of files (or links) left out."""

    @property
    def num_images(self) -> int:
        """Number of image files in all folders."""
        return sum(len(folder.names) for folder in self.folders)


def list_images(root: Path) -> Tree:
    """List the image files under `root`, following links to folders but no link back to an ancestor.

    Files count as images by their last suffix, in any case (`a.b.PNG`). Names that begin with a dot are
    skipped (`._x.jpg` and `.DS_Store` of macOS), and so are names that are not UTF-8, which no Parquet
    text column can hold; both are counted, of a folder of such a name all files in it. A folder that cannot
    be listed is an error: leaving it out would lose its images silently.
    """
    skipped: Counter[str] = Counter()
    folders = sorted(_walk(os.fspath(root), (), (), skipped), key=lambda folder: folder.parts)
    return Tree(root=root, folders=folders, skipped=skipped)


def _walk(
    path: str,
    parts: tuple[str, ...],
    ancestors: tuple[tuple[int, int], ...],
    skipped: Counter[str],
) -> Iterator[ImageFolder]:
    try:
        status = os.stat(path)  # noqa: PTH116  paths stay strings: a tree may hold millions
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors:
            skipped["link back to a folder above"] += 1
            return
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise IndexingError(
            f"The folder {path!r} cannot be listed: {error.strerror}. Its images would be missing from the "
            f"index; make it readable or move it out of the root."
        ) from error
    names = []
    for entry in found:
        if entry.name.startswith("."):
            skipped["hidden"] += 1
        elif not is_utf8(entry.name):
            inside = sum(len(files) for *_, files in os.walk(entry.path)) if _is_folder(entry) else 1
            skipped["name is not UTF-8"] += inside
        elif _is_folder(entry):
            yield from _walk(entry.path, (*parts, entry.name), (*ancestors, identity), skipped)
        elif (suffix := os.path.splitext(entry.name)[1].lower()) in IMAGE_SUFFIXES:  # noqa: PTH122
            names.append(entry.name)
        else:
            skipped[suffix or "no suffix"] += 1
    if names:
        yield ImageFolder(path=path, parts=parts, names=tuple(names))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: listed as a file, found unreadable later
        return False


def is_utf8(name: str) -> bool:
    """Whether a file name can be written as text; the index and every table of scores are text."""
    try:
        name.encode()
    except UnicodeEncodeError:  # Python keeps undecodable bytes of file names as lone surrogates
        return False
    return True
