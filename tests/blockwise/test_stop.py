"""A run that is stopped by Ctrl-C, once or twice, keeps what is done, leaves no process, and goes on later."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from neurovol.blockwise.ledger import read_ledger

pytestmark = pytest.mark.timeout(120)


def _start(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """The driver in a process group of its own, as a terminal gives it; returns when it has begun."""
    command = [sys.executable, "-m", "tests.blockwise.driver", str(folder), str(seconds)]
    driver = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == "begins\n"
    return driver


def _done(folder: Path) -> set[int]:
    record = read_ledger(folder / "l.jsonl")
    return set() if record is None else set(record.done)


def _runs(folder: Path) -> dict[int, int]:
    """How often each block was computed to its end."""
    return {int(file.stem): file.stat().st_size for file in folder.glob("*.runs")}


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_a_run_soon_and_loses_nothing(tmp_path: Path, times: int) -> None:
    seconds = 0.2 if times == 1 else 5.0
    driver = _start(tmp_path, seconds)
    children = psutil.Process(driver.pid).children(recursive=True)
    time.sleep(1.5)
    start = time.monotonic()
    for _ in range(times):
        os.killpg(driver.pid, signal.SIGINT)  # a terminal sends it to all processes of the group
        time.sleep(0.5)
    _, said = driver.communicate(timeout=30)
    took = time.monotonic() - start
    assert driver.returncode == 130
    assert took < (10 if times == 1 else 5)
    assert "once more leaves at once" in said
    assert "Traceback" not in said
    assert not psutil.wait_procs(children, timeout=5)[1]
    done = _done(tmp_path)
    if times == 1:
        assert done == set(_runs(tmp_path))  # what was under way is finished and recorded
        assert 2 <= len(done) < 100
    assert not list(tmp_path.glob("*.running"))
    again = _start(tmp_path, 0.0)
    again.communicate(timeout=60)
    assert again.returncode == 0
    assert _done(tmp_path) == set(range(100))
    assert all(_runs(tmp_path)[n] == 1 for n in done)
