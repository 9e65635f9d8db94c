"""Where image files lie: local paths, and the URIs that pyarrow opens (`s3://`, `gs://`, `hdfs://`, ...).

An image is named by one string all the way from the index to the encoder. A URI keeps its query
(`s3://bucket/a.png?region=eu-west-1`), so that any machine that reads an index finds the file; it never
holds credentials, which come from the environment as pyarrow's filesystems take them. `file://` is a
local path. Local files are read by the operating system alone, without pyarrow in between.
"""

import functools
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

from causal_tune.errors import ImageTooLarge, IndexingError, UnreadableImage

__all__ = [
    "MAX_BYTES",
    "access_environment",
    "any_exists",
    "below",
    "check_num_bytes",
    "is_remote",
    "join",
    "kind_of",
    "located",
    "parent",
    "pure_path",
    "read_bytes",
    "read_image_bytes",
    "relative_to",
    "walk_remote",
]

MAX_BYTES = 512 * 2**20
"""File size above which an image is not read."""

_SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss", "file")
_MAX_REASON = 160
_ACCESS = ("AWS_", "AZURE_", "GOOGLE_", "GCE_", "HADOOP_", "ARROW_", "KRB5")
_DENIED = re.compile(
    r"ACCESS_DENIED|SIGNATURE_DOES_NOT_MATCH|INVALID_ACCESS_KEY|HTTP status 403|PERMISSION_DENIED"
)


def located(name: str | os.PathLike[str]) -> str:
    """The name of a file or folder as an index keeps it: an absolute local path, or a URI.

    Links are not resolved: an index names images as the user does. IndexingError for a URI that is not
    of a known filesystem or that holds a password.

    >>> located("file:///data/a%20b.png"), located("s3://bucket/a b/?region=eu-west-1")
    ('/data/a b.png', 's3://bucket/a%20b?region=eu-west-1')
    """
    text = os.fspath(name)
    if "://" not in text:
        return os.path.abspath(Path(text).expanduser())  # noqa: PTH100  `resolve` would follow links
    parts = urlsplit(text)
    if parts.scheme not in _SCHEMES:
        raise IndexingError(
            f"{_without_password(text)!r} is neither a local path nor a URI that can be read. "
            f"Expected one of {', '.join(f'{scheme}://' for scheme in _SCHEMES)}."
        )
    if parts.password is not None:
        raise IndexingError(
            f"{_without_password(text)!r} holds a password, which would be written into the index. Leave it "
            f"out and set it in the environment (for s3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)."
        )
    if parts.scheme == "file":
        return os.path.normpath(unquote(parts.path))
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{quote(unquote(parts.path)).rstrip('/')}{query}"


def is_remote(name: str) -> bool:
    """Whether a located name is a URI."""
    return "://" in name


def join(folder: str, *names: str) -> str:
    """A file or folder below a located folder.

    >>> join("s3://bucket/a?region=x", "b c.png")
    's3://bucket/a/b%20c.png?region=x'
    """
    if not is_remote(folder):
        # keeps the string a plain one: pathlib costs 5 times as much per image
        return os.path.join(folder, *names)  # noqa: PTH118
    path, mark, query = folder.partition("?")
    return "/".join((path, *map(quote, names))) + mark + query


def parent(name: str) -> str:
    """The folder that holds a located file."""
    if not is_remote(name):
        return os.path.dirname(name)  # noqa: PTH120  names stay strings
    path, mark, query = name.partition("?")
    return path.rpartition("/")[0] + mark + query


def below(folder: str, path: str) -> str:
    """The file that a list in `folder` names by `path`: relative to it, absolute, or a URI.

    >>> below("/data", "../b.png"), below("s3://bucket/lists?region=x", "../a b.png")
    ('/b.png', 's3://bucket/a%20b.png?region=x')
    """
    if "://" in path:
        return located(path)
    if not is_remote(folder) or path.startswith("/"):
        return os.path.normpath(Path(folder) / path)
    scheme, _, rest = folder.partition("://")
    whole, mark, query = rest.partition("?")
    return f"{scheme}://{posixpath.normpath(f'{whole}/{quote(path)}')}{mark}{query}"


def pure_path(name: str) -> PurePath:
    """A located name as a path without query, whose `parts` and `name` say what the folders are called."""
    if not is_remote(name):
        return PurePath(name)
    parts = urlsplit(name)
    return PurePosixPath(f"/{parts.netloc}{unquote(parts.path)}")


def relative_to(name: str, folder: str) -> str:
    """The path of a located file seen from a folder, with forward slashes; the whole one elsewhere.

    >>> relative_to("/d/a/b.png", "/d"), relative_to("s3://b/a%20b.png?region=x", "s3://b?region=x")
    ('a/b.png', 'a b.png')
    """
    if is_remote(name) != is_remote(folder):
        return name
    return Path(os.path.relpath(pure_path(name), pure_path(folder))).as_posix()


def kind_of(name: str) -> Literal["file", "folder", "missing"]:
    """What a located name stands for; IndexingError where its filesystem cannot be asked."""
    if not is_remote(name):
        path = Path(name)
        return "folder" if path.is_dir() else "file" if path.exists() else "missing"
    from pyarrow import fs  # here and below, for a process that reads local files need not wait for it

    info = _ask(name, lambda filesystem, path: filesystem.get_file_info([path])[0])
    kinds: dict[Any, Literal["file", "folder"]] = {fs.FileType.File: "file", fs.FileType.Directory: "folder"}
    return kinds.get(info.type, "missing")


def any_exists(names: Sequence[str]) -> bool:
    """Whether one of these files is there, broken links included; of URIs the first hundred are asked."""
    remote = [name for name in names if is_remote(name)][:100]
    return any(os.path.lexists(name) for name in names if not is_remote(name)) or any(
        kind_of(name) != "missing" for name in remote
    )


def walk_remote(folder: str) -> Iterator[tuple[str, ...]]:
    """The files below a folder that a URI names, as the names of their folders and their own."""
    from pyarrow import fs

    def listed(filesystem: Any, path: str) -> tuple[str, Any]:
        return path, filesystem.get_file_info(fs.FileSelector(path, recursive=True))

    base, found = _ask(folder, listed)
    for info in found:
        if info.type != fs.FileType.Directory:
            yield tuple(info.path[len(base.rstrip("/")) + 1 :].split("/"))


def access_environment() -> tuple[tuple[str, str], ...]:
    """The variables from which filesystems behind URIs take credentials and region, as they are now."""
    return tuple((name, value) for name, value in sorted(os.environ.items()) if name.startswith(_ACCESS))


def read_bytes(name: str) -> bytes:
    """The bytes of any located file, a list of images say. FileNotFoundError, or OSError, says why not."""
    if not is_remote(name):
        return Path(name).read_bytes()
    try:
        filesystem, path = _opened(name)
        with filesystem.open_input_stream(path) as file:
            data: bytes = file.read()
    except (ValueError, NotImplementedError) as error:  # a query that pyarrow does not know
        raise OSError(_first_line(error)) from error
    return data


def read_image_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file of at most `MAX_BYTES`, local or behind a URI.

    UnreadableImage, whose text is a short reason, says why not.
    """
    name = os.fspath(path)
    if "://" in name:
        return _read_remote(name)
    try:
        status = os.stat(name)  # noqa: PTH116  one call tells kind and size; Path has no such call
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableImage("a folder, not a file")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe or a device could wait for ever
            raise UnreadableImage("not a regular file")
        check_num_bytes(status.st_size)
        return Path(name).read_bytes()
    except FileNotFoundError:
        link = Path(name).is_symlink()
        raise UnreadableImage("broken symbolic link" if link else "no such file") from None
    except PermissionError:
        raise UnreadableImage("permission denied") from None
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from None
    except UnreadableImage:
        raise
    except ValueError as error:  # a null character in the path
        raise UnreadableImage(f"not a path: {error}") from None


def check_num_bytes(num_bytes: int) -> None:
    """Refuse an image of more than `MAX_BYTES`."""
    if num_bytes > MAX_BYTES:
        raise ImageTooLarge(f"{num_bytes:,} bytes exceed the limit of {MAX_BYTES:,}")


def _read_remote(uri: str) -> bytes:
    try:
        name = located(uri)
        if not is_remote(name):  # file://
            return read_image_bytes(name)
        filesystem, path = _opened(name)
        # the size comes with the request that opens the file
        with filesystem.open_input_file(path) as file:
            check_num_bytes(file.size())
            data: bytes = file.read()
        return data
    except UnreadableImage:
        raise
    except FileNotFoundError:
        raise UnreadableImage("a folder, not a file" if _is_folder(name) else "no such file") from None
    except (OSError, ValueError, NotImplementedError) as error:
        raise UnreadableImage(_reason(error)) from None


def _is_folder(name: str) -> bool:
    try:
        return kind_of(name) == "folder"
    except IndexingError:  # it answered a moment ago that the file is not there: that is the reason
        return False


def _reason(error: Exception) -> str:
    text = _first_line(error)
    return "permission denied" if _DENIED.search(text) else f"cannot be read: {text}"[:_MAX_REASON]


def _ask(name: str, question: Any) -> Any:
    """What a filesystem answers; IndexingError where it cannot be reached or refuses."""
    try:
        return question(*_opened(name))
    except (OSError, ValueError, NotImplementedError) as error:
        raise IndexingError(
            f"{name!r} cannot be read: {_first_line(error)}. Check the bucket, the query (endpoint_override, "
            f"region, scheme) and the credentials in the environment."
        ) from error


def _opened(name: str) -> tuple[Any, str]:
    """The filesystem of a URI and the path in it."""
    parts = urlsplit(name)
    filesystem, base = _filesystem(parts.scheme, parts.netloc, parts.query, access_environment())
    return filesystem, base.rstrip("/") + unquote(parts.path)


@functools.lru_cache(maxsize=64)
def _filesystem(
    scheme: str, netloc: str, query: str, environment: tuple[tuple[str, str], ...]
) -> tuple[Any, str]:
    """One connection a bucket and set of credentials: opening one may ask the network for a region."""
    from pyarrow import fs

    opened: tuple[Any, str] = fs.FileSystem.from_uri(f"{scheme}://{netloc}" + (f"?{query}" if query else ""))
    return opened


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _without_password(uri: str) -> str:
    return re.sub(r"//([^/@:]*):[^/@]*@", r"//\1:...@", uri)
