"""Describes the extension module to cffi; run by setup.py, never imported at run time."""

from __future__ import annotations

import platform
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

# The child's code may refer to nothing outside itself (hazard 7 of _native.c), so
# the compiler must not turn its loops into calls of memcpy, memset or strlen.
COMPILE_ARGS = ["-std=gnu11", "-O2", "-fno-tree-loop-distribute-patterns", "-fvisibility=hidden"]
# Functions that libc's callers jump to carry the marks of indirect branches (CET, BTI).
COMPILE_ARGS += {
    "x86_64": ["-fcf-protection"],
    "aarch64": ["-mbranch-protection=standard"],
}.get(platform.machine(), [])

# Nothing is bound lazily: the first call of a symbol would take the loader's lock.
# Never unloaded: libc's export table leads to us (_interpose.c).
LINK_ARGS = ["-Wl,-z,now", "-Wl,-z,noexecstack", "-Wl,-z,nodelete"]

#: All of the core. It is one unit: _native.c includes the others.
SOURCES = (
    "_native.c",
    "_sys.h",
    "_credlock.c",
    "_wrappers.c",
    "_interpose.c",
    "_tasks.c",
    "_locked.c",
    "_foreign.c",
    "_seal.c",
    "_native.cdef.txt",
)


def builder(
    *,
    extra_cdef: str = "",
    define_macros: tuple[tuple[str, str | None], ...] = (),
    include_dirs: tuple[str, ...] = (),
    compile_args: tuple[str, ...] = (),
    link_args: tuple[str, ...] = (),
) -> FFI:
    """Return the builder of ``safespawn._native_ffi``, with additions for test builds."""
    ffi = FFI()
    ffi.cdef((HERE / "_native.cdef.txt").read_text(encoding="utf-8") + extra_cdef)
    ffi.set_source(
        "safespawn._native_ffi",
        (HERE / "_native.c").read_text(encoding="utf-8"),
        define_macros=list(define_macros),
        include_dirs=[str(HERE), *include_dirs],
        depends=[str(HERE / name) for name in SOURCES],
        extra_compile_args=[*COMPILE_ARGS, *compile_args],
        extra_link_args=[*LINK_ARGS, *link_args],
    )
    return ffi


def ffibuilder() -> FFI:
    """Return the builder of the product; the name that setup.py gives to cffi."""
    return builder()
