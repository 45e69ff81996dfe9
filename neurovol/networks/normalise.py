"""Raw integers to float32 in about 0 to 1, by a sample's own constants and never by what a window shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from neurovol.errors import UserError

RULE = "percentile-1-99.8"

# What lies far outside the percentiles says no more than that it does: empty surroundings below
# (raw 0 under a camera offset would be at any negative value), saturated grains above.
CLIP = (-0.5, 3.0)


@dataclass(frozen=True, slots=True)
class Normalisation:
    """One sample's constants for a normalisation rule: per channel what becomes 0 and what becomes 1.

    >>> Normalisation(low=(100.0,), high=(300.0,)).apply(np.array([[[[0, 100, 200, 9999]]]])).tolist()
    [[[[-0.5, 0.0, 0.5, 3.0]]]]
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    rule: str = RULE

    def __post_init__(self) -> None:
        if self.rule != RULE:
            raise UserError(f'normalisation rule "{self.rule}" is unknown; this version knows "{RULE}" only')
        if len(self.low) != len(self.high) or not self.low:
            raise UserError(
                f"normalisation: {len(self.low)} low and {len(self.high)} high values; give one per channel"
            )
        for channel, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if not (isfinite(low) and isfinite(high) and low < high):
                raise UserError(
                    f"normalisation of channel {channel}: the 1st percentile {low} is not below the 99.8th, {high}: "
                    "the channel is constant or empty; convert other `channels`, or check the source"
                )

    @property
    def channels(self) -> int:
        return len(self.low)

    def apply(self, raw_CZYX: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """(raw - low) / (high - low) as float32, clipped to `CLIP`; same shape."""
        low, high = self._column(self.low), self._column(self.high)
        result: npt.NDArray[np.float32] = np.subtract(raw_CZYX, low, dtype=np.float32)
        result *= 1 / (high - low)
        np.clip(result, *CLIP, out=result)
        return result

    @staticmethod
    def _column(values: Sequence[float]) -> npt.NDArray[np.float32]:
        return np.asarray(values, dtype=np.float32)[:, None, None, None]

    def to_json(self) -> dict[str, Any]:
        return {"rule": self.rule, "low": list(self.low), "high": list(self.high)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Normalisation:
        return cls(tuple(fields["low"]), tuple(fields["high"]), fields["rule"])
