"""What is noted of a block until its conversion is done: small arrays by name, in one file.

    [[name, dtype, shape], …], newline | array | array | …

numpy's npz takes nine times as long to read where arrays are as small as these, for zip and for headers in Python's
syntax, and nearly twice as long to write; and a conversion's last step waits for all of them to be read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurovol.errors import Failure
from neurovol.volume.stored import write_bytes

SUFFIX, OLDER = ".note", ".npz"  # as earlier versions wrote it, which a conversion may have been begun with


def write_note(folder: Path, block: int, arrays: Mapping[str, NDArray[Any]], named: bool = True) -> None:
    """Durable, and whole or not at all; equal arrays give equal bytes. `named`: see write_bytes."""
    header = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    path = _path(folder, block)
    try:
        write_bytes(
            path, b"".join([json.dumps(header).encode() + b"\n", *(a.tobytes() for a in arrays.values())]), named
        )
    except OSError as error:
        raise Failure(f"{path}: could not be written: {error.strerror}") from error


def read_note(folder: Path, block: int) -> dict[str, NDArray[Any]]:
    """The arrays; Failure where the file is missing or damaged."""
    path = _path(folder, block)
    try:
        if not path.exists() and path.with_suffix(OLDER).exists():
            with np.load(path.with_suffix(OLDER), allow_pickle=False) as stored:
                return dict(stored)
        header, _, content = path.read_bytes().partition(b"\n")
        arrays, offset = {}, 0
        for name, dtype, shape in json.loads(header):
            array = np.frombuffer(content, dtype, prod(shape), offset).reshape(shape)
            arrays[name], offset = array, offset + array.nbytes
        if offset != len(content):
            raise ValueError(f"{len(content)} bytes follow its header, which tells of {offset}")
    except Exception as error:  # json, numpy, zip and zlib have errors of their own
        raise Failure(f"{path}: could not be read: {error}; run the conversion again, with --redo") from error
    return arrays


def _path(folder: Path, block: int) -> Path:
    return folder / f"{block}{SUFFIX}"
