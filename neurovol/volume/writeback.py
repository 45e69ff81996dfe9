"""Asks the system to begin writing a file to disk, so that a later fsync has little left to wait for."""

from __future__ import annotations

import ctypes
from typing import Any, BinaryIO

_WRITE = 2  # SYNC_FILE_RANGE_WRITE of Linux: start writing what is dirty, wait for nothing


def _sync_file_range() -> Any:
    """Linux has it; elsewhere fsync waits for it all, which is as safe and only slower."""
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


_call = _sync_file_range()


def start_writeback(file: BinaryIO) -> None:
    """A hint: what it cannot do is left to fsync, which also tells of errors."""
    if _call is not None:
        file.flush()
        _call(file.fileno(), 0, 0, _WRITE)
