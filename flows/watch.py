"""Progress of a flow's steps: an artifact for each, kept current, and a line in the log as each begins and ends."""

from __future__ import annotations

import re
import time
from typing import Any
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from neurovol.progress import Progress
from neurovol.project import State
from neurovol.stages.order import Action
from neurovol.terminal import facts

UPDATE_SECONDS = 2.0


def artifact_key(text: str) -> str:
    """Prefect wants lower-case letters, digits and dashes.

    >>> artifact_key("segment Slab_07")
    'segment-slab-07'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


class Watch:
    """Keeps one progress artifact per step current, at a bounded rate, and logs when steps begin."""

    def __init__(self) -> None:
        self.logger = get_run_logger()
        self.artifacts: dict[str, UUID] = {}
        self.updated = 0.0

    def begin(self, action: Action, state: State) -> None:
        name = action.step.name
        self.logger.info("%s: was done before" if state.kind == "done" else "%s: starting", name)

    def report(self, said: Progress) -> None:
        """Show how far a step is; the last word of a step is always shown."""
        ended = said.done == said.total
        if not ended and time.monotonic() - self.updated < UPDATE_SECONDS:
            return
        self.updated = time.monotonic()
        percent, text = 100 * said.done / max(1, said.total), f"{said.step}: {facts(said)}"
        try:
            self._show(said.step, percent, text)
        except httpx.HTTPError as error:  # a server that is started anew must not end hours of work
            self.logger.debug("progress was not shown: %s", error)
        if ended:
            self.logger.info(text)

    def _show(self, step: str, percent: float, text: str) -> None:
        if step not in self.artifacts:
            created: Any = create_progress_artifact(percent, key=artifact_key(step), description=text)
            self.artifacts[step] = created
        else:
            update_progress_artifact(self.artifacts[step], percent, description=text)
