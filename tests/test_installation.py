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
