"""Builds core and programs of a package in their places, and prints what tells its code from another's.

    python build.py PACKAGE [LEVEL]

The code of each is compared without what it is called by or where it was: two sources that give the same are equivalent.
LEVEL is that of optimisation of the core; -O1 is enough to see that two expressions are the same, and -O0 takes half the time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

#: Of the programs: without optimisation they lack functions of libc's headers.
QUICK = "-O1"


def script_of(package: Path) -> Any:
    """Return the module that builds a package."""
    spec = importlib.util.spec_from_file_location("safespawn_build", package / "_native_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["safespawn_build"] = module
    spec.loader.exec_module(module)
    return module


def _compile(package: Path, script: Any, generated: Path, macros: list[str], made: Path, level: str) -> None:
    include = [f"-I{package}", f"-I{sysconfig.get_path('include')}"]
    line = [*script.compiler(), *script.COMPILE_ARGS, level, "-fPIC", *include, *macros, "-c", str(generated), "-o", str(made)]
    subprocess.run(line, check=True, stderr=subprocess.DEVNULL)


def main(package: Path, level: str = QUICK) -> None:
    """Build, and print the digests of the three."""
    script = script_of(package)
    programs = script.build_programs(package, QUICK)
    ffi = script.builder(define_macros=programs, compile_args=(QUICK,))
    with tempfile.TemporaryDirectory() as name:
        generated, made, new = (Path(name) / one for one in ("core.c", "core.o", "core.so"))
        ffi.emit_c_code(str(generated))
        _compile(package, script, generated, [f"-D{macro}={value}" for macro, value in programs], made, level)
        subprocess.run([*script.compiler(), "-shared", str(made), *script.LINK_ARGS, "-o", str(new)], check=True)
        extension = package / "_native_ffi.abi3.so"
        extension.unlink(missing_ok=True)  # whoever has the old one mapped keeps it
        shutil.copy(new, extension)
        extension.chmod(0o755)
        # The name of the source is not code: compiled elsewhere, the same gives the same.
        print(hashlib.sha256(made.read_bytes().replace(name.encode(), b"")).hexdigest(), *(value for _, value in programs))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), *sys.argv[2:])
