"""The benchmarks run from beginning to end, where someone wants to measure anew; what they measure is not judged."""

import json
import subprocess
import sys
from math import isfinite
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            "bench_convert.py",
            "of_codec_bound pyramid_extra peak_mb lzw_of_bound zetastitcher_vs_stack two_workers_vs_one",
        ),
        ("bench_strips.py", "of_decoding_bound"),
    ],
)
def test_a_quick_run_writes_figures_and_ratios(tmp_path, script, told):
    found = tmp_path / "found.json"
    command = [sys.executable, str(BENCH / script), "--quick", "--json", str(found), "--folder", str(tmp_path / "data")]
    subprocess.run(command, check=True)
    result = json.loads(found.read_text())
    assert set(told.split()) <= result["ratios"].keys()
    assert all(isfinite(value) for value in result["ratios"].values())
    assert {"cores", "processor"} <= result["machine"].keys()
    assert result["versions"]
    assert result["figures"]
