"""Compiles what of neurovol is C as it is installed, where there is a C compiler; elsewhere other code does the same.

The library depends on no Python. Its name tells of which sources it is, so that one that an older checkout left is
never loaded (neurovol/volume/compiled.py looks for the name).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "neurovol/volume"
# One library for all processors of a cluster first; then, for compilers and systems that cannot make such, a plain one.
TRIES = (["-DCLONES"], [])


class Compiled(BuildHookInterface):
    """Adds the library to what is installed."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before a wheel is made, or an editable one; a source distribution has the source alone."""
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / FOLDER
        sources = sorted(folder.glob("*.c"))
        together = b"".join(source.read_bytes() for source in sources)
        library = folder / f"compiled-{hashlib.sha256(together).hexdigest()[:16]}.so"
        if why := compiled(sources, library):
            self.app.display_warning(f"neurovol's C is not compiled, so conversions take longer: {why}")
            return
        for other in {*folder.glob("compiled-*.so*"), *folder.glob("halve-*.so*")} - {library}:  # also one cut short
            other.unlink()
        build_data["artifacts"].append(f"{FOLDER}/{library.name}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def compiled(sources: list[Path], library: Path) -> str:
    """Why it could not be; "" where the library is there, whole."""
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), "")
    if not compiler:
        return "there is no C compiler (cc, gcc, clang, or what CC names)"
    why = ""
    for options in TRIES:
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / library.name
            command = [*compiler.split(), "-O3", "-shared", "-fPIC", *options, "-o", str(made), *map(str, sources)]
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
                partial = library.with_name(f"{library.name}.{os.getpid()}")
                shutil.copyfile(made, partial)
                partial.replace(library)  # whole or not at all, and never in place: runs may have it loaded
            except subprocess.CalledProcessError as error:
                why = f"{compiler} says: {error.stderr.strip()}"
            except (OSError, subprocess.TimeoutExpired) as error:
                why = str(error)
            else:
                return ""
    return why
