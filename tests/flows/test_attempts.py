"""Which attempt at a sample comes next follows from how the runs before it ended."""

import pytest
from prefect.client.schemas.objects import StateType

from flows.attempts import MOST_ATTEMPTS, next_attempt

FAILED, CRASHED, DONE, CANCELLED = StateType.FAILED, StateType.CRASHED, StateType.COMPLETED, StateType.CANCELLED


@pytest.mark.parametrize(("before", "number"), [([], 1), ([FAILED], 2), ([FAILED, CRASHED], 3)])
def test_a_sample_is_tried_three_times_in_all(before: list[StateType], number: int) -> None:
    assert next_attempt(before) == number
    assert "failed 3 times" in str(next_attempt([*before, *[FAILED] * (MOST_ATTEMPTS - len(before))]))


@pytest.mark.parametrize("state", [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
def test_none_is_made_beside_one_that_has_not_ended(state: StateType) -> None:
    assert next_attempt([CRASHED, state]) == "is being done"


def test_a_run_that_a_person_cancelled_is_not_followed_by_another() -> None:
    assert "was cancelled by a person" in str(next_attempt([FAILED, CANCELLED]))


def test_what_was_done_and_is_not_any_more_is_done_again() -> None:
    assert next_attempt([DONE, DONE, DONE, DONE]) == 5
