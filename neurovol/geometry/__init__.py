"""Boxes, windows and blocks: integers only, and the only place that computes starts and stops.

Axes are z, y, x; boxes are half-open, in voxels of one level.

    |==halo==|######## write ########|==halo==|
    |<----------------- read ---------------->|
"""

from neurovol.geometry.blocks import Block, BlockGrid, Numbered, Receipt, shard_keys, side_by_side
from neurovol.geometry.box import AXES, Box, Zyx, ceil_div, round_up, zyx
from neurovol.geometry.windows import (
    ReflectedRead,
    Window,
    check_halo,
    reflect,
    reflected,
    window_count,
    windows,
)

__all__ = [
    "AXES",
    "Block",
    "BlockGrid",
    "Box",
    "Numbered",
    "Receipt",
    "ReflectedRead",
    "Window",
    "Zyx",
    "ceil_div",
    "check_halo",
    "reflect",
    "reflected",
    "round_up",
    "shard_keys",
    "side_by_side",
    "window_count",
    "windows",
    "zyx",
]
