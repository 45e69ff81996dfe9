"""A real Prefect server and worker for tests: processes of their own, ended with the test."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

ROOT = Path(__file__).parents[2]

Found = TypeVar("Found")


class Served:
    """A server that can be stopped and started anew, on SQLite in `home` where no address of a database is given."""

    def __init__(self, home: Path, port: int, database: str | None = None) -> None:
        self.home, self.port, self.database = home, port, database
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        from flows.server import QUIET

        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "NEUROVOL_"))}
        database = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database} if self.database else {}
        return kept | QUIET | database | {
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.api,

            "PYTHONPATH": str(ROOT),
        }  # fmt: skip

    def start(self) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL)
        eventually(self._healthy, 120)

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.api}/health", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=60)
            self.process = None

    def call(self, path: str, body: Any = None, method: str = "POST") -> Any:
        """What the server answers; asked again while it is away or its SQLite locked, as Prefect's client does."""

        def answered() -> httpx.Response | None:
            try:
                answer = httpx.request(method, f"{self.api}/{path}", json=body, timeout=30, **self.known())
            except httpx.TransportError:
                return None
            return None if answer.status_code == 503 else answer

        answer = eventually(answered, 180)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def known(self) -> dict[str, Any]:
        """How a request shows who makes it; here it need not."""
        return {}

    def runs(self, flow: str) -> list[dict[str, Any]]:
        """A flow's runs that are not merely scheduled by its cron, in the order in which they were made."""
        found = self.call("flow_runs/filter", {"flows": {"name": {"any_": [flow]}}})
        return sorted((r for r in found if not r["auto_scheduled"]), key=lambda run: run["created"])

    def start_run(self, deployment: str, **parameters: Any) -> str:
        """A run of a deployment, FLOW/NAME, to be done now; its id."""
        found = self.call(f"deployments/name/{deployment}", method="GET")
        wanted = {"parameters": parameters, "idempotency_key": str(uuid.uuid4())}  # may have to be asked for twice
        made = self.call(f"deployments/{found['id']}/create_flow_run", wanted)
        return str(made["id"])

    def ended(self, run: str, timeout_s: float = 300) -> dict[str, Any]:
        """A run once it has ended."""

        def state() -> Any:
            found = self.call(f"flow_runs/{run}", method="GET")
            return found if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        return eventually(state, timeout_s)

    def deploy(self, project: Path, *options: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """`make deploy` of a project."""
        command = [sys.executable, "-m", "flows.deploy", str(project), *options]
        return subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=180)


@contextmanager
def worker(served: Served, log: Path, pool: str = "neurovol") -> Iterator[subprocess.Popen[bytes]]:
    """A worker of a pool, with all that it starts, which does not outlive the block."""
    # without its type it asks the server for that, and ends at once where none answers
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    with log.open("ab") as out:
        process = subprocess.Popen(command, env=served.environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            kill_all(process.pid)
        process.wait()


def kill_all(pid: int) -> None:
    """Kill -9 of a process with all that it started, as when a machine is lost."""
    lost = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in lost:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(lost, timeout=30)


def eventually(look: Callable[[], Found | None], timeout_s: float) -> Found:
    """The first thing found; an AssertionError where nothing is for so long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (found := look()) is not None and found is not False:
            return found
        time.sleep(0.5)
    raise AssertionError(f"not within {timeout_s:g} s")
