"""neurovol: every neuronal body in 3D, from a few annotated slices, out of core."""

__version__ = "0.1.0"
