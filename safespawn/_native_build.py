"""Describes the extension module to cffi; run by setup.py, never imported at run time."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sysconfig
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

# The child's code may refer to nothing outside itself (hazard 7 of _native.c), so
# the compiler must not turn its loops into calls of memcpy, memset or strlen.
COMPILE_ARGS = ["-std=gnu11", "-O2", "-fno-tree-loop-distribute-patterns", "-fvisibility=hidden"]
# Functions that libc's callers jump to carry the marks of indirect branches (CET, BTI).
COMPILE_ARGS += {
    "x86_64": ["-fcf-protection"],
    # Atomics of libgcc would be calls out of the child's code.
    "aarch64": ["-mbranch-protection=standard", "-mno-outline-atomics"],
}.get(platform.machine(), [])

# Nothing is bound lazily: the first call of a symbol would take the loader's lock.
# Never unloaded: libc's export table leads to us (_interpose.c).
LINK_ARGS = ["-Wl,-z,now", "-Wl,-z,noexecstack", "-Wl,-z,nodelete"]

# Launcher and helper have no libc and need no loader: nothing of them is found, bound or relocated
# when they start, and no variable of the environment means anything to them.
PROGRAM_ARGS = [
    "-std=gnu11",
    "-O2",
    "-ffreestanding",
    "-fno-tree-loop-distribute-patterns",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fvisibility=hidden",
    "-static-pie",
    "-nostdlib",
    "-Wl,--build-id=none",
    "-Wl,-z,text",
    "-Wl,-z,now",
    "-Wl,-z,relro",
    "-Wl,-z,noexecstack",
]
PROGRAM_MACHINE_ARGS = {
    "x86_64": ["-fcf-protection"],
    # Atomics of libgcc would ask libc which instructions there are.
    "aarch64": ["-mbranch-protection=standard", "-mno-outline-atomics"],
}

#: All of the core. It is one unit: _native.c includes the others.
SOURCES = (
    "_native.c",
    "_sys.h",
    "_clone.h",
    "_plan.h",
    "_child.c",
    "_steps.c",
    "_drop.c",
    "_confine.c",
    "_spawned.c",
    "_find.c",
    "_maps.c",
    "_launch.c",
    "_posix.c",
    "_huge.c",
    "_batch.c",
    "_wire.h",
    "_wire.c",
    "_launcher.c",
    "_freestanding.c",
    "_sealed_plan.c",
    "_helper.h",
    "_helper.c",
    "_allowed.c",
    "_asked.c",
    "_message.c",
    "_standing.c",
    "_ask.c",
    "_credlock.c",
    "_wrappers.c",
    "_interpose.c",
    "_objects.c",
    "_rewrite.c",
    "_tasks.c",
    "_locked.c",
    "_foreign.c",
    "_landlock.c",
    "_seal.c",
    "_sha256.c",
    "_ledger.h",
    "_text.c",
    "_ring.c",
    "_ledger_file.c",
    "_ledger_keys.c",
    "_ledger.c",
    "_ledger_open.c",
    "_system.c",
    "_epoch.c",
    "_telling.c",
    "_verify.c",
    "_native.cdef.txt",
)


def compiler() -> list[str]:
    """Return the command of the C compiler that Python would use."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


#: The programs beside the core, by the macro that tells the core which file is its own.
PROGRAMS = {"SS_LAUNCHER_SHA256": "launcher", "SS_HELPER_SHA256": "helper"}


def build_program(
    name: str,
    where: Path,
    *arguments: str,
    command: list[str] | None = None,
    machine: str = platform.machine(),
) -> str:
    """Compile a program of ours into ``where``, under its name, and return its SHA-256 in hex."""
    made, new = where / name, where / f"{name}.{os.getpid()}"
    own = [*PROGRAM_ARGS, *PROGRAM_MACHINE_ARGS.get(machine, [])]
    source = ["-I", str(HERE), str(HERE / f"_{name}.c"), "-o", str(new)]
    subprocess.run([*(command or compiler()), *own, *arguments, *source], check=True)
    new.chmod(0o755)
    new.replace(made)  # in one step: the old one may be running
    return hashlib.sha256(made.read_bytes()).hexdigest()


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


def build_programs(where: Path, *arguments: str) -> tuple[tuple[str, str], ...]:
    """Compile them all, and return the macros with their digests."""
    return tuple((macro, f'"{build_program(name, where, *arguments)}"') for macro, name in PROGRAMS.items())


def ffibuilder() -> FFI:
    """Build the programs and return the builder of the product; the name that setup.py gives to cffi.

    The programs first: their digests are compiled in.
    """
    return builder(define_macros=build_programs(HERE))
