"""What is told of places that are no MLflow, or of another one, and how soon."""

import http.server
import shlex
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import mlflow
import pytest

from causal_tune.errors import TrackingError
from causal_tune.tracking import Tracker, default_uri
from causal_tune.tracking.connection import connect
from causal_tune.tracking.place import database_path, redacted
from tests.ports import free_port
from tests.tracking.studies import make_record, make_spec


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A database that MLflow made."""
    folder = tmp_path_factory.mktemp("made")
    connect(default_uri(folder))
    return folder / "mlflow.db"


@pytest.mark.parametrize("folder", ["what?", "a%20b", "a%2Fb", "c#d", "[e]", "f g", "ünï", "h?/i%/j"])
def test_a_database_lies_in_the_workspace_whatever_its_name(folder, made, tmp_path):
    workspace = tmp_path / folder
    workspace.mkdir(parents=True)
    shutil.copy(made, workspace)
    tracker = Tracker(default_uri(workspace), "x", make_spec())
    tracker.deliver([make_record(0)])
    with sqlite3.connect(workspace / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (2,)
    assert [path.name for path in tmp_path.iterdir()] == [folder.split("/")[0]]  # none beside it
    tracker._client.log_text(tracker.parent_run_id, "kept", "note.txt")
    assert next(workspace.glob("mlartifacts/**/note.txt")).read_text() == "kept"
    words = shlex.split(tracker.ui_command().partition("  # ")[0])
    assert database_path(words[-1]) == workspace / "mlflow.db"


@pytest.mark.slow
def test_two_jobs_at_once_make_one_database(tmp_path):
    code = f"from causal_tune.tracking.connection import connect; connect({default_uri(tmp_path)!r})"
    jobs = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [job.communicate()[1] for job in jobs] == ["", ""]
    assert [job.returncode for job in jobs] == [0, 0]


@pytest.mark.parametrize(
    "content", [b"Not SQLite at all, but long enough to be taken for one." * 99, b"\0" * 4096]
)
def test_a_file_that_is_no_database_is_told(tmp_path, content):
    (tmp_path / "mlflow.db").write_bytes(content)
    with pytest.raises(TrackingError, match=r"mlflow.db is not a database. Name another place"):
        connect(default_uri(tmp_path))


def test_a_damaged_database_is_told(made, tmp_path):
    content = bytearray(made.read_bytes())
    content[4096 : 4096 * 40] = b"\xff" * 4096 * 39
    (tmp_path / "mlflow.db").write_bytes(content)
    with pytest.raises(TrackingError, match=r"mlflow.db is damaged. Name another place"):
        Tracker(default_uri(tmp_path), "x", make_spec()).start()


def test_a_folder_in_place_of_the_database_is_told(tmp_path):
    (tmp_path / "mlflow.db").mkdir()
    with pytest.raises(TrackingError, match=r"mlflow.db cannot be opened: it is a folder"):
        connect(default_uri(tmp_path))


@pytest.mark.parametrize(
    "revision", ["0123456789ab", "451aebb31d03"]
)  # one that is not known, and an old one
def test_the_database_of_another_mlflow_is_told(made, tmp_path, revision):
    shutil.copy(made, tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = ?", [revision])
    with pytest.raises(TrackingError, match=rf"made by another MLflow.*{revision}.*mlflow db upgrade sqlite"):
        connect(default_uri(tmp_path))


def test_a_database_without_the_tables_of_a_newer_mlflow_is_told(made, tmp_path):
    shutil.copy(made, tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = '0123456789ab'")
        database.execute("drop table metrics")
    with pytest.raises(TrackingError, match="made by another MLflow"):
        connect(default_uri(tmp_path))


@pytest.mark.slow
def test_a_locked_database_is_told_within_seconds(made, tmp_path, caplog):
    shutil.copy(made, tmp_path)
    database = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    database.execute("begin exclusive")
    begin = time.monotonic()
    with pytest.raises(TrackingError, match=r"mlflow.db is locked by another program"):
        connect(default_uri(tmp_path))
    assert time.monotonic() - begin < 10
    database.close()
    assert caplog.text == ""


@contextmanager
def answering(handler, wrap=lambda one: one):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket = wrap(server.socket)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


class Guarded(http.server.BaseHTTPRequestHandler):
    """An MLflow behind a login: it lists no experiments to those who are let in."""

    allowed = ("Basic bWU6cGE1NQ==", "Bearer t0ken")

    def do_GET(self):
        is_allowed = self.headers.get("Authorization") in self.allowed
        body = b"{}" if is_allowed else b"who are you?"
        self.send_response(200 if is_allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815  the name that http.server calls

    def log_message(self, *words):
        pass


def test_a_login_in_the_address_or_in_the_environment_is_used_and_never_told(monkeypatch):
    with answering(Guarded) as port:
        connect(f"http://me:pa55@127.0.0.1:{port}")
        with pytest.raises(TrackingError, match=r"refuses the login.*MLFLOW_TRACKING_USERNAME") as told:
            connect(f"http://me:wr0ng@127.0.0.1:{port}")
        assert "wr0ng" not in str(told.value)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
        connect(f"http://127.0.0.1:{port}")
        monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pa55")
        connect(f"http://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
    ]
    words += ["-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"]
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    subprocess.run(words, check=True, capture_output=True, cwd=folder)
    return folder / "cert.pem", folder / "key.pem"


def test_the_certificate_settings_of_mlflow_are_followed(certificate, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with answering(Guarded, lambda one: context.wrap_socket(one, server_side=True)) as port:
        uri = f"https://me:pa55@localhost:{port}"
        with pytest.raises(TrackingError, match="No MLflow server answers"):
            connect(uri)
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate[0]))
            connect(uri)
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
            connect(uri)


@contextmanager
def listening(answer):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def serve():
            while True:
                try:
                    one, _ = server.accept()
                except OSError:
                    return
                one.sendall(answer)
                one.close()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:pa55@127.0.0.1:{port}",
        "postgresql://me:pa55@127.0.0.1:{port}/runs",
        "mysql+pymysql://me:pa55@127.0.0.1:{port}/runs?ssl_token=t0ken",
    ],
)
@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", None])
def test_what_is_no_mlflow_is_told_within_seconds_without_a_password(uri, answer, caplog):
    begin = time.monotonic()
    with listening(answer) if answer else free_port_of() as port, pytest.raises(TrackingError) as told:
        connect(uri.format(port=port))
    assert time.monotonic() - begin < 12
    assert str(port) in str(told.value) or "needs the Python package" in str(told.value)
    assert "pa55" not in str(told.value) + caplog.text
    assert "t0ken" not in str(told.value) + caplog.text


@contextmanager
def free_port_of():
    yield free_port()


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("nonsense://x", "'nonsense://x' cannot be used for tracking"),
        ("sqlite:////proc/nowhere/mlflow.db", "/proc/nowhere/mlflow.db cannot be made"),
        ("/data/runs", "'/data/runs' is a path.*Name a database"),
        ("file:///data/runs", "'file:///data/runs' is a path.*Name a database"),
        ("http://127.0.0.1:99999", "No MLflow server answers at http://127.0.0.1:99999: "),
        (
            "http://nohost.invalid",
            r"No MLflow server answers at http://nohost.invalid: Failed to resolve 'nohost.invalid' ",
        ),
        (
            "postgresql://me@nohost.invalid/x",
            "'postgresql://me@nohost.invalid/x' cannot be used for tracking",
        ),
    ],
)
def test_a_place_that_cannot_hold_runs_is_told(uri, told):
    with pytest.raises(TrackingError, match=told) as error:
        connect(uri)
    assert "API request" not in str(error.value).replace("Invalid url", "")


def test_settings_of_the_user_stay(monkeypatch, made):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    connect(default_uri(made.parent))
    assert mlflow.environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 77


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://me:p@ss@host/x failed", "at http://***@host/x failed"),
        ("https://t0ken@host:1/", "https://***@host:1/"),
        ("postgresql://me:p%40@h/d?sslpassword=x&a=b", "postgresql://me:***@h/d?sslpassword=***&a=b"),
        ("postgresql://me@h/d", "postgresql://me@h/d"),
        ("sqlite:////a:b@c/mlflow.db", "sqlite:////a:b@c/mlflow.db"),
    ],
)
def test_passwords_are_not_shown(text, shown):
    assert redacted(text) == shown
