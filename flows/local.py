"""`python -m flows.local [PROJECT]`: run the project flow under a Prefect server on this machine, or just show the UI.

Uses the server that PREFECT_API_URL names if it is set; otherwise starts one with its embedded SQLite
under PREFECT_HOME, bound to loopback, and stops it in the end.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from flows.server import server
from neurovol.errors import UserError
from neurovol.project import open_project


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
        ended_by = state.result(raise_on_failure=False)
        print(f"neurovol: {ended_by}", file=sys.stderr)
        return 2 if isinstance(ended_by, UserError) else 1


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
