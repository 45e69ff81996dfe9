"""A Prefect server of a test's own, with settings of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.server import QUIET, free_port


@contextmanager
def prefect_server(home: Path, **settings: str) -> Iterator[str]:
    """Its address, which ends in /api, once it is healthy."""
    port = free_port()
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        command,
        env=kept | QUIET | {"PREFECT_HOME": str(home)} | settings,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait(f"http://127.0.0.1:{port}/api", process)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(api: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if _answers(api):
            return
        time.sleep(0.3)
    raise AssertionError("Prefect's server did not start")


def _answers(api: str) -> bool:
    """Also where it asks who we are."""
    try:
        urllib.request.urlopen(f"{api}/health", timeout=5).close()
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False
    return True
