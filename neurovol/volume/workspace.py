"""Memory that a thread takes again: the first touch of fresh memory costs as much as copying into it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from math import prod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

LINE = 64  # bytes of the processor's cache; where memory begins
_held = threading.local()
_Kind = TypeVar("_Kind")


def reused(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array on this thread's own memory of that name, holding what the last one left; the next call takes it again.

    >>> a = reused("example", (2, 3), np.dtype(np.uint16))
    >>> b = reused("example", (4,), np.dtype(np.uint8))
    >>> np.shares_memory(a, b)
    True
    """
    wanted = prod(shape) * dtype.itemsize
    memory: NDArray[np.uint8] | None = _held.__dict__.get(name)
    if memory is None or memory.nbytes < wanted:
        fresh = np.empty(wanted + LINE, np.uint8)
        memory = _held.__dict__[name] = fresh[-fresh.ctypes.data % LINE :][:wanted]
    array: NDArray[Any] = memory[:wanted].view(dtype).reshape(shape)
    return array


def held(name: Hashable, make: Callable[[], _Kind]) -> _Kind:
    """What `make` gives, made once by each thread; the next call of that name returns it again."""
    kept = _held.__dict__.setdefault("kept", {})
    if name not in kept:
        kept[name] = make()
    found: _Kind = kept[name]
    return found
