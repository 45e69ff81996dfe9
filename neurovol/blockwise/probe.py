"""What workers see: their packages, clock and GPU, and whether they share a folder with the driver."""

from __future__ import annotations

import hashlib
import platform
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from distributed import Client

import neurovol

PACKAGES = ("dask", "distributed", "zarr", "numcodecs", "numpy", "torch")  # those whose versions have to agree
LOOKS = 5  # at a clock: the quickest answer tells most
SEEN_S = 15.0  # that network disks take to show others' files
ANSWER_S = 120.0  # of a worker, which may have to import torch from a slow disk


@dataclass(frozen=True)
class Gpu:
    """What torch has of a GPU; `fault` says why it cannot be computed on, `name` is empty where there is none."""

    name: str = ""
    bytes: int = 0
    fault: str = ""


@dataclass(frozen=True)
class Seen:
    """What one worker sees."""

    worker: str  # address
    host: str
    versions: Mapping[str, str]
    gpu: Gpu
    clock_s: float  # ahead of the driver's
    clock_within_s: float  # how far that may be off: half of the time that asking took
    unshared: str  # why driver and worker do not share the folder; empty where they do

    def unlike(self, versions: Mapping[str, str]) -> list[str]:
        """What differs from the driver's versions, for people."""
        names = [name for name in versions if versions[name] != self.versions.get(name)]
        return [f"{name} {self.versions.get(name)} (here {versions[name]})" for name in names]


def versions_here() -> dict[str, str]:
    """Versions of this process: Python's, the packages' that write or compute, and neurovol's with a hash of its code.

    >>> versions_here()["python"] == platform.python_version()
    True
    """
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found | {"neurovol": f"{neurovol.__version__} {_code_hash(Path(neurovol.__file__).parent)}"}


def _code_hash(folder: Path) -> str:
    """Of all modules: two checkouts may call themselves by one version."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def gpu_here() -> Gpu:
    """The GPU that torch sees in this process, after it has computed something on it."""
    import torch

    if not torch.cuda.is_available():
        return Gpu()
    about = torch.cuda.get_device_properties(0)
    try:
        fault = "" if float(torch.ones(8, device="cuda").sum()) == 8 else "it computes wrongly"
    except RuntimeError as error:
        fault = str(error).strip().splitlines()[0]
    return Gpu(str(about.name), int(about.total_memory), fault)


def probe(client: Client, folder: Path) -> list[Seen]:
    """Ask every worker of a client; `folder` is to be shared by all, and left as it was.

    TimeoutError where a worker does not answer within ANSWER_S.
    """
    return [_asked(client, address, folder) for address in sorted(client.scheduler_info(n_workers=-1)["workers"])]


def _asked(client: Client, worker: str, folder: Path) -> Seen:
    token = uuid.uuid4().hex
    from_driver, from_worker = (folder / f".neurovol-{token}.{who}" for who in ("driver", "worker"))
    try:
        from_driver.write_text(token)
        host, versions, gpu, fault = _on(client, worker, _look, str(from_driver), str(from_worker), token)
        ahead, within = _clock(partial(_on, client, worker, time.time))
        here = fault or _fault(from_worker, token, "this process", "the worker")
        return Seen(worker, host, versions, gpu, ahead, within, here)
    finally:
        with suppress(OSError):
            from_driver.unlink(missing_ok=True)
            from_worker.unlink(missing_ok=True)


def _clock(ask: Callable[[], float]) -> tuple[float, float]:
    """Seconds by which the clock that is asked is ahead of this one, and how far off that may be."""
    best = (0.0, float("inf"))
    for _ in range(LOOKS):
        asked = time.time()
        there = ask()
        took = time.time() - asked
        if took / 2 < best[1]:
            best = (there - asked - took / 2, took / 2)
    return best


def _on(client: Client, worker: str, call: Callable[..., Any], *told: str) -> Any:
    return client.submit(call, *told, workers=[worker], allow_other_workers=False, pure=False).result(timeout=ANSWER_S)


def _look(from_driver: str, from_worker: str, token: str) -> tuple[str, dict[str, str], Gpu, str]:
    """On a worker: its host, versions and GPU, and why it does not share the driver's folder."""
    fault = _fault(Path(from_driver), token, "the worker", "the driver")
    try:
        Path(from_worker).write_text(token)
    except OSError as error:
        fault = fault or f"the worker cannot write to {Path(from_worker).parent}: {error.strerror}"
    return socket.gethostname(), versions_here(), gpu_here(), fault


def _fault(file: Path, token: str, reader: str, writer: str) -> str:
    """Why what one wrote does not reach the other; network disks are given a while to show it."""
    end = time.monotonic() + SEEN_S
    while True:
        try:
            if file.read_text() == token:
                return ""
            why = "it reads as something else"
        except OSError as error:
            why = str(error.strerror)
        if time.monotonic() > end:
            return f"{reader} does not see in {file.parent} what {writer} wrote there: {why}"
        time.sleep(0.2)
