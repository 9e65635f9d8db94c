"""Where runs are kept: URIs of databases and servers, and what may be shown of them."""

import re
import shlex
import shutil
import sys
from pathlib import Path
from urllib.parse import quote, unquote

__all__ = ["database_path", "default_uri", "is_server", "mlflow_command", "redacted", "without_login"]

_SQLITE = "sqlite:///"
# up to the last @ of the authority: a password may hold one
_SERVER_LOGIN = re.compile(r"(https?://)[^/?#\s]*@", re.IGNORECASE)
_PASSWORD = re.compile(r"(://[^/?#\s:@]*:)[^/?#\s]*@")
_SECRET = re.compile(r"(\w*(?:password|passwd|pwd|token|secret)\w*=)[^&#\s'\"]+", re.IGNORECASE)


def default_uri(workspace: Path | str) -> str:
    """Where a workspace keeps its runs: `sqlite:///<workspace>/mlflow.db`, escaped where a URI has to be.

    >>> default_uri("/data/runs")
    'sqlite:////data/runs/mlflow.db'
    >>> default_uri("/data/what?/100%/runs")
    'sqlite:////data/what%3F%2F100%25%2Fruns%2Fmlflow.db'
    """
    path = str(Path(workspace).absolute() / "mlflow.db")
    special = re.search(r"[?%]", path)
    if special is None:
        return _SQLITE + path
    # MLflow makes the folder that it reads in the URI, escapes and all: with escaped slashes that is one which exists
    start = path.rindex("/", 0, special.start()) + 1
    return _SQLITE + path[:start] + quote(path[start:], safe=" ")


def database_path(uri: str) -> Path | None:
    """The file of a SQLite URI; None for all others, and for a database in memory."""
    path = unquote(uri.removeprefix(_SQLITE).partition("?")[0])
    return Path(path) if uri.startswith(_SQLITE) and path not in ("", ":memory:") else None


def is_server(uri: str) -> bool:
    """Whether `uri` is the address of a tracking server, which a browser opens too."""
    return uri.startswith(("http://", "https://"))


def redacted(text: str) -> str:
    """`text` without the passwords and tokens of the addresses in it.

    >>> redacted("No answer from postgresql://me:pa55@host/db?sslpassword=pa66.")
    'No answer from postgresql://me:***@host/db?sslpassword=***'
    """
    text = _SERVER_LOGIN.sub(r"\1***@", text)
    return _SECRET.sub(r"\1***", _PASSWORD.sub(r"\1***@", text))


def without_login(uri: str) -> str:
    """The address of a server for a browser, which asks for user and password itself.

    >>> without_login("https://me:pa55@host:5000/mlflow/")
    'https://host:5000/mlflow'
    """
    return redacted(uri).replace("//***@", "//").rstrip("/")


def mlflow_command(*words: str) -> str:
    """A command of MLflow's as it is typed here, without passwords."""
    program = ["mlflow"] if shutil.which("mlflow") else [sys.executable, "-m", "mlflow"]
    return shlex.join([*program, *map(redacted, words)])
