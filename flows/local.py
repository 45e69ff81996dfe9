"""`python -m flows.local [PROJECT]`: run the project flow under a Prefect server on this machine, or just show the UI.

Uses the server that PREFECT_API_URL names if it is set; otherwise starts one with its embedded SQLite
under PREFECT_HOME, bound to loopback, and stops it in the end.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neurovol.errors import UserError
from neurovol.project import open_project

START_SECONDS = 120  # 18 s cold on two idle cores; a busy machine is slower
PORT = 4200  # Prefect's usual one, if it is free
QUIET = {  # nothing of a run leaves the machine
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}


def free_port() -> int:
    """Prefect's usual port, or any free one where that is taken."""
    for port in (PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SystemExit("neurovol: no free port on 127.0.0.1 for Prefect's server")


@contextmanager
def server() -> Iterator[str]:
    """The address of a Prefect server: the configured one, or one that lives as long as the `with`."""
    configured = os.environ.get("PREFECT_API_URL")
    if configured:
        yield configured.removesuffix("/").removesuffix("/api")
        return
    os.environ.update(QUIET)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait_until_healthy(address, process)
        os.environ["PREFECT_API_URL"] = f"{address}/api"
        yield address
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_healthy(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"neurovol: Prefect's server ended at once with exit code {process.returncode}")
        try:
            with urllib.request.urlopen(f"{address}/api/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise SystemExit(f"neurovol: Prefect's server did not answer at {address} within {START_SECONDS} s")


def run(project_file: Path) -> int:
    """The project flow under a server; prints where report and run are."""
    try:
        report = open_project(project_file).report
    except UserError as error:
        print(f"neurovol: {error}", file=sys.stderr)
        return 2
    with server() as address:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        from flows.project import project  # Prefect reads the server's address as it is imported

        state = project(project_file.absolute(), return_state=True)
        for worker in (APILogWorker, EventsWorker):  # else they try for a minute to reach a server that is gone
            worker.drain_all(timeout=10)
        run_id = state.state_details.flow_run_id
        print(f"\nreport:  {report}\nrun:     {address}/runs/flow-run/{run_id}   (`make ui` starts the server again)")
        if state.is_completed():
            return 0
        error = state.result(raise_on_failure=False)
        print(f"neurovol: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1


def main() -> int:
    # whatever ends this process politely, also where a shell started it with SIGINT ignored, stops the server too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if len(sys.argv) > 1:
        return run(Path(sys.argv[1]))
    with server() as address:
        print(f"Prefect UI: {address}   (Ctrl-C stops it)")
        try:
            signal.pause()
        except KeyboardInterrupt:
            print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
