"""Starts workers as the project would, and sees that they share its store, versions and time, and have their GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from distributed import Client

from neurovol.blockwise.cluster import open_client, worker_count
from neurovol.blockwise.probe import Seen, probe, versions_here
from neurovol.clustersettings import ClusterSettings
from neurovol.doctor.finding import Finding
from neurovol.doctor.server import clock_finding
from neurovol.doctor.store import existing

MOST_STARTED = 2  # of the project's workers: one may be an exception, all of them would take a partition


def clusters(settings: ClusterSettings) -> dict[str, ClusterSettings]:
    """The kinds of worker that a project's stages ask for, by the name of their check."""
    found = {"workers": settings.model_copy(update={"gpu_job": None})}
    if settings.queued and settings.gpu_job is not None:
        found["gpu workers"] = settings.model_copy(update={"job": settings.gpu_job, "gpu_job": None})
    return found


def check_workers(name: str, settings: ClusterSettings, folder: Path, wait_s: float) -> Iterator[Finding]:
    """Start some workers, and ask each what it sees. Failure or UserError where they cannot be started.

    `folder` is the project's in its store.
    """
    count = worker_count(settings) if settings.kind != "address" else 1
    few = settings if settings.kind == "address" else settings.model_copy(update={"workers": min(count, MOST_STARTED)})
    began, shared = time.monotonic(), existing(folder)
    with (
        TemporaryDirectory(prefix=".neurovol-doctor-", dir=shared, ignore_cleanup_errors=True) as jobs,
        open_client(few, Path(jobs), "neurovol-doctor") as client,
    ):
        if not _came(client, few.workers or 1, wait_s - (time.monotonic() - began)):
            way_out = "see the queue (squeue), or wait longer by --wait" if settings.queued else "start workers there"
            yield Finding("fail", name, f"none came within {wait_s:.0f} s", way_out)
            return
        seen = probe(client, shared)
        hosts = ", ".join(sorted({one.host for one in seen}))
        took = time.monotonic() - began
        yield Finding("ok", name, f"{len(seen)} came and answered within {took:.0f} s, on {hosts}")
        yield from judged(name, seen, needs_gpu=settings.queued and settings.job.gpus > 0)


def _came(client: Client, wanted: int, seconds: float) -> bool:
    """Whether any worker came; waits for as many as wanted."""
    end = time.monotonic() + seconds
    while len(client.nthreads()) < wanted and time.monotonic() < end:
        time.sleep(0.2)
    return bool(client.nthreads())


def judged(name: str, seen: list[Seen], *, needs_gpu: bool) -> Iterator[Finding]:
    """What workers see, a line for each thing that matters; of several the first that is wrong."""
    yield _shared(name, seen)
    yield _versions(name, seen)
    worst = max(seen, key=lambda one: abs(one.clock_s) - one.clock_within_s)
    yield clock_finding(name, f"the clock of {worst.host}", worst.clock_s, worst.clock_within_s)
    yield _gpu(name, seen, needs_gpu)


def _shared(name: str, seen: list[Seen]) -> Finding:
    for one in seen:
        if one.unshared:
            way_out = "set `store` to a disk that all nodes mount under the same path"
            return Finding("fail", name, f"{one.host}: {one.unshared}", way_out)
    return Finding("ok", name, "share the store's disk with this machine")


def _versions(name: str, seen: list[Seen]) -> Finding:
    here = versions_here()
    for one in seen:
        if unlike := one.unlike(here):
            way_out = "have workers use this environment: by a shared disk, or the same constraints.txt"
            return Finding("fail", name, f"{one.host} has {', '.join(unlike)}", way_out)
    return Finding("ok", name, f"have this machine's versions, of neurovol {here['neurovol']}")


def _gpu(name: str, seen: list[Seen], needed: bool) -> Finding:
    for one in seen:
        if one.gpu.fault:
            way_out = "install a torch that fits the GPU and its driver"
            return Finding("fail", name, f"{one.host}: {one.gpu.name} cannot be computed on: {one.gpu.fault}", way_out)
        if needed and not one.gpu.name:
            way_out = (
                "see that the partition gives GPUs for --gres=gpu:1, and that torch was built for CUDA "
                "(cluster.job.setup may load it)"
            )
            return Finding("fail", name, f"{one.host}: the job asks for a GPU, and torch sees none", way_out)
    found = sorted({f"{one.gpu.name} of {one.gpu.bytes / 1e9:.0f} GB" for one in seen if one.gpu.name})
    if not found:
        return Finding("skipped", name, "no GPU is asked for, and none is there: networks run on the CPU")
    return Finding("ok", name, f"compute on {', '.join(found)}")
