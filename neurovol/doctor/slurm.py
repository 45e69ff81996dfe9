"""Whether Slurm has a partition that would take the jobs that a project asks for."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from neurovol.clustersettings import ClusterSettings, JobSettings
from neurovol.doctor.finding import Finding
from neurovol.errors import Failure
from neurovol.fields import walltime_s

ANSWER_S = 60.0
COMMANDS = {"slurm": ("sbatch", "squeue", "scancel", "sinfo", "scontrol"), "pbs": ("qsub", "qdel")}
COMMANDS |= {"lsf": ("bsub", "bkill"), "sge": ("qsub", "qdel")}

# States in which a node takes no new job, now and for a while.
UNUSABLE = ("down", "drain", "fail", "maint", "inval", "unknown", "future", "power", "reboot", "perfctrs")


@dataclass(frozen=True)
class Node:
    """What a partition has of a machine; memory in MiB, as Slurm counts it."""

    name: str
    state: str
    cores: int
    memory_mib: int
    gres: str

    @property
    def usable(self) -> bool:
        """
        >>> [Node("n", state, 2, 8000, "").usable for state in ("mixed", "idle~", "down*", "drained", "idle*")]
        [True, True, False, False, False]
        """
        return not self.state.endswith("*") and not self.state.startswith(UNUSABLE)  # *: does not answer


def check_commands(settings: ClusterSettings) -> Iterator[Finding]:
    """Whether this machine can submit jobs."""
    missing = [command for command in COMMANDS[settings.kind] if shutil.which(command) is None]
    if missing:
        way_out = "run where jobs can be submitted, or set cluster.kind"
        text = f'cluster.kind = "{settings.kind}" needs {", ".join(missing)}, which this machine does not have'
        yield Finding("fail", settings.kind, text, way_out)
    else:
        yield Finding("ok", settings.kind, f"{', '.join(COMMANDS[settings.kind])} are here")


def check_slurm(job: JobSettings, section: str = "cluster.job") -> Iterator[Finding]:
    """Whether Slurm has the partition that a job asks for, open to its account, with a node that it fits on.

    `section` of the project file is what findings name.
    """
    partitions = _partitions()
    found = _chosen(partitions, job.partition)
    if found is None:
        wanted = f'there is no partition "{job.partition}"' if job.partition else "no partition is the default one"
        there = ", ".join(partitions) or "none"
        way_out = f"set {section}.partition to one of those"
        yield Finding("fail", "slurm", f"{section}: {wanted}; there are: {there}", way_out)
        return
    name = found["PartitionName"]
    faults = [*_closed(found, job, section), *_nodes(name, job, section)]
    yield from faults
    if not faults:
        size = f"{job.cores} cores, {job.memory_gb:g} GB{' and a GPU' * job.gpus} for {job.walltime}"
        yield Finding("ok", "slurm", f'{section}: partition "{name}" is up, and takes jobs of {size}')


def _asked(*command: str) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        raise Failure(f"`{' '.join(command)}` gave no answer within {ANSWER_S:.0f} s; is slurmctld running?") from None
    if said.returncode:
        raise Failure(f"`{' '.join(command)}` failed: {said.stderr.strip()}; is slurmctld running?")
    return said.stdout


def _partitions() -> dict[str, dict[str, str]]:
    """What Slurm says of each partition, by name."""
    lines = _asked("scontrol", "--oneliner", "show", "partition").splitlines()
    told = [dict(pair.split("=", 1) for pair in line.split() if "=" in pair) for line in lines]
    return {one["PartitionName"]: one for one in told if "PartitionName" in one}


def _chosen(partitions: dict[str, dict[str, str]], name: str | None) -> dict[str, str] | None:
    if name is not None:
        return partitions.get(name)
    return next((one for one in partitions.values() if one.get("Default") == "YES"), None)


def _closed(partition: dict[str, str], job: JobSettings, section: str) -> Iterator[Finding]:
    """Why a partition takes no such job, whatever its nodes."""
    name = partition["PartitionName"]
    if partition.get("State") != "UP":
        way_out = f"ask who runs the cluster, or set {section}.partition to another"
        yield Finding("fail", "slurm", f'{section}: partition "{name}" is {partition.get("State")}, not UP', way_out)
    allowed, denied = (partition.get(key, "ALL").split(",") for key in ("AllowAccounts", "DenyAccounts"))
    if job.account and ((allowed != ["ALL"] and job.account not in allowed) or job.account in denied):
        text = f'{section}: partition "{name}" takes no jobs of account "{job.account}", but of {", ".join(allowed)}'
        yield Finding("fail", "slurm", text, f"set {section}.account to one that it takes, or another partition")
    most = partition.get("MaxTime", "UNLIMITED")
    if most != "UNLIMITED" and walltime_s(job.walltime) > slurm_seconds(most):
        text = f'{section}.walltime is {job.walltime}, and partition "{name}" takes jobs of at most {most}'
        yield Finding(
            "fail", "slurm", text, f"set {section}.walltime to at most {most}: workers are replaced as they end"
        )


def slurm_seconds(text: str) -> int:
    """Seconds of a time as Slurm tells it.

    >>> slurm_seconds("1-02:00:00"), slurm_seconds("01:00:00"), slurm_seconds("30:00")
    (93600, 3600, 1800)
    """
    days, _, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    hours, minutes, seconds = ([0] * (3 - len(parts)) + parts)[-3:]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def _nodes(partition: str, job: JobSettings, section: str) -> Iterator[Finding]:
    """Why no node of a partition would do."""
    lines = _asked("sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N|%T|%c|%m|%G").splitlines()
    nodes = [_node(line) for line in lines]
    usable = [node for node in nodes if node.usable]
    if not usable:
        states = ", ".join(f"{node.name} {node.state}" for node in nodes) or "it has none"
        way_out = f"ask who runs the cluster (sinfo -R says why), or set {section}.partition to another"
        yield Finding("fail", "slurm", f'{section}: no node of partition "{partition}" can be used: {states}', way_out)
        return
    if not any(_fits(node, job) for node in usable):
        largest = max(usable, key=lambda node: (_has_gpu(node), node.cores, node.memory_mib))
        text = (
            f"{section} asks for {job.cores} cores, {job.memory_gb:g} GB and {job.gpus} GPUs, which no usable node of "
            f'partition "{partition}" has; the largest, {largest.name}, has {largest.cores} cores, '
            f"{largest.memory_mib * 2**20 / 1e9:.3g} GB and {'' if _has_gpu(largest) else 'no '}GPUs"
        )
        yield Finding("fail", "slurm", text, f"ask for less in {section}, or set another partition")


def _node(line: str) -> Node:
    name, state, cores, memory, gres = line.split("|", 4)
    return Node(name, state, int(cores), int(memory), gres)


def _fits(node: Node, job: JobSettings) -> bool:
    enough = node.cores >= job.cores and node.memory_mib * 2**20 >= job.memory_gb * 1e9
    return enough and (not job.gpus or _has_gpu(node))


def _has_gpu(node: Node) -> bool:
    return re.search(r"\bgpu\b", node.gres) is not None
