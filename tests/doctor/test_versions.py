"""Packages as an installation has them, against what neurovol asks for."""

import importlib
from pathlib import Path

import pytest

from neurovol.doctor.versions import check_compiled, check_packages, check_python
from neurovol.volume.compiled import library


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts another version of a package before the one that is installed."""

    def install(name: str, version: str, *lines: str) -> None:
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines])
        )
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()

    return install


def test_the_environment_of_these_tests_is_in_order() -> None:
    (found,) = check_packages(["hpc"])
    assert found.level == "ok", found.line


@pytest.mark.parametrize(
    ("name", "version", "why"),
    [
        ("fastapi", "0.165.0", "break Prefect's server"),
        ("sqlalchemy", "2.1.0", "silently creates no runs"),
        ("numcodecs", "0.15.1", "one byte wide"),
        ("prefect", "3.9.0", "rules out"),
    ],
)
def test_a_version_known_to_break_is_named_with_what_comes_of_it(installed, name: str, version: str, why: str) -> None:
    installed(name, version)
    (found,) = check_packages()
    assert found.level == "fail"
    assert f"{name} is {version}" in found.text
    assert why in found.text
    assert found.way_out.startswith(f'pip install "{name}')


def test_a_package_that_is_missing_is_named(installed) -> None:
    installed("neurovol", "9", "Requires-Dist: no-such-package-of-ours>=2", "Requires-Dist: numpy>=2")
    (found,) = check_packages()
    assert (found.level, found.text) == ("fail", "no-such-package-of-ours is not installed")
    assert found.way_out == 'pip install "no-such-package-of-ours>=2"'


def test_what_only_an_extra_asks_for_is_asked_for_with_it(installed) -> None:
    installed("neurovol", "9", "Provides-Extra: hpc", 'Requires-Dist: no-such-queue>=2; extra == "hpc"')
    assert [found.level for found in check_packages()] == ["ok"]
    assert [found.level for found in check_packages(["hpc"])] == ["fail"]


def test_an_old_python_is_refused_with_the_one_that_is_needed() -> None:
    (found,) = check_python((3, 10, 4))
    assert (found.level, found.text) == ("fail", "3.10.4, and 3.11 is needed")
    assert [found.level for found in check_python()] == ["ok"]


def test_what_an_installation_without_a_c_compiler_lacks_is_a_warning() -> None:
    (found,) = check_compiled()
    assert (found.level, bool(found.way_out)) == (("ok", False) if library() else ("warn", True))
