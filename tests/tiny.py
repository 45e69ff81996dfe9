"""A project small enough to run whole in a test: two phantoms, tiny networks, many small shards."""

from pathlib import Path

TINY = """
name = "tiny"

[[samples]]
name = "a"
phantom = {shape = [20, 90, 100], seed = 1}

[[samples]]
name = "b"
phantom = {shape = [18, 70, 90], seed = 2, contrast = 1.5}

[[annotations]]
sample = "a"
source = "phantom"
every = 4

[[annotations]]
sample = "b"
source = "phantom"
box = [[2, 16], [10, 70], [15, 85]]
role = "test"

[convert]
chunk = [8, 16, 16]
shard = [16, 64, 64]

[pseudolabel]
steps = 12
batch = 32
window = [4, 48, 48]
precision = "fp32"

[train]
steps = 6
batch = 2
patch = [16, 32, 32]
base_channels = 2
checkpoint_every = 2
precision = "fp32"

[segment]
window = [16, 32, 32]
precision = "fp32"

[cluster]
workers = 1
threads = 2
"""


def write_tiny(folder: Path, *changes: tuple[str, str]) -> Path:
    """The tiny project's file, with texts replaced; each must be there."""
    text = TINY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = folder / "project.toml"
    file.write_text(text, encoding="utf-8")
    return file


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder that hold voxels or weights, by their path within it; not the seconds that blocks took."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if "progress" not in name and ("c/" in name or path.suffix == ".safetensors")
    }
