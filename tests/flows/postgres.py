"""A real PostgreSQL for Prefect's server: Debian's, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.free import free_port

BINARIES = Path("/usr/lib/postgresql")


def installed() -> bool:
    """Whether there is one to be started; that takes root."""
    return os.geteuid() == 0 and any(BINARIES.glob("*/bin/initdb"))


@contextmanager
def postgres() -> Iterator[str]:
    """Its address, as Prefect's server takes it; stopped and removed with the block."""
    with tempfile.TemporaryDirectory(prefix="neurovol-postgres-") as folder:  # pytest's are root's alone
        shutil.chown(folder, "postgres")
        with _running(Path(folder)) as address:
            yield address


@contextmanager
def _running(folder: Path) -> Iterator[str]:
    (binaries,) = BINARIES.glob("*/bin")
    port = free_port()

    def run(*command: str) -> None:
        subprocess.run(["runuser", "-u", "postgres", "--", *command], check=True, stdout=subprocess.DEVNULL, cwd="/")

    run(str(binaries / "initdb"), "--auth=trust", "--encoding=UTF8", "--username=prefect", str(folder / "data"))
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}"
    control = [str(binaries / "pg_ctl"), "--wait", "-D", str(folder / "data"), "-l", str(folder / "log")]
    run(*control, "-o", options, "start")
    try:
        run(str(binaries / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "prefect", "prefect")
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/prefect"
    finally:
        run(*control, "--mode=fast", "stop")
