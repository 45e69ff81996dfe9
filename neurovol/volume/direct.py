"""Files written past the page cache, while the next pieces are made, where the file system is known to do that well.

|<---- written as it fills ---->|<-- written through the cache: what is left of a disk's block -->|

What is written through the cache is copied there, into memory that has to be found for it, and waits until someone
asks for it to be on disk: in a conversion that is a quarter of the time, and drives from memory what is read. Others
than ext4 and XFS may do as well, but it was not measured.

Buffers lie on huge pages: of small ones a disk is told page by page, and took half as long again.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import queue
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from io import BufferedWriter, FileIO
from typing import Protocol

import numpy as np

from neurovol.volume.workspace import held
from neurovol.volume.writeback import start_writeback

BLOCK = 4096  # bytes: what such writes are multiples of, and their memory and places
BUFFER = 2**23  # bytes written at once, at most
FEWEST = 2**18  # bytes worth a write of their own
BUFFERS = 12  # of a process, on their way or being filled; beyond, who would fill one waits for the disk
HUGE = 2**21  # bytes of a huge page

_SUITED = {0xEF53, 0x58465342}  # ext4 (2 and 3 as well) and XFS, by the number that statfs(2) calls them


class Output(Protocol):
    """A shard's file while it is written, from its beginning on."""

    def room(self, n: int) -> memoryview:
        """So many bytes or more, of any content, for what comes next in the file."""

    def keep(self, n: int) -> None:
        """The first `n` bytes of the room that was given come next."""

    def write(self, data: bytes) -> None:
        """These come next."""

    def rest(self) -> None:
        """More comes later, if any: what there is may be on its way to disk meanwhile."""

    def flush(self) -> None:
        """All is handed to the system when this returns; OSError where something could not be written."""

    def settle(self) -> None:
        """Nothing is under way any more; to be called before the file is closed."""


class Cached:
    """Through the page cache."""

    def __init__(self, file: FileIO, durable: bool) -> None:
        self._file, self._durable = BufferedWriter(file), durable
        self._scratch = memoryview(b"")

    def room(self, n: int) -> memoryview:
        self._scratch = _scratch(n)
        return self._scratch

    def keep(self, n: int) -> None:
        self._file.write(self._scratch[:n])

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def rest(self) -> None:
        if self._durable:
            start_writeback(self._file)

    def flush(self) -> None:
        self._file.flush()

    def settle(self) -> None:
        self._file.detach()


class Direct:
    """Past the page cache, by a thread of the process's own."""

    def __init__(self, fd: int) -> None:
        """`fd`: of an empty file, set to be written so."""
        self._fd = fd
        self._written = 0  # bytes, of which the writes have begun
        self._tail = b""  # what comes next, less than is worth a write
        self._buffer: memoryview | None = None
        self._filled = 0  # bytes of the buffer
        self._given = memoryview(b"")  # room beside the buffer
        self._going: deque[Future[None]] = deque()

    def room(self, n: int) -> memoryview:
        if n > BUFFER - FEWEST:  # more than is left of any buffer beside what is held back
            self._given = _scratch(n)
            return self._given
        if self._buffer is not None and BUFFER - self._filled < n:
            self._send()
        return self._taken()[self._filled :]

    def keep(self, n: int) -> None:
        if self._given:
            given, self._given = self._given, memoryview(b"")
            self.write(given[:n])
        else:
            self._filled += n

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            buffer = self._taken()
            n = min(len(view), BUFFER - self._filled)
            buffer[self._filled : self._filled + n] = view[:n]
            self._filled += n
            view = view[n:]

    def _taken(self) -> memoryview:
        """A buffer that is not full, beginning with what is held back."""
        if self._buffer is not None and self._filled == BUFFER:
            self._send()
        if self._buffer is None:
            self._buffer = _buffers().get()
            self._buffer[: len(self._tail)] = self._tail
            self._filled, self._tail = len(self._tail), b""
        return self._buffer

    def _send(self) -> None:
        """Whole blocks of the buffer on their way, the rest held back."""
        if self._buffer is None:
            return
        whole = self._filled // BLOCK * BLOCK if self._filled >= FEWEST else 0
        self._tail = bytes(self._buffer[whole : self._filled])
        if whole:
            while self._going and self._going[0].done():
                self._going.popleft().result()
            self._going.append(_writer().submit(_write, self._fd, self._buffer, whole, self._written))
        else:
            _buffers().put(self._buffer)
        self._written += whole
        self._buffer, self._filled = None, 0

    rest = _send

    def flush(self) -> None:
        self._send()
        while self._going:
            self._going.popleft().result()
        if self._tail:
            _past_cache(self._fd, False)
            _write_all(self._fd, memoryview(self._tail), self._written)
            self._written += len(self._tail)
            self._tail = b""

    def settle(self) -> None:
        for going in self._going:
            going.exception()  # waits; who did not flush has an error of its own
        if self._buffer is not None:
            _buffers().put(self._buffer)
            self._buffer = None


def output(file: FileIO, durable: bool) -> Output:
    """To write to an empty file, opened unbuffered."""
    fd = file.fileno()
    return Direct(fd) if _file_system(fd) in _SUITED and _past_cache(fd, True) else Cached(file, durable)


def _past_cache(fd: int, wanted: bool) -> bool:
    """Whether it could be set so."""
    import fcntl

    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT)
    except OSError:
        return False
    return True


def _file_system(fd: int) -> int:
    """Its number; 0 where none is to be had."""
    if sys.platform != "linux":
        return 0
    found = (ctypes.c_long * 64)()  # more than the system's structure takes
    return 0 if _libc().fstatfs(fd, found) else found[0]


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _write(fd: int, buffer: memoryview, size: int, offset: int) -> None:
    """On the writer's thread: the buffer's first bytes; then it is free."""
    try:
        _write_all(fd, buffer[:size], offset)
    finally:
        _buffers().put(buffer)


def _write_all(fd: int, view: memoryview, offset: int) -> None:
    while view:
        try:
            n = os.pwrite(fd, view, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _past_cache(fd, False)  # a disk of larger blocks, or what is left of a write that was cut short
            n = os.pwrite(fd, view, offset)
        view, offset = view[n:], offset + n


@cache
def _writer() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="neurovol-disk")


@cache
def _buffers() -> queue.LifoQueue[memoryview]:
    """Those that are free."""
    free: queue.LifoQueue[memoryview] = queue.LifoQueue()  # who writes little touches the memory of one
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # of memory that is shared pages are small
    memory = mmap.mmap(-1, BUFFERS * BUFFER + HUGE, flags=kind)
    with suppress(AttributeError, OSError):  # a system without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    first = -np.frombuffer(memory, np.uint8).ctypes.data % HUGE
    for start in range(first, first + BUFFERS * BUFFER, BUFFER):
        free.put(memoryview(memory)[start : start + BUFFER])
    return free


def _scratch(n: int) -> memoryview:
    return memoryview(held(("room", n), lambda: bytearray(n)))  # fresh for each costs a tenth
