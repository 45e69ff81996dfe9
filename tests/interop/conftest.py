"""A small volume with labels as neurovol writes it, and a server that gives its files to a browser."""

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from neurovol.geometry import BlockGrid
from neurovol.volume.blockimage import BlockImage
from neurovol.volume.omezarr import VolumeWriter, create_volume, finish_volume, open_volume, register_label
from neurovol.volume.pyramid import downsample

FACTORS = [(1, 2, 2), (2, 2, 2)]
VOXEL_SIZE_UM = (5.0, 2.0, 2.0)
BALL_UM = (70.0, 58.0, 172.0)  # centre of the bright ball, z, y, x, from the corner of the first voxel
RADIUS_UM = 20.0
SHAPE = (23, 90, 130)


@dataclass(frozen=True)
class Written:
    """A volume on disk, the arrays of its levels that it was made of, from fine to coarse, and the ball in it.

    OME-Zarr counts from the centre of the first voxel, and so does `ball_um`.
    """

    image: Path
    image_levels: list[np.ndarray]  # (c, z, y, x) of uint16
    label_levels: list[np.ndarray]  # (z, y, x) of uint8
    ball_um: tuple[float, ...] = tuple(b - v / 2 for b, v in zip(BALL_UM, VOXEL_SIZE_UM, strict=True))
    radius_um: float = RADIUS_UM


def ball(centre_um: tuple[float, ...] = BALL_UM) -> np.ndarray:
    """(z, y, x) of bool: the voxels whose centres lie in the ball."""
    um = ((np.arange(n) + 0.5) * size for n, size in zip(SHAPE, VOXEL_SIZE_UM, strict=True))
    z, y, x = np.meshgrid(*um, indexing="ij")
    distance = (z - centre_um[0]) ** 2 + (y - centre_um[1]) ** 2 + (x - centre_um[2]) ** 2
    return np.asarray(distance <= RADIUS_UM**2)


def levels_of(array: np.ndarray, how: str) -> list[np.ndarray]:
    """The array and its coarser levels."""
    levels = [array]
    for factors in FACTORS:
        levels.append(downsample(levels[-1], factors, how))
    return levels


def write_volume(path: Path, levels: list[np.ndarray], **finish) -> None:
    """A finished volume of the levels given, shard by shard."""
    shape = levels[0].shape
    create_volume(
        path, shape=shape[-3:], channels=shape[0] if len(shape) == 4 else None, dtype=levels[0].dtype,
        voxel_size_um=VOXEL_SIZE_UM, chunk=(8, 16, 16), shard=(16, 64, 64), factors=FACTORS,
    )  # fmt: skip
    info = open_volume(path, allow_incomplete=True)
    for level, array in enumerate(levels):
        for block in BlockGrid(info.level_shape(level), info.shard(level), info.shard(level)):
            VolumeWriter(str(path), level).write(block.write, array[(..., *block.write.slices)])
    finish_volume(path, name=path.name, attributes={}, **finish)


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Written:
    """Two channels, noise in the second and a bright ball in the first, which the labels call 2 in a world of 1."""
    image = np.random.default_rng(0).integers(100, 1000, (2, *SHAPE)).astype(np.uint16)
    image[0, ball()] += 40000
    image_levels, label_levels = levels_of(image, "mean"), levels_of(ball().astype(np.uint8) + np.uint8(1), "max")
    path = tmp_path_factory.mktemp("interop") / "image.ome.zarr"
    write_volume(path, image_levels, omero=[(100, 41000), (100, 1000)])
    write_volume(path / "labels" / "train", label_levels, label=True)
    register_label(path, "train")
    return Written(path, image_levels, label_levels)


@pytest.fixture(scope="session")
def one_level(written) -> Callable[[int], str]:
    """The name of a volume beside the image whose only content is one level's; all other levels are black."""

    def write(level: int) -> str:
        path = written.image.with_name(f"only-{level}.ome.zarr")
        if not path.exists():
            write_volume(path, [array * (n == level) for n, array in enumerate(written.image_levels)])
        return path.name

    return write


BLOCK = (8, 32, 32)
STATES = {"done": (1, "00FF00FF"), "set aside": (4, "FF0000FF")}
SET_ASIDE = (1, 1, 2)  # the block whose voxels lie around CENTRE_UM of the tests


@pytest.fixture(scope="session")
def blocks(written) -> BlockImage:
    """An image of the blocks of that volume beside it: all done in a second, one set aside."""
    grid = BlockGrid(SHAPE, BLOCK, BLOCK)
    meanings = [(value, name, colour) for name, (value, colour) in STATES.items()]
    image = BlockImage(written.image.with_name("blocks.ome.zarr"), "convert", grid, VOXEL_SIZE_UM, meanings)
    seconds, states = np.ones(grid.counts, np.float32), np.ones(grid.counts, np.uint8)
    seconds[SET_ASIDE], states[SET_ASIDE] = 0, STATES["set aside"][0]
    image.create(seconds.ravel(), states.ravel())
    return image


class FileHandler(SimpleHTTPRequestHandler):
    """Files with what a browser's Zarr reader asks of a server: other origins allowed, and ranges of bytes."""

    protocol_version = "HTTP/1.1"
    extensions_map: ClassVar[dict[str, str]] = {"": "application/octet-stream"}

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Allow-Headers", "*")
        self.send_header("Access-Control-Expose-Headers", "Content-Range, Content-Length")
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def do_OPTIONS(self) -> None:
        self.send_response(HTTPStatus.NO_CONTENT)
        self.end_headers()

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        content = file.read_bytes()
        start, stop = byte_range(self.headers.get("Range"), len(content))
        if start >= stop and content:
            self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            return
        whole = self.headers.get("Range") is None
        self.send_response(HTTPStatus.OK if whole else HTTPStatus.PARTIAL_CONTENT)
        if not whole:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        self.wfile.write(content[start:stop])

    def log_message(self, *_: object) -> None:
        """Nothing is printed of what is asked for."""


def byte_range(header: str | None, size: int) -> tuple[int, int]:
    """Start and stop of an HTTP Range header: "bytes=2-5", "bytes=2-", "bytes=-5"."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "bytes=0-")
    assert found, header
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


@pytest.fixture(scope="session")
def url(written) -> Iterator[str]:
    """Where the folder of volumes is served: http://127.0.0.1:PORT"""
    handler = partial(FileHandler, directory=str(written.image.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
