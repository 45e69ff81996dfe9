"""What is installed: wheels as they are built, with compiled code where there is a compiler, and without."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TAKEN = ("pyproject.toml", "README.md", "LICENSE", "deploy/hatch_build.py", "neurovol", "flows")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a wheel is made of; nothing compiled."""
    folder = tmp_path / "checkout"
    (folder / "deploy").mkdir(parents=True)
    for name in TAKEN:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, folder / name)
    for compiled in folder.glob("neurovol/volume/*.so"):
        compiled.unlink()
    return folder


def build(checkout: Path, **environment: str) -> tuple[Path, str]:
    """The wheel, and what was said as it was built."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(checkout / "dist")],
        cwd=checkout, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = (checkout / "dist").glob("*.whl")
    return wheel, done.stdout + done.stderr


def libraries(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        assert {"neurovol/volume/halve.c", "neurovol/volume/blosc_lz4.c"} <= set(archive.namelist())
        return [name for name in archive.namelist() if name.endswith(".so")]


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")
def test_a_wheel_holds_the_library_of_its_sources_alone(checkout: Path, tmp_path: Path) -> None:
    stale = checkout / "neurovol/volume/compiled-0123456789abcdef.so"
    stale.write_bytes(b"of other sources")
    wheel, _ = build(checkout)
    assert "-py3-none-linux_" in wheel.name
    assert len(libraries(wheel)) == 1
    assert not stale.exists()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = "from neurovol.volume.compiled import library; print(library())"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path / "installed", text=True)
    assert str(tmp_path / "installed") in loaded


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_that_works_a_wheel_is_made_and_says_so(checkout: Path, compiler: str) -> None:
    wheel, said = build(checkout, CC=compiler)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert libraries(wheel) == []
    assert "neurovol's C is not compiled, so conversions take longer" in said
    assert compiler in said


CONVERSION = """
import hashlib, sys
from pathlib import Path
from neurovol.geometry import Box, BlockGrid
from neurovol.stages.blockcopy import Convert
from neurovol.volume.compiled import library
from neurovol.volume.omezarr import create_volume
from neurovol.volume.phantom import PhantomSource

path, shape, shard = Path(sys.argv[1]), (50, 150, 230), (32, 64, 128)
path.mkdir()
create_volume(path / "v", shape=shape, channels=1, dtype="uint16", voxel_size_um=(2, 1, 1), chunk=(16, 32, 64),
              shard=shard, factors=[(1, 2, 2), (2, 2, 2)], fused=1)
source = PhantomSource(shape, seed=1)
task = Convert(source, (0,), str(path / "v"), ((1, 2, 2),), str(path), parted=((2, 2, 2),))
blocks = list(BlockGrid(shape, shard, shard))
print(library() is not None, [task(block).crc32c for block in blocks[:2]])
task.begin(blocks[2:4]).wait()
for file in sorted(path.rglob("*")):
    if file.is_file():
        print(file.relative_to(path), hashlib.sha256(file.read_bytes()).hexdigest())
"""


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")
def test_a_store_and_its_notes_are_the_same_to_the_byte_without_a_compiler(checkout: Path, tmp_path: Path) -> None:
    """So that a run may be continued on a node that has none."""
    made = []
    for place, environment in (("with", {}), ("without", {"CC": "no-such-compiler"})):
        wheel, _ = build(checkout, **environment)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp_path / place)
        wheel.unlink()
        for compiled in checkout.glob("neurovol/volume/*.so"):
            compiled.unlink()
        command = [sys.executable, "-c", CONVERSION, str(tmp_path / f"store {place}")]
        made.append(subprocess.check_output(command, cwd=tmp_path / place, text=True).splitlines())
    (first, *quick), (second, *slow) = made
    assert (first.split()[0], second.split()[0]) == ("True", "False")
    assert first.split()[1:] == second.split()[1:]
    assert len(quick) > 10
    assert quick == slow
