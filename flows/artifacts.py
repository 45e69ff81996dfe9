"""Artifacts of a run: each made once under its key, and brought up to date in place.

Prefect keeps events with the whole content of each artifact that is made, or brought up to date through its own
functions; a night of progress would come to many megabytes. So an artifact is made empty, and filled by a request of
ours, of which there is no event.
"""

from __future__ import annotations

import re
import time
from threading import Condition, Thread
from types import TracebackType
from typing import Any, Literal

import httpx
from prefect import get_run_logger, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client

Kind = Literal["progress", "markdown", "table"]
EMPTY: dict[Kind, Any] = {"progress": 0.0, "markdown": "", "table": "[]"}
AGAIN_S = 5.0  # after a server did not answer
LEAVE_S = 30.0  # that a stage waits in the end for what is not shown yet


def artifact_key(text: str) -> str:
    """Prefect wants lower-case letters, digits and dashes.

    >>> artifact_key("segment Slab_07")
    'segment-slab-07'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


class Artifacts:
    """Those of the flow run that is under way, sent by a thread: a server that is slow or away holds up no work.

    What cannot be sent is sent when the server is back; of what was replaced meanwhile only the last is.
    """

    def __init__(self) -> None:
        self._run, self._logger = str(runtime.flow_run.id), get_run_logger()
        self._ids: dict[str, str] = {}  # by key
        self._waiting: dict[str, tuple[Kind, dict[str, Any]]] = {}
        self._changed, self._last, self._given_up = Condition(), False, False
        self._thread = Thread(target=self._send_all, name="artifacts", daemon=True)

    def __enter__(self) -> Artifacts:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._changed:
            self._last = True
            self._changed.notify()
        self._thread.join(LEAVE_S)
        self._given_up = True

    def show(self, kind: Kind, title: str, content: Any, description: str) -> None:
        """Show a number, a text or rows (as JSON) under a title's key, in place of what was shown there before."""
        with self._changed:
            self._waiting[artifact_key(title)] = (kind, {"data": content, "description": description})
            self._changed.notify()

    def _send_all(self) -> None:
        with get_client(sync_client=True) as client:
            while not self._given_up and (taken := self._next()) is not None:
                key, kind, content = taken
                try:
                    self._send(client, key, kind, content)
                except httpx.HTTPError as error:
                    self._logger.debug("%s is not shown yet: %s", key, error or type(error).__name__)
                    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 404:
                        self._ids.pop(key, None)  # deleted by a person, or with the server's database
                    with self._changed:
                        self._waiting.setdefault(key, (kind, content))
                    time.sleep(AGAIN_S)

    def _next(self) -> tuple[str, Kind, dict[str, Any]] | None:
        """What to send, as soon as there is something; None once there is nothing and nothing will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._last)
            if not self._waiting:
                return None
            key = next(iter(self._waiting))
            return key, *self._waiting.pop(key)

    def _send(self, client: SyncPrefectClient, key: str, kind: Kind, content: dict[str, Any]) -> None:
        if key not in self._ids:
            empty = {"type": kind, "key": key, "data": EMPTY[kind], "flow_run_id": self._run}
            self._ids[key] = str(client.request("POST", "/artifacts/", json=empty).json()["id"])
        client.request("PATCH", "/artifacts/{id}", json=content, path_params={"id": self._ids[key]})
