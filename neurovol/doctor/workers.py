"""Starts workers as the project would, and sees that they share its store, versions and time, and have their GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from distributed import Client

from neurovol.blockwise.cluster import open_client, worker_count
from neurovol.blockwise.probe import Seen, probe, versions_here
from neurovol.clustersettings import ClusterSettings
from neurovol.doctor.finding import Finding, Overtime, limit
from neurovol.doctor.server import clock_finding
from neurovol.doctor.store import existing

MORE_S = 15.0  # for the second worker to come after the first
MOST_STARTED = 2  # of the project's workers: one may be an exception, all of them would take a partition


def clusters(settings: ClusterSettings) -> dict[str, ClusterSettings]:
    """The kinds of worker that a project's stages ask for, by the name of their check."""
    found = {"workers": settings.model_copy(update={"gpu_job": None})}
    if settings.queued and settings.gpu_job is not None:
        found["gpu workers"] = settings.predicting
    return found


def check_workers(name: str, settings: ClusterSettings, folder: Path, wait_s: float) -> Iterator[Finding]:
    """Start some workers, and ask each what it sees. Failure or UserError where they cannot be started.

    `folder` is the project's in its store.
    """
    few = settings.model_copy(update={"workers": min(worker_count(settings), MOST_STARTED)})
    began, shared = time.monotonic(), existing(folder)
    with ExitStack() as stack:
        jobs = stack.enter_context(
            TemporaryDirectory(prefix=".neurovol-doctor-", dir=shared, ignore_cleanup_errors=True)
        )
        try:
            with limit(wait_s):
                client = stack.enter_context(open_client(few, Path(jobs), "neurovol-doctor"))
                _wait_for(client, few.workers or 1)
        except Overtime:
            way_out = (
                "see the queue (squeue), or wait longer by --wait" if settings.queued else "see what they wait for"
            )
            yield Finding("fail", name, f"none came within {wait_s:.0f} s", way_out)
            return
        seen = probe(client, shared)
        hosts = ", ".join(sorted({one.host for one in seen}))
        took = time.monotonic() - began
        yield Finding("ok", name, f"{len(seen)} came and answered within {took:.0f} s, on {hosts}")
        yield from judged(name, seen, needs_gpu=bool(settings.job.gpus if settings.queued else settings.gpus))


def _wait_for(client: Client, wanted: int) -> None:
    """Wait for a worker, and for the wanted number of them a while longer: a queue may have room for one only."""
    while not client.nthreads():
        time.sleep(0.2)
    end = time.monotonic() + MORE_S
    while len(client.nthreads()) < wanted and time.monotonic() < end:
        time.sleep(0.2)


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
