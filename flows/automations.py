"""What the server does by itself: it ends runs whose process is gone, or never came. What it tells: notices.py."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from flows.leaving import LEFT
from flows.site import HEARTBEAT_S
from flows.stage import PART_TAG, TAG


def _events(*states: str) -> set[str]:
    """What the server says as a run comes into one of these states, which it calls by their names, not their types."""
    return {f"prefect.flow-run.{state}" for state in states}


ENDED = _events("Completed", "Failed", "Crashed", "Cancelled")
# Without a process that could beat, or with one that sleeps until it tries again: after a failure, or a walltime's end.
WAITS = _events("AwaitingRetry", "Pending", "Submitting")


def trigger_on(tags: list[str], **rule: object) -> EventTrigger:
    """Fires once for a run of one of these tags, as the rule says."""
    return EventTrigger(
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        match_related=ResourceSpecification(
            {"prefect.resource.role": "tag", "prefect.resource.id": [f"prefect.tag.{tag}" for tag in tags]}
        ),
        for_each={"prefect.resource.id"},
        threshold=1,
        **rule,
    )


def zombies(within: timedelta = timedelta(seconds=3 * HEARTBEAT_S)) -> AutomationCore:
    """Ends runs, and stages within them, from which three heartbeats in a row are missing: their process is gone.

    A run that waits in a queue is not expected to beat. Its old process may still do so for a while; what counts then
    is that it says that it left.
    """
    beat, s = "prefect.flow-run.heartbeat", within.total_seconds()
    return _ending(
        "neurovol: end runs whose process is gone",
        "A run that is killed, or whose machine is lost, cannot say so; the inbox then tries it again",
        f"no heartbeat for {s:g} s: its process was killed, or its machine is lost",
        after={beat, *_events("Running")},  # a process may be gone before its first one
        expect={beat, LEFT, *WAITS, *ENDED},
        within=within,
    )


def never_began(within: timedelta) -> AutomationCore:
    """Ends runs that were submitted, or were to be tried again, and did not begin: what was to start them is gone."""
    hours = within / timedelta(hours=1)
    return _ending(
        "neurovol: end runs that never began",
        "A worker that is lost between taking a run and starting it, or a job that is, says nothing of it",
        f"submitted {hours:g} h ago, and never begun: its worker is lost, or its job in the queue; "
        "where queues are longer, set never_began_h in the site file",
        after=_events("Pending", "AwaitingRetry"),
        expect={*_events("Running"), *ENDED},
        within=within,
    )


def _ending(
    name: str, description: str, message: str, *, after: set[str], expect: set[str], within: timedelta
) -> AutomationCore:
    """Ends runs, and stages within them, as Crashed where none of the expected events follows in time."""
    trigger = trigger_on([TAG, PART_TAG], after=after, expect=expect, posture=Posture.Proactive, within=within)
    crashed = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message)
    return AutomationCore(name=name, description=description, trigger=trigger, actions=[crashed])


def make_automations(client: SyncPrefectClient, wanted: list[AutomationCore]) -> Iterator[str]:
    """Automations by name; one that a person turned off stays off."""
    for automation in wanted:
        found = client.read_automations_by_name(automation.name)
        if not found:
            client.create_automation(automation)
            yield f"automation {automation.name}: made"
            continue
        rule = automation.model_copy(update={"enabled": found[0].enabled})
        if _rule(found[0]) != _rule(rule):
            client.update_automation(found[0].id, rule)
            yield f"automation {automation.name}: brought up to date"
        else:
            yield f"automation {automation.name}: is there"


def _rule(automation: AutomationCore) -> dict[str, object]:
    """What an automation does, to be compared: sets of events in order, without the numbers that the server gave."""
    rule = automation.model_dump(mode="json", include=set(AutomationCore.model_fields), exclude={"trigger": {"id"}})
    rule["trigger"] |= {key: sorted(rule["trigger"][key]) for key in ("after", "expect", "for_each")}
    return rule
