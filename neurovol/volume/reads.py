"""What reads boxes of a volume, for whom it does not matter where the voxels lie."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from neurovol.geometry import Box


class Reads(Protocol):
    """A reader of one level of a volume."""

    def read(self, box: Box) -> NDArray[Any]:
        """(c, z, y, x), or (z, y, x) of a volume without channels, of a box inside it."""
        ...
