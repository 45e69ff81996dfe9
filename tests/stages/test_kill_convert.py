"""A conversion killed at any moment, again and again, ends in the same bytes as one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from neurovol.blockwise.ledger import read_ledger
from neurovol.stages.single import single_conversion

SHAPE = (70, 290, 310)  # three layers of shards, each of 5 × 5
SHARD = [32, 64, 64]
VOXEL_SIZE_UM = [2.0, 0.88, 0.88]
SETTINGS = ["--voxel-size", "2", "0.88", "0.88", "--set", f"convert.shard={SHARD}", "--set", "cluster.workers=1"]
LEDGER = "v.ome.zarr.convert.jsonl"
PARTS = 8  # CI kills at the moments of the first of them

# the command, killed with its workers before the so-manieth thing that it does to a folder and what lies in it
DYING = """
import os, signal, sys
left, folder = int(sys.argv[1]), sys.argv[2]

def mortal(event, arguments):
    global left
    if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        within_open_folder = event in ("os.remove", "os.rmdir") and arguments[1] != -1  # so rmtree works
        own = str(arguments[0]).startswith(folder) and "progress" not in str(arguments[0])  # that is a picture
        if within_open_folder or own:
            left -= 1
            if left == 0:
                os.killpg(0, signal.SIGKILL)

sys.addaudithook(mortal)
from neurovol.cli import main
sys.exit(main(sys.argv[3:]))
"""


def _strips(folder: Path, shape: tuple[int, int, int] = SHAPE) -> Path:
    """A page a slice, each one zlib strip: decoded to scratch first."""
    with tifffile.TiffWriter(folder / "strips.tif") as writer:
        for page in _stack(shape):
            writer.write(page, contiguous=False, compression="zlib", rowsperstrip=shape[1])
    return folder / "strips.tif"


def _slices(folder: Path) -> Path:
    """A folder of uncompressed slices."""
    (folder / "slices").mkdir()
    for z, page in enumerate(_stack(SHAPE)):
        tifffile.imwrite(folder / f"slices/s{z:02}.tif", page)
    return folder / "slices"


def _stack(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 2000, shape).astype(np.uint16)


SOURCES = {"strips": _strips, "slices": _slices}


def _command(source: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "neurovol.cli", "convert", str(source), str(folder / "v.ome.zarr"), *SETTINGS]


def _is_killed(command: list[str], ledger: Path, seconds: float) -> bool:
    """Run a command and kill its whole process group so many seconds after its work began; False if it was quicker."""
    before = _changed(ledger)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while process.poll() is None and _changed(ledger) == before:
            time.sleep(0.005)
        assert process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return False


def _changed(ledger: Path) -> int:
    """When a ledger was last written to; a run that takes its step up touches it first."""
    return ledger.stat().st_mtime_ns if ledger.exists() else 0


def _rows(folder: Path) -> dict[int, str]:
    """What a ledger says of each block, its seconds and attempts included."""
    record = read_ledger(folder / LEDGER)
    return {} if record is None else {n: str(row) for n, row in record.rows.items()}


def _outcome(folder: Path) -> dict[str, Any]:
    """Every file of the store and beside it with its bytes, all names; of the ledger and of progress not the times."""
    record = read_ledger(folder / LEDGER)
    assert record is not None
    assert record.finished is not None
    return {
        "names": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
        "files": {
            str(file.relative_to(folder)): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file() and file.suffix != ".jsonl" and "progress" not in str(file.relative_to(folder))
        },
        "checksums": {n: (row["state"], row["crc32c"]) for n, row in record.rows.items()},
        "finished": {key: value for key, value in record.finished.items() if key != "seconds"},
    }


@pytest.fixture(scope="module")
def strips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _strips(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def undisturbed(strips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a conversion that was left alone."""
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run(_command(strips, folder), check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(0, id="before its first block"),
        pytest.param(40, id="in the second layer of shards"),
        pytest.param(75, id="after the last block of level 0"),
    ],
)
def test_a_conversion_that_is_killed_ends_in_the_same_bytes(
    strips: Path, undisturbed: Path, tmp_path: Path, rows: int
) -> None:
    process = subprocess.Popen(_command(strips, tmp_path), stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while process.poll() is None and _lines(tmp_path / LEDGER) < 1 + rows:  # below its header
            time.sleep(0.005)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = _rows(tmp_path)
    assert len(before) >= rows
    subprocess.run(_command(strips, tmp_path), check=True, stdout=subprocess.DEVNULL)
    assert before.items() <= _rows(tmp_path).items()  # what is done once is not done again
    _check_alike(tmp_path, undisturbed)


def _lines(ledger: Path) -> int:
    return ledger.read_bytes().count(b"\n") if ledger.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
def test_a_conversion_killed_again_and_again_ends_in_the_same_bytes(tmp_path: Path, kind: str) -> None:
    kills, source = 15, SOURCES[kind](tmp_path)
    alone, often = tmp_path / "alone", tmp_path / "often"
    steps = single_conversion([source], alone / "v.ome.zarr", VOXEL_SIZE_UM, None, {"convert.shard": SHARD})
    assert steps.samples["image"].unpacks == (kind == "strips")
    subprocess.run(_command(source, alone), check=True, stdout=subprocess.DEVNULL)
    record = read_ledger(alone / LEDGER)
    assert record is not None
    assert record.finished is not None
    moments, longest = random.Random(kills), record.finished["seconds"] * 1.5 / kills
    killed, rows = 0, {}
    for _ in range(kills):
        killed += _is_killed(_command(source, often), often / LEDGER, moments.uniform(0, longest))
        before, rows = rows, _rows(often)
        assert before.items() <= rows.items()  # what is done once is not done again
    assert killed  # once at least; where the machine is quick, later moments come when all is done
    subprocess.run(_command(source, often), check=True, stdout=subprocess.DEVNULL)
    assert rows.items() <= _rows(often).items()
    _check_alike(often, alone)


def _check_alike(killed: Path, alone: Path) -> None:
    """The same outcome, and nothing left over: neither scratch nor notes nor half of a file."""
    ours, theirs = _outcome(killed), _outcome(alone)
    for what in theirs:
        assert ours[what] == theirs[what], f"{what} differ"
    assert not [name for name in ours["names"] if name.endswith((".partial", ".scratch", ".notes", ".redo", ".old"))]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_a_conversion_killed_before_any_one_thing_it_does_to_the_disk_ends_in_the_same_bytes(
    tmp_path: Path, part: int
) -> None:
    source, alone = _strips(tmp_path, (2, 40, 100)), tmp_path / "alone"  # two shards
    subprocess.run(_command(source, alone), check=True, stdout=subprocess.DEVNULL)
    for moment in count(1 + part, PARTS):
        folder = tmp_path / f"{moment}"
        command = [sys.executable, "-c", DYING, str(moment), str(folder), *_command(source, folder)[3:]]
        died = subprocess.run(command, stdout=subprocess.DEVNULL, start_new_session=True).returncode
        if died == 0:
            break
        assert died == -signal.SIGKILL
        subprocess.run(_command(source, folder), check=True, stdout=subprocess.DEVNULL)
        _check_alike(folder, alone)
    assert moment > 20  # scratch alone is made, emptied and removed
