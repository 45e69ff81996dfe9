"""How phantom tissue looks: lengths in µm, densities per mm³, brightness in multiples of the neuropil's."""

from __future__ import annotations

from dataclasses import dataclass

VoxelSize = tuple[float, float, float]  # z, y, x in µm


@dataclass(frozen=True)
class Traits:
    """Human cortex, as two-photon microscopy of cleared blocks shows it.

    Neurons per mm³ and capillary length (about 0.5 m per mm³) lie within what is reported of human cortex.
    The brightness of cells, grains and noise
    was set so that the 2D CNN, taught on every tenth slice, reaches a Dice between 0.70 and 0.85 on another seed.
    """

    # neurons
    neurons_per_mm3: float = 30_000.0
    pyramidal_share: float = 0.75
    half_width_um: tuple[float, float] = (3.6, 7.2)
    cell_brightness: float = 1.9  # median above neuropil
    cell_brightness_spread: float = 0.65  # sigma of its logarithm: many faint, few bright
    cell_brightness_range: tuple[float, float] = (0.55, 8.0)
    nucleus_share: float = 0.45
    apical_length_um: tuple[float, float] = (25.0, 62.0)
    basal_length_um: tuple[float, float] = (8.0, 24.0)
    # what is mistaken for neurons
    glia_per_mm3: float = 14_000.0
    glia_brightness: float = 0.9
    grain_clusters_per_mm3: float = 9_000.0
    free_grains_per_mm3: float = 20_000.0
    grain_share: float = 0.4  # of neurons, with grains at one pole
    grain_radius_um: tuple[float, float] = (0.5, 1.4)
    grain_brightness: float = 9.0
    # vessels
    vessel_spacing_um: float = 56.0
    vessel_share: float = 0.48  # of neighbouring nodes that are joined
    vessel_radius_um: tuple[float, float] = (1.9, 4.2)
    trunk_spacing_um: float = 260.0
    trunk_radius_um: tuple[float, float] = (7.0, 15.0)
    # neuropil
    fibre_brightness: float = 0.8
    granularity: float = 0.22
    cloudiness: float = 0.12
    # the sample's outline
    surround_share: float = 0.09  # of the sample's extent along y
    surround_wave: float = 0.025
    layer_one_um: float = 120.0  # under the surface there are few neurons; less in small samples
    # optics and detector
    blur_um: tuple[float, float, float] = (2.0, 0.5, 0.5)  # sigma of the point spread function, z, y, x
    slab_um: float = 400.0
    decay_um: float = 190.0
    decay_floor: float = 0.3
    tile_px: int = 400
    tile_gain_spread: float = 0.16
    vignetting: float = 0.18
    neuropil_counts: float = 240.0
    offset_counts: float = 110.0
    shot_gain: float = 8.0  # counts per photo-electron
    read_noise_counts: float = 12.0
