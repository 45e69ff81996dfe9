import threading

import pytest

from neurovol.training.prefetch import prefetched


def test_batches_are_the_same_as_without():
    with prefetched(lambda step: step**2, 3, 11, ahead=2, threads=3) as batch_at:
        assert [batch_at(step) for step in range(3, 11)] == [step**2 for step in range(3, 11)]


def test_no_more_than_ahead_is_made_and_nothing_past_the_end():
    made = []
    with prefetched(lambda step: made.append(step), 0, 5, ahead=2) as batch_at:
        batch_at(0)
    assert set(made) <= {0, 1, 2}
    with prefetched(lambda step: made.append(step), 3, 5, ahead=9) as batch_at:
        batch_at(3)
        batch_at(4)
    assert max(made) == 4


def test_an_error_while_reading_comes_out_where_the_batch_is_asked_for():
    def fails(step: int) -> int:
        raise OSError(f"cannot read {step}")

    with prefetched(fails, 0, 3) as batch_at, pytest.raises(OSError, match="cannot read 0"):
        batch_at(0)


def test_no_thread_outlives_its_training():
    before = threading.active_count()
    with prefetched(lambda step: step, 0, 100) as batch_at:
        batch_at(0)
    assert threading.active_count() == before
