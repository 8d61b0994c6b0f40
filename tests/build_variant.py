"""Builds a copy of the package with another core, for tests only.

    python tests/build_variant.py hooks|careless|asan|ubsan|tsan|unlocked DIRECTORY

``hooks`` has the switches of tests/hooks; ``careless`` has child code that sets errno, as any
libc call would; ``asan``, ``ubsan`` and ``tsan`` are the product under a sanitizer; ``unlocked`` is ``tsan`` with a ledger in
which nobody waits for the others. The copy lies in DIRECTORY/safespawn, to be put in front of sys.path.
"""

from __future__ import annotations

import compileall
import shutil
import sys
from pathlib import Path
from typing import Any

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
HOOKS = ROOT / "tests" / "hooks"


def _builder(variant: str, package: Path) -> FFI:
    sys.path.insert(0, str(ROOT))
    from safespawn_build import build_programs, builder  # type: ignore[import-not-found]

    hooked = ["-DSS_TEST_HOOKS", f"-I{HOOKS}"] if variant == "hooks" else []
    own = build_programs(package, *hooked)

    if variant == "hooks":
        made: FFI = builder(
            extra_cdef=(HOOKS / "_hooks.cdef.txt").read_text(encoding="utf-8"),
            define_macros=(("SS_TEST_HOOKS", None), *own),
            include_dirs=(str(HOOKS),),
        )
        return made
    if variant == "careless":
        _make_careless(package / "_steps.c")  # the launcher has no libc to be careless with
        made = builder(define_macros=own)
        return made
    if variant == "unlocked":
        _make_unlocked(package / "_ledger.c")
        variant = "tsan"
    flag = {
        # Both watch every ordinary test at once; the lock, which the first turns off, has the second alone.
        "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g"],
        # The credential lock has a fence that this one does not know; it is for the ledger.
        "tsan": ["-fsanitize=thread", "-g", "-Wno-tsan"],
        "ubsan": ["-fsanitize=undefined", "-fno-sanitize-recover=undefined", "-g"],
    }[variant]
    # More optimisation takes twice the time here, and hides what is to be found.
    made = builder(define_macros=own, compile_args=(*flag, "-O1"), link_args=tuple(flag))
    return made


def build(variant: str, where: Path) -> Path:
    """Build ``variant`` into ``where`` and return that."""
    package = where / "safespawn"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(
        ROOT / "safespawn", package, ignore=shutil.ignore_patterns("*.so", "__pycache__", "_native_ffi.c")
    )
    _load_build_script(package)
    _builder(variant, package).compile(tmpdir=str(where), verbose=False)
    compileall.compile_dir(package, quiet=1)  # or each interpreter does, where the environment forbids to keep it
    return where


def _make_careless(core: Path) -> None:
    text = core.read_text(encoding="utf-8")
    step = "if (plan->want.flags & SS_SET_UMASK)\n"
    assert text.count(step) == 1
    core.write_text(text.replace(step, "errno = 77;\n\t" + step), encoding="utf-8")


def _make_unlocked(core: Path) -> None:
    text = core.read_text(encoding="utf-8")
    step = "(now = __atomic_load_n(&queue->serving, __ATOMIC_ACQUIRE)) != mine"
    assert text.count(step) == 1
    core.write_text(text.replace(step, f"0 && ({step})"), encoding="utf-8")


def _load_build_script(package: Path) -> None:
    """Import _native_build.py alone: importing the package needs the core that it builds."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("safespawn_build", package / "_native_build.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["safespawn_build"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    print(build(sys.argv[1], Path(sys.argv[2]).resolve()))
