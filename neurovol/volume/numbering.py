"""Whether the names of a folder's slices count through without a gap or a duplicate.

The rule, for names in natural order (s2 before s10; letter case, zero padding and .tif or .tiff make no difference):

- Two names with the same words and numbers are a duplicate.
- Names with different words are different series, unless a number before the first differing word is another in
  each of them. Names without any number are taken in alphabetical order.
- The number that differs is z. It may begin anywhere and go in any constant step; anything else is a gap.
- Where several numbers differ, as clock times beside z do, z is the one that tells all names apart and counts most
  evenly; the natural order has to be its order too. Where none tells them apart and they fill a grid (channels × z,
  rows × columns), they are several series.
- No gap is claimed where it is not sure that a number counts: one of clock times or serial numbers goes in
  uneven steps throughout, a count with slices missing only here and there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd, prod
from pathlib import Path

from neurovol.errors import UserError

_EXTENSION = re.compile(r"\.tiff?$", re.IGNORECASE)
LARGEST_SURE = 10_000  # uneven numbers beyond it may be clock times (HHMMSS) as well as a count with gaps
LISTED = 5  # missing numbers, and series, that a message names

Numbers = Sequence[int]


@dataclass(frozen=True)
class SliceName:
    """The name of a slice's file: words, and the numbers between them."""

    file: str
    words: tuple[str, ...]  # one more than numbers, in lower case
    numbers: tuple[int, ...]

    @property
    def series(self) -> str:
        """The name with a star for each number."""
        return "*".join(self.words)


def parsed(file: str) -> SliceName:
    """The words and numbers of a file's name.

    >>> parsed("Z007_ch1.TIF")
    SliceName(file='Z007_ch1.TIF', words=('z', '_ch', ''), numbers=(7, 1))
    """
    parts = re.split(r"(\d+)", _EXTENSION.sub("", file))
    return SliceName(file, tuple(w.lower() for w in parts[::2]), tuple(map(int, parts[1::2])))


def check_numbering(folder: Path, files: Sequence[str]) -> None:
    """A UserError where these names, in natural order, are not one stack, numbered through."""
    problem = numbering_problem(files)
    if problem is not None:
        raise UserError(f"{folder}: {problem}")


def numbering_problem(files: Sequence[str]) -> str | None:
    """What is wrong with the numbering of these files, in natural order; None where nothing is.

    >>> numbering_problem(["s08.tif", "s09.tif", "s10.tif"])
    >>> numbering_problem(["s0000.tif", "s0010.tif", "s0020.tif"])
    >>> numbering_problem(["s1.tif", "s2.tif", "s4.tif"]).split(";")[0]
    'slice 3 is missing, between s2.tif and s4.tif'
    """
    names = [parsed(file) for file in files]
    doubled = _duplicate(names)
    if doubled is not None:
        return doubled
    if not any(name.numbers for name in names):
        return None
    columns = _shared_numbers(names)
    if len({name.words for name in names}) > 1 and not any(_all_differ(column) for column in columns):
        return _several_series(names)
    return _problem_of_columns(files, [column for column in columns if len(set(column)) > 1])


def _duplicate(names: Sequence[SliceName]) -> str | None:
    first: dict[tuple[tuple[str, ...], tuple[int, ...]], str] = {}
    for name in names:
        other = first.setdefault((name.words, name.numbers), name.file)
        if other != name.file:
            return (
                f"{other} and {name.file} have the same number, so one slice is there twice; "
                f"move the one that does not belong to the stack out of the folder"
            )
    return None


def _shared_numbers(names: Sequence[SliceName]) -> list[tuple[int, ...]]:
    """The numbers at the same place in all names, before the first word that differs; one tuple per place."""
    shared = min(len(name.numbers) for name in names)
    same = [len({name.words[i] for name in names}) == 1 for i in range(shared)]
    n = same.index(False) if False in same else shared
    return list(zip(*(name.numbers[:n] for name in names), strict=True)) if n else []


def _all_differ(numbers: Numbers) -> bool:
    return len(set(numbers)) == len(numbers)


def _several_series(names: Sequence[SliceName]) -> str:
    counts = Counter(name.series for name in names)
    example = {name.series: name.file for name in reversed(names)}
    told = [f"{example[s]} ({n} file{'s' * (n > 1)} named {s})" for s, n in list(counts.items())[:LISTED]]
    more = f" and {len(counts) - LISTED} more" if len(counts) > LISTED else ""
    return (
        f"holds files of {len(counts)} series: {', '.join(told)}{more}; give a folder with one stack: "
        f"one TIFF per z-slice, with names that differ in the slice's number only"
    )


def _problem_of_columns(files: Sequence[str], varying: Sequence[Numbers]) -> str | None:
    """Of the numbers that differ between names."""
    apart = [column for column in varying if _all_differ(column)]
    if not apart:
        return _grid(varying)
    counts = [column for column in apart if counts_mostly(column) or (len(varying) == 1 and max(column) < LARGEST_SURE)]
    if not counts:
        return None
    z = min(reversed(counts), key=n_missing)
    return _disorder(files, z) or _gap(files, z)


def _grid(varying: Sequence[Numbers]) -> str | None:
    """Refuse names that count by several numbers at once; where they are too few for a grid, nothing is sure."""
    lengths = [len(set(column)) for column in varying]
    if len(varying) < 2 or 2 * len(varying[0]) <= prod(lengths):
        return None
    ranges = " × ".join(f"{n} ({min(column)} to {max(column)})" for n, column in zip(lengths, varying, strict=True))
    return (
        f"the names count by {len(varying)} numbers at once, {ranges}, so no number tells which slice is which; "
        f"give a folder with one stack (one channel, one tile), or number the slices through, first to last"
    )


def steps(numbers: Numbers) -> list[int]:
    """From each number to the next larger one.

    >>> steps([7, 1, 3])
    [2, 4]
    """
    ordered = sorted(numbers)
    return [b - a for a, b in pairwise(ordered)]


def counts_mostly(numbers: Numbers) -> bool:
    """Whether at least half of the steps are the smallest that fits all, so that the numbers count something.

    >>> counts_mostly([0, 10, 20, 50, 60]), counts_mostly([142233, 142239, 142246, 142301])
    (True, False)
    """
    found = steps(numbers)
    return 2 * found.count(gcd(*found)) >= len(found)


def n_missing(numbers: Numbers) -> int:
    """How many numbers a constant step lacks.

    >>> n_missing([0, 10, 20, 50])
    2
    """
    return (max(numbers) - min(numbers)) // gcd(*steps(numbers)) + 1 - len(numbers)


def _disorder(files: Sequence[str], z: Numbers) -> str | None:
    i = next((i for i in range(len(z) - 1) if z[i + 1] < z[i]), None)
    if i is None:
        return None
    return (
        f"sorted by name, {files[i]} comes before {files[i + 1]}, though its slice number {z[i]} is larger than "
        f"{z[i + 1]}; rename the files so that the slice's number comes first"
    )


def _gap(files: Sequence[str], z: Numbers) -> str | None:
    """`z` increases."""
    n, step = n_missing(z), gcd(*steps(z))
    if n == 0:
        return None
    i = next(i for i in range(len(z) - 1) if z[i + 1] - z[i] != step)
    first = range(z[i] + step, z[i + 1], step)
    listed = ", ".join(map(str, first[:LISTED])) + (", …" if len(first) > LISTED else "")
    which = f"slice {listed} is missing" if len(first) == 1 else f"slices {listed} are missing"
    count = "" if n == len(first) else f" ({n} are missing in all)"
    return (
        f"{which}, between {files[i]} and {files[i + 1]}{count}; copy the missing files, or, if these slices were "
        f"never imaged, put black ones of the same size in their place, or number the files without a gap"
    )
