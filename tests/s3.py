"""An S3 server on this machine: rclone's, one binary."""

import os
import re
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Server:
    """Its address; the folders in `root` are its buckets."""

    root: Path
    address: str

    @property
    def query(self) -> str:
        """What a URI of pyarrow's ends in."""
        return f"scheme=http&endpoint_override={self.address}&region=us-east-1"

    @property
    def environment(self) -> dict[str, str]:
        """What clients find its keys in."""
        return {
            "AWS_ACCESS_KEY_ID": "name",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def uri(self, path: str) -> str:
        return f"s3://{path}?{self.query}"


@contextmanager
def serving(root: Path, cache: str = "0s") -> Iterator[Server]:
    """The folders in `root` as buckets. Without a `cache` files can be put beside it, but an upload takes seconds."""
    program = Path(sysconfig.get_path("scripts")) / "rclone"
    words = [program, "serve", "s3", root, "--addr", "127.0.0.1:0", "--auth-key", "name,secret"]
    log = root / "log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [*words, "--dir-cache-time", cache],
            stderr=out,
            stdout=out,
            env={**os.environ, "RCLONE_CONFIG": str(root / "none")},
        )
    try:
        for _ in range(200):
            if address := re.search(r"http://(127\.0\.0\.1:\d+)/", log.read_text()):
                break
            assert server.poll() is None, log.read_text()
            time.sleep(0.05)
        assert address, log.read_text()
        yield Server(root, address[1])
    finally:
        server.terminate()
        server.wait(10)
