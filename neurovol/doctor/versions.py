"""Python, packages and compiled code: pip keeps to what neurovol asks for on the day, other installations break it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib import metadata

from packaging.requirements import Requirement

from neurovol.doctor.finding import Finding
from neurovol.volume.compiled import library

OLDEST_PYTHON = (3, 11)

# What comes of a version that is not asked for, where that is known.
WHY = {
    "fastapi": "later ones break Prefect's server",
    "sqlalchemy": "with later ones Prefect's server runs, but its scheduler silently creates no runs",
    "numcodecs": "earlier ones compress as if every voxel were one byte wide",
}


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Iterator[Finding]:
    """Whether this Python is new enough."""
    told = ".".join(map(str, version))
    if version < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield Finding("fail", "python", f"{told}, and {oldest} is needed", f"install neurovol under Python {oldest}")
    else:
        yield Finding("ok", "python", f"{told} in {sys.prefix}")


def check_compiled() -> Iterator[Finding]:
    """Whether what conversions do most is done by compiled code."""
    if library() is None:
        way_out = "install a C compiler (gcc), and then neurovol again"
        yield Finding("warn", "compiled", "neurovol's C is not: conversions take half as long again", way_out)
    else:
        yield Finding("ok", "compiled", "what conversions do most: they take two thirds of the time")


def check_packages(extras: Sequence[str] = ()) -> Iterator[Finding]:
    """Whether the packages that neurovol asks for are there in versions that it works with; `extras` are of its own."""
    try:
        asked = [Requirement(text) for text in metadata.requires("neurovol") or ()]
    except metadata.PackageNotFoundError:
        way_out = "pip install it, or look after versions yourself"
        yield Finding("warn", "packages", "neurovol is run without being installed: what it needs is unknown", way_out)
        return
    wanted = [one for one in asked if _applies(one, extras)]
    wrong = list(filter(None, map(_fault, wanted)))
    for fault, requirement in wrong:
        yield Finding("fail", "packages", fault, f'pip install "{requirement}"')
    if not wrong:
        yield Finding("ok", "packages", f"{len(wanted)} packages, all in versions that neurovol works with")


def _applies(requirement: Requirement, extras: Sequence[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def _fault(requirement: Requirement) -> tuple[str, str] | None:
    """What is wrong with a package, and what pip is to install."""
    name, asked = requirement.name, f"{requirement.name}{requirement.specifier}"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is not installed", asked
    if requirement.specifier.contains(version, prereleases=True):
        return None
    why = f": {WHY[name.lower()]}" if name.lower() in WHY else ""
    return f"{name} is {version}, which {requirement.specifier} rules out{why}", asked
