"""Peak memory of driver and workers does not depend on the size of the volume."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource, sys
from pathlib import Path
from neurovol.cli import main

if __name__ == "__main__":
    file = Path(sys.argv[1])
    assert main(["convert", str(file)]) == 0
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    print(*(resource.getrusage(w).ru_maxrss // 1024 for w in who))
"""


def peaks_mb(folder: Path, shape: list[int]) -> list[int]:
    """Peak resident memory of driver and worker while converting a phantom of that shape."""
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    (folder / "project.toml").write_text(
        f'name = "p"\n[[samples]]\nname = "s"\nphantom = {{shape = {shape}}}\n'
        "[convert]\nchunk = [32, 64, 64]\nshard = [64, 128, 128]\n[cluster]\nworkers = 1\n"
    )
    command = [sys.executable, str(folder / "script.py"), str(folder / "project.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(mb) for mb in done.stdout.split()[-2:]]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_converting_sixteen_times_the_voxels_takes_no_more_memory(tmp_path: Path) -> None:
    small = peaks_mb(tmp_path / "small", [64, 512, 512])
    large = peaks_mb(tmp_path / "large", [256, 1024, 1024])  # 537 MB of voxels, 16 times as many
    for before, after in zip(small, large, strict=True):
        assert after < before + 80, f"peaks in MB: {small} for the small volume, {large} for the large one"
