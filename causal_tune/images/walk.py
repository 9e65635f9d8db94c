"""The image files under a folder, listed once, with what was skipped and why."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from causal_tune.errors import IndexingError
from causal_tune.images.files import is_remote, join, walk_remote

__all__ = ["IMAGE_SUFFIXES", "ImageFolder", "Tree", "is_utf8", "list_images"]

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif"}
)
"""Last suffixes, in lower case, of the files that count as images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder:
    """One folder that holds image files itself."""

    path: str
    """Absolute, or a URI."""
    parts: tuple[str, ...]
    """Its names below the root, outermost first; empty for the root itself."""
    names: tuple[str, ...]
    """File names of its images, sorted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """All image files under one root."""

    root: str
    """Absolute, or a URI."""
    folders: list[ImageFolder]
    """In the order of their parts."""
    skipped: Counter[str]
    """Reason -> number of files (or links) left out."""

    @property
    def num_images(self) -> int:
        """Number of image files in all folders."""
        return sum(len(folder.names) for folder in self.folders)

    @property
    def num_by_suffix(self) -> Counter[str]:
        """Suffix in lower case -> number of image files that have it."""
        return Counter(_suffix(name) for folder in self.folders for name in folder.names)


def list_images(
    root: str, wanted: Callable[[str], str | None] | None = None, *, any_name: bool = False
) -> Tree:
    """List the image files under `root`, following links to folders but no link back to an ancestor.

    Files count as images by their last suffix, in any case (`a.b.PNG`). Names that begin with a dot are
    skipped (`._x.jpg` and `.DS_Store` of macOS), and so are names that are not UTF-8, which no Parquet
    text column can hold; both are counted, of a folder of such a name all files in it. With `any_name`
    names that are not UTF-8 are taken, and files without a suffix count as images. A folder that cannot be
    listed is an error: leaving it out would lose its images silently. `wanted` is given an image's path
    below `root` and answers None, or why it is left out.
    """
    skipped: Counter[str] = Counter()
    walk = (
        _walk_remote(root, skipped, any_name) if is_remote(root) else _walk(root, (), (), skipped, any_name)
    )
    folders = sorted(walk, key=lambda folder: folder.parts)
    if wanted is not None:
        folders = [kept for folder in folders if (kept := _wanted(folder, wanted, skipped)).names]
    return Tree(root=root, folders=folders, skipped=skipped)


def _wanted(folder: ImageFolder, wanted: Callable[[str], str | None], skipped: Counter[str]) -> ImageFolder:
    reasons = {name: wanted("/".join((*folder.parts, name))) for name in folder.names}
    skipped.update(reason for reason in reasons.values() if reason)
    return replace(folder, names=tuple(name for name, reason in reasons.items() if not reason))


def _walk_remote(root: str, skipped: Counter[str], any_name: bool) -> Iterator[ImageFolder]:
    names: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for parts in walk_remote(root):
        if any(part.startswith(".") for part in parts):
            skipped["hidden"] += 1
        elif (suffix := _suffix(parts[-1])) in IMAGE_SUFFIXES or (any_name and not suffix):
            names[parts[:-1]].append(parts[-1])
        else:
            skipped[suffix or "no suffix"] += 1
    for above, found in names.items():
        yield ImageFolder(path=join(root, *above), parts=above, names=tuple(sorted(found)))


def _walk(
    path: str,
    parts: tuple[str, ...],
    ancestors: tuple[tuple[int, int], ...],
    skipped: Counter[str],
    any_name: bool,
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
        elif not any_name and not is_utf8(entry.name):
            inside = sum(len(files) for *_, files in os.walk(entry.path)) if _is_folder(entry) else 1
            skipped["name is not UTF-8"] += inside
        elif _is_folder(entry):
            yield from _walk(entry.path, (*parts, entry.name), (*ancestors, identity), skipped, any_name)
        elif (suffix := _suffix(entry.name)) in IMAGE_SUFFIXES or (any_name and not suffix):
            names.append(entry.name)
        else:
            skipped[suffix or "no suffix"] += 1
    if names:
        yield ImageFolder(path=path, parts=parts, names=tuple(names))


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  paths stay strings


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
