"""What a run says as its process goes before the run is done: that no heartbeat is to be expected until it begins anew.

A driver whose walltime ends takes up to minutes to leave, and beats meanwhile, though its run waits in the queue by
then. After the last of those beats the server would find the run silent, and end it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

import httpx
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.exceptions import PrefectException

LEFT = "neurovol.flow-run.left"  # an event of a run


@contextmanager
def leaving() -> Iterator[None]:
    """Around all that a run does: of one that is told to end, and waits to go on, the server hears that it left."""
    try:
        yield
    except Exception:
        raise  # Prefect ends the run, or tries it again: nothing beats then
    except BaseException:
        with suppress(httpx.HTTPError, PrefectException):  # a server that is away, or knows the run no more
            _say_left()
        raise


def _say_left() -> None:
    """Of a run that waits; any other that falls silent is to be ended."""
    if not (run := runtime.flow_run.id):
        return
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(UUID(run))
    if found.state is not None and found.state.is_scheduled():
        tags = [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in found.tags]
        emit_event(LEFT, resource={"prefect.resource.id": f"prefect.flow-run.{run}"}, related=tags)
