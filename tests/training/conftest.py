from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from neurovol.geometry import Box, zyx
from neurovol.networks.normalise import Normalisation
from neurovol.training.samples import TrainingSample


@dataclass(frozen=True, eq=False)
class ArrayImage:
    array: np.ndarray  # (c, z, y, x)

    def read(self, box: Box, channels: tuple[int, ...]) -> np.ndarray:
        assert Box.of_shape(zyx(self.array.shape[1:])).contains(box), f"{box} leaves the sample"
        return self.array[list(channels)][(slice(None), *box.slices)]


@dataclass(frozen=True, eq=False)
class ArrayLabels:
    array: np.ndarray  # (z, y, x)

    def read(self, box: Box) -> np.ndarray:
        assert Box.of_shape(zyx(self.array.shape)).contains(box), f"{box} leaves the sample"
        return self.array[box.slices]


MakeSample = Callable[..., TrainingSample]


@pytest.fixture
def make_sample() -> MakeSample:
    """A sample in memory; its image's voxels are all different, so that a patch tells where it is from."""

    def make(annotation: np.ndarray, pseudo: np.ndarray | None = None, **fields: Any) -> TrainingSample:
        shape = zyx(annotation.shape)
        values = np.arange(annotation.size).reshape(1, *shape)
        defaults: dict[str, Any] = {
            "name": "a",
            "channels": (0,),
            "image": ArrayImage(values),
            "normalisation": Normalisation((0.0,), (float(annotation.size),)),
            "boxes": (Box.of_shape(shape),),
            "pseudo": None if pseudo is None else ArrayLabels(pseudo),
            "inferred": () if pseudo is None else (Box.of_shape(shape),),
        }
        return TrainingSample(shape=shape, annotation=ArrayLabels(annotation), **(defaults | fields))

    return make
