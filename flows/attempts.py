"""Attempts at a sample of the inbox, counted from Prefect's own runs: which one is next, or why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

MOST_ATTEMPTS = 3
FLOW = "sample"
BAD = (StateType.FAILED, StateType.CRASHED)
PAGE = 200  # the most that the server answers with


def tag(key: str) -> str:
    """What the runs of a sample carry that the inbox started."""
    return f"inbox:{key}"


def next_attempt(states: Sequence[StateType]) -> int | str:
    """The number of the attempt to make after runs that ended so, in their order; or why none is made.

    >>> next_attempt([]), next_attempt([StateType.CRASHED]), next_attempt([StateType.COMPLETED])
    (1, 2, 2)
    >>> next_attempt([StateType.FAILED] * 3)
    'failed 3 times; see its runs, mend it, and start the flow "sample" for it by hand'
    >>> next_attempt([StateType.FAILED, StateType.CANCELLED])
    'was cancelled by a person; start the flow "sample" for it by hand to go on'
    """
    by_hand = f'start the flow "{FLOW}" for it by hand'
    if any(state not in TERMINAL_STATES for state in states):
        return "is being done"
    if states and states[-1] == StateType.CANCELLED:
        return f"was cancelled by a person; {by_hand} to go on"
    if sum(state in BAD for state in states) >= MOST_ATTEMPTS:
        return f"failed {MOST_ATTEMPTS} times; see its runs, mend it, and {by_hand}"
    return len(states) + 1


def states_of(key: str) -> list[StateType]:
    """How the runs ended, or stand, that the inbox started for a sample; in the order in which they were made."""
    runs = _runs(FlowRunFilter.model_validate({"tags": {"all_": [tag(key)]}}))
    made = sorted((run.created, run.state_type) for run in runs if run.created and run.state_type)
    return [state for _, state in made]


def is_under_way(project_file: Path, sample: str) -> bool:
    """Whether a sample is being done, or about to be, whoever started it."""
    alive = [kind.value for kind in StateType if kind not in TERMINAL_STATES]
    wanted = {"project_file": str(project_file), "sample": sample}
    runs = _runs(FlowRunFilter.model_validate({"state": {"type": {"any_": alive}}}))
    return any(_named(run.parameters) == wanted for run in runs)


def _named(parameters: dict[str, Any]) -> dict[str, str]:
    return {name: str(parameters.get(name)) for name in ("project_file", "sample")}


def _runs(wanted: FlowRunFilter) -> list[FlowRun]:
    found: list[FlowRun] = []
    with get_client(sync_client=True) as client:
        while len(found) % PAGE == 0:
            page = client.read_flow_runs(
                flow_filter=FlowFilter.model_validate({"name": {"any_": [FLOW]}}),
                flow_run_filter=wanted,
                sort=FlowRunSort.EXPECTED_START_TIME_ASC,
                limit=PAGE,
                offset=len(found),
            )
            found += page
            if not page:
                break
    return found
