"""A real PostgreSQL server from Debian's packages, started, stopped and started again by the tests themselves."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def binaries() -> Path | None:
    """The folder of the newest server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


class Postgres:
    """One server with one empty database, on a port of its own."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self.programs = folder, programs
        self.data = folder / "data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.user: str | None = None
        if os.getuid() == 0:  # the server refuses to run as root
            self.user = next(
                name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()}
            )
            shutil.chown(folder, self.user)
        self._run(
            "initdb", "--username=amc", "--auth=trust", "--encoding=UTF8", "--locale=C", "--pgdata", str(self.data)
        )

    @property
    def url(self) -> str:
        return f"postgresql+psycopg2://amc:secret@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c max_connections=50"
        self._run(
            "pg_ctl", "start", "--wait", "--pgdata", str(self.data), "--log", str(self.folder / "log"), "-o", options
        )

    def stop(self, mode: str = "immediate") -> None:
        """The mode "immediate" is a crash: the next start recovers from the log."""
        self._run("pg_ctl", "stop", "--wait", "--pgdata", str(self.data), "--mode", mode)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            cwd=self.folder, user=self.user, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()


@contextmanager
def running() -> Iterator[Postgres]:
    """A started server; the test is skipped where there is none to start."""
    pytest.importorskip("psycopg2", reason="PostgreSQL needs its driver: pip install '.[test]'")
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="amc-pg-", dir="/tmp"))
    server = Postgres(folder, programs)
    try:
        server.start()
        yield server
    finally:
        subprocess.run([str(programs / "pg_ctl"), "stop", "--pgdata", str(server.data), "--mode", "immediate"],
                       cwd=folder, user=server.user, capture_output=True, check=False)  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)
