"""What became of a step's blocks, shown over the image: while it runs, when it ends, and when it goes on."""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import Client

from neurovol.blockwise.ledger import Header, Ledger
from neurovol.blockwise.rows import Rows
from neurovol.blockwise.runner import Meter, run_blocks
from neurovol.errors import Failure
from neurovol.geometry import Block, BlockGrid, Receipt
from neurovol.project import Step
from neurovol.stages.blockstates import Drawing, states_of, watched
from neurovol.volume.omezarr import create_volume

SHAPE, SHARD = (7, 13, 31), (4, 8, 16)  # 2 × 2 × 2 blocks
GRID = BlockGrid(SHAPE, SHARD, SHARD)
HEADER = Header("segment a", {"weights": "0123456789abcdef"}, len(GRID) + 1)


@pytest.fixture
def step(tmp_path: Path) -> Step:
    create_volume(
        tmp_path / "p.ome.zarr", shape=SHAPE, channels=None, dtype="uint8", voxel_size_um=(5.0, 2.0, 2.0),
        chunk=(4, 4, 4), shard=SHARD, factors=[(2, 2, 2)],
    )  # fmt: skip
    progress = tmp_path / "progress" / "segment.ome.zarr"
    return Step("segment", "a", HEADER.inputs, tmp_path / "l.jsonl", tmp_path / "p.ome.zarr", progress=progress)


def done(ledger: Ledger, n: int, seconds: float, **others: Any) -> None:
    ledger.append(n, "done", fingerprint=HEADER.fingerprint, crc32c=n, seconds=seconds, attempt=1, **others)


def some_of_each(ledger: Ledger) -> None:
    """A slow block, one that is not quite, a skipped one, one set aside, one that is not done; a coarser level's."""
    for n, seconds in enumerate([1.0, 3.25, 1.0, 3.0]):
        done(ledger, n, seconds)
    done(ledger, 4, 0.001, skipped="no tissue")
    ledger.append(5, "quarantined", attempt=3, box=GRID[5].write.pairs, error="ZeroDivisionError")
    done(ledger, 7, 1.0)
    done(ledger, 8, 99.0)


OF_EACH = [1, 3, 1, 1, 2, 4, 0, 1]
SECONDS = [1.0, 3.25, 1.0, 3.0, 0.001, 0.0, 0.0, 1.0]


def read(step: Step, part: str) -> list[float]:
    assert step.progress is not None
    return zarr.open_array(step.progress / part, mode="r")[...].ravel().tolist()


def states(step: Step) -> list[float]:
    return read(step, "labels/states/0")


def test_each_outcome_has_its_number(step: Step) -> None:
    with Ledger(step.ledger, HEADER) as ledger:
        some_of_each(ledger)
        seconds, found = states_of(ledger.rows, len(GRID))
    assert found.tolist() == OF_EACH
    assert seconds.tolist() == pytest.approx(SECONDS)


def test_rows_of_other_inputs_and_blocks_tried_again_count_as_what_they_are() -> None:
    rows = Rows("0123456789abcdef")
    plain = {"state": "done", "crc32c": 7, "seconds": 2.0, "attempt": 1}
    rows.add({"n": 0, **plain, "fingerprint": "another"})
    rows.add({"n": 1, **plain, "skipped": "no tissue"})
    rows.add({"n": 2, **plain, "fingerprint": "0123456789abcdef"})
    rows.add({"n": 2, "state": "quarantined", "error": "ZeroDivisionError"})
    found, seconds = rows.outcomes(5)
    assert (found.tolist(), seconds.tolist()) == ([1, 2, 4, 0, 0], [2.0, 2.0, 0.0, 0.0, 0.0])


def test_the_image_tells_at_the_end_what_became_of_each_block(step: Step) -> None:
    with Ledger(step.ledger, HEADER) as ledger, watched(step, ledger.rows):
        assert states(step) == [0] * 8
        some_of_each(ledger)
    assert states(step) == OF_EACH
    assert read(step, "0") == pytest.approx(SECONDS)


def test_a_resumed_step_begins_with_what_its_ledger_says(step: Step) -> None:
    with Ledger(step.ledger, HEADER) as ledger:
        some_of_each(ledger)
    with Ledger(step.ledger, HEADER) as ledger, watched(step, ledger.rows):
        assert states(step) == OF_EACH


def test_a_step_built_anew_begins_with_nothing(step: Step) -> None:
    with Ledger(step.ledger, HEADER) as ledger, watched(step, ledger.rows):
        some_of_each(ledger)
    beside = replace(step.beside, output=step.output)
    assert beside.progress == step.progress
    with Ledger(beside.ledger, HEADER) as ledger, watched(beside, ledger.rows):
        assert states(step) == [0] * 8


def test_the_image_follows_while_the_step_runs(step: Step) -> None:
    with Ledger(step.ledger, HEADER) as ledger, watched(step, ledger.rows, every_s=0) as look:
        some_of_each(ledger)
        end = time.monotonic() + 60
        while states(step) != OF_EACH and time.monotonic() < end:
            look()
            time.sleep(0.01)
        assert states(step) == OF_EACH


def test_between_two_rewrites_time_passes(step: Step) -> None:
    with Ledger(step.ledger, HEADER) as ledger:
        drawing = Drawing(step.progress, step.output, step.name, ledger.rows, every_s=3600)
        drawing.begin()
        some_of_each(ledger)
        drawing.look()
        drawing._wait()
        assert states(step) == [0] * 8
        drawing.end()
        assert states(step) == OF_EACH


def test_a_step_goes_on_where_the_image_cannot_be_written(step: Step, caplog: pytest.LogCaptureFixture) -> None:
    assert step.progress is not None
    step.progress.parent.write_text("a file where a folder is needed")
    with (
        caplog.at_level(logging.WARNING),
        Ledger(step.ledger, HEADER) as ledger,
        watched(step, ledger.rows, every_s=0) as look,
    ):
        for _ in range(3):
            look()
    (warning,) = (record.getMessage() for record in caplog.records)
    assert warning.startswith(f"{step.progress}: the image of its blocks cannot be written, the step goes on without")


@dataclass(frozen=True)
class Mixed:
    """Skips one block, fails at another."""

    def __call__(self, block: Block) -> Receipt:
        if block.index == 5:
            raise ZeroDivisionError
        return Receipt(block.write, 0, "no tissue" if block.index == 2 else None)


def test_a_real_run_shows_what_was_skipped_and_set_aside(client: Client, step: Step) -> None:
    with (
        pytest.raises(Failure, match="block 5"),
        Ledger(step.ledger, HEADER) as ledger,
        watched(step, ledger.rows) as watch,
    ):
        run_blocks(client, Mixed(), list(GRID), Meter(ledger, watch=watch), retries=0)
    found = np.array(states(step))
    assert (found[[2, 5]] == [2, 4]).all()
    assert np.isin(np.delete(found, [2, 5]), [1, 3]).all()
