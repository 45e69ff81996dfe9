"""Files written past the page cache hold what was written, wherever it was cut, and errors are not lost on the way."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurovol.volume.direct import BLOCK, BUFFER, BUFFERS, FEWEST, HUGE, Cached, Direct, Output, output
from neurovol.volume.shardfile import shard_file


@contextmanager
def opened(file: Path) -> Iterator[Output]:
    with file.open("wb", buffering=0) as handle:
        found = output(handle, durable=True)
        try:
            yield found
        finally:
            found.settle()


@pytest.fixture
def suited(tmp_path: Path) -> Path:
    with opened(tmp_path / "tried") as found:
        if not isinstance(found, Direct):
            pytest.skip("temporary files lie on a file system that is not written past the page cache")
    return tmp_path


sizes = st.one_of(
    st.integers(0, 3 * BLOCK), st.integers(FEWEST - 2, FEWEST + 2), st.integers(BUFFER - 2, BUFFER + BLOCK)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.lists(st.lists(sizes, max_size=3), max_size=4), st.booleans(), st.booleans(), st.integers(0, 99))
def test_pieces_of_any_size_are_one_after_the_other_in_the_file(
    tmp_path: Path, bursts: list[list[int]], durable: bool, in_place: bool, seed: int
) -> None:
    noise = np.random.default_rng(seed).bytes(BUFFER + BLOCK)
    wanted = b"".join(noise[:size] for burst in bursts for size in burst)
    with shard_file(tmp_path / "shard", durable) as file:
        for burst in bursts:
            for size in burst:
                if in_place:
                    room = file.room(size + 3)
                    room[:size] = noise[:size]
                    file.keep(size)
                else:
                    file.write(noise[:size])
            file.rest()
    assert (tmp_path / "shard").read_bytes() == wanted
    assert [file.name for file in tmp_path.iterdir()] == ["shard"]


def write(file: Path, pieces: list[bytes], then: Exception | None = None) -> None:
    with shard_file(file) as out:
        for piece in pieces:
            out.write(piece)
        if then is not None:
            raise then


def test_a_file_begins_where_a_huge_page_does(suited: Path) -> None:
    """Beside it lies no part of another: a buffer is a whole number of huge pages, where the system has them."""
    for name in ("one", "after the other"):
        with shard_file(suited / name) as file:
            assert np.frombuffer(file.room(1), np.uint8).ctypes.data % HUGE == 0
    assert BUFFER % HUGE == 0


def test_more_files_than_buffers_may_be_open_at_once(suited: Path) -> None:
    """As shards of several blocks and levels are; between bursts none keeps a buffer."""
    noise = np.random.default_rng(0).bytes(FEWEST + 5)
    names = [str(k) for k in range(BUFFERS + 2)]
    with ExitStack() as stack:
        files = [stack.enter_context(shard_file(suited / name)) for name in names]
        for file in files * 3:
            file.write(noise)
            file.write(b"crc")
            file.rest()
    assert {(suited / name).read_bytes() for name in names} == {3 * (noise + b"crc")}


def test_a_disk_that_is_full_is_told_and_leaves_nothing(suited: Path) -> None:
    """By a limit on the size of files, which is met on the writer's thread."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * BUFFER // 2, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            write(suited / "shard", [bytes(BUFFER)] * 2 * BUFFERS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG
    assert [file.name for file in suited.iterdir()] == ["tried"]
    test_more_files_than_buffers_may_be_open_at_once(suited)  # no buffer was lost


def test_who_gives_up_waits_for_what_is_under_way(suited: Path) -> None:
    """Or it would go to another file, opened by the same number."""
    with pytest.raises(KeyError):
        write(suited / "shard", [bytes(BUFFER)] * BUFFERS, KeyError())
    assert [file.name for file in suited.iterdir()] == ["tried"]
    test_more_files_than_buffers_may_be_open_at_once(suited)


def test_blocks_that_the_disk_does_not_take_go_through_the_cache(suited: Path) -> None:
    with opened(suited / "file") as found:
        assert isinstance(found, Direct)
        found.write(bytes(BUFFER))
        found.flush()
        found._written += 1  # as a disk of larger blocks has it: no place that it can be written to
        found.write(b"a" * FEWEST)
        found.flush()
    assert (suited / "file").read_bytes() == bytes(BUFFER + 1) + b"a" * FEWEST


def test_elsewhere_files_are_written_through_the_cache() -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        pytest.skip("no file system in memory")
    file = memory / f"neurovol-test-{os.getpid()}"
    try:
        with opened(file) as found:
            assert isinstance(found, Cached)
            found.write(b"neu")
            found.room(3)[:3] = b"ron"
            found.keep(3)
            found.flush()
        assert file.read_bytes() == b"neuron"
    finally:
        file.unlink(missing_ok=True)
