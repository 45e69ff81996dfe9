"""The kinds of value that settings are made of, each with its rule."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Zyx = tuple[int, int, int]
PositiveZyx = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
Micrometres = Annotated[float, Field(gt=0, allow_inf_nan=False)]
VoxelSize = tuple[Micrometres, Micrometres, Micrometres]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]


class Section(BaseModel):
    """A part of the project file; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _ordered(pairs: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    for axis, (start, stop) in zip("zyx", pairs, strict=True):
        if start < 0 or stop <= start:
            raise ValueError(f"axis {axis} runs from {start} to {stop}; it must be 0 <= start < stop")
    return pairs


def expanded(path: Any) -> Any:
    """`${NAME}` in a path replaced by the environment variable of that name."""
    if not isinstance(path, str):
        return path
    missing = [name for name in re.findall(r"\$\{(\w+)\}", path) if name not in os.environ]
    if missing:
        raise ValueError(
            f"names the environment variable {missing[0]}, which is not set; set it, or write the path out"
        )
    return re.sub(r"\$\{(\w+)\}", lambda found: os.environ[found[1]], path)


def _listed(paths: Any) -> Any:
    """A path, or several, as a list of them, expanded."""
    listed = paths if isinstance(paths, list | tuple) else [paths]
    if not listed or not all(isinstance(path, str | Path) for path in listed):
        raise ValueError("is neither a path nor a list of paths; give one, or several where channels lie apart")
    return [expanded(path) for path in listed]


def _unrepeated(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"{path} is listed {paths.count(path)} times; each source is one or more channels, once")
    return paths


def walltime_s(text: str) -> int:
    """Seconds of HH:MM:SS or D-HH:MM:SS.

    >>> walltime_s("04:00:00"), walltime_s("1-00:30:00")
    (14400, 88200)
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", text)
    if found is None:
        raise ValueError(f'"{text}" is no walltime; write HH:MM:SS or D-HH:MM:SS, as "04:00:00"')
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _walltime(text: str) -> str:
    if walltime_s(text) < 60:
        raise ValueError(f'"{text}" is too short for a job; queues count minutes')
    return text


FilePath = Annotated[Path, BeforeValidator(expanded)]
FilePaths = Annotated[tuple[Path, ...], BeforeValidator(_listed), AfterValidator(_unrepeated)]
BoxPairs = Annotated[tuple[tuple[int, int], tuple[int, int], tuple[int, int]], AfterValidator(_ordered)]
Walltime = Annotated[str, AfterValidator(_walltime)]
