"""What the numbers were measured on: the machine, its kernel, and the versions of all that takes part."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

#: Where the kernel tells whether memory gets huge pages unasked.
_HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def of_kib(file: str, name: str) -> int:
    """Return a number of KiB that a file of /proc has under that name, such as VmRSS.

    Raises LookupError, OSError.
    """
    for line in Path(file).read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise LookupError(f"{file} has no {name}")


def available_mib() -> int:
    """Return the MiB that can be had without swapping (MemAvailable, proc_meminfo(5))."""
    return of_kib("/proc/meminfo", "MemAvailable") >> 10


def huge_pages() -> str:
    """Return who gets huge pages: "always", "madvise", "never", or "none" where the kernel has none."""
    try:
        words = _HUGE.read_text(encoding="ascii").split()
    except OSError:
        return "none"
    return next((word.strip("[]") for word in words if word.startswith("[")), "none")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "CPU part"):
            return value.strip()
    return "unknown processor"


def version() -> str:
    """Return the version of safespawn, which a tree that is not installed cannot tell."""
    try:
        return metadata.version("safespawn")
    except metadata.PackageNotFoundError:
        return "not installed"


def facts() -> dict[str, Any]:
    """Return them by name. Memory in MiB, pages in KiB; load: of the last minute, now."""
    return {
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "memory_mib": of_kib("/proc/meminfo", "MemTotal") >> 10,
        "available_mib": available_mib(),
        "page_kib": os.sysconf("SC_PAGESIZE") >> 10,
        "huge_pages": huge_pages(),
        "libc": " ".join(platform.libc_ver()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "safespawn": version(),
        "load": os.getloadavg()[0],
    }


def line(told: dict[str, Any]) -> str:
    """Return the facts as one line for a reader."""
    peers = "".join(f", {text}" for text in told.get("versions", {}).values())
    return (
        f"{told['kernel']} {told['architecture']}, {told['processor']}, {told['processors']} processors,"
        f" {told['memory_mib']} MiB, huge pages {told['huge_pages']}; safespawn {told['safespawn']},"
        f" {told['python']}, {told['libc']}{peers}; load before {told['load']:.2f}"
    )


def busy(told: dict[str, Any]) -> str:
    """Return a sentence for a machine that was not idle before, or nothing."""
    if told["load"] < told["processors"] / 2:
        return ""
    return f"The machine was busy before, with a load of {told['load']:.2f}: do not trust these numbers."
