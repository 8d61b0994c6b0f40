"""Values of options in words, as chrt(1) and prlimit(1) have them: text to what the library takes.

Pure. What is wrong is raised as ValueError with the text in it.
"""

from __future__ import annotations

import os
import resource
import signal

#: Scheduling policies in the words of chrt(1).
POLICIES = {
    "other": os.SCHED_OTHER,
    "batch": os.SCHED_BATCH,
    "idle": os.SCHED_IDLE,
    "fifo": os.SCHED_FIFO,
    "rr": os.SCHED_RR,
}
WITH_PRIORITY = ("fifo", "rr")
#: The highest number of a processor that the library takes: a range must not be a way to eat all memory.
CPU_MAX = 65535


def _wrong(needed: str, text: str) -> ValueError:
    return ValueError(f"{needed} needed, not {text!r}")


def is_number(text: str) -> bool:
    """Whether it is a number and nothing else: no sign, no space."""
    return text.isascii() and text.isdigit()


def octal(text: str) -> int:
    """Return an octal number."""
    try:
        return int(text, 8)
    except ValueError:
        raise _wrong("octal number", text) from None


def processors(text: str) -> list[int]:
    """Return the numbers of a list such as ``0,2-3``."""
    cpus: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.partition("-")
        high = high if dash else low
        if not (is_number(low) and is_number(high) and int(low) <= int(high) <= CPU_MAX):
            raise _wrong("processors such as 0,2-3", text)
        cpus.update(range(int(low), int(high) + 1))
    return sorted(cpus)


def signal_number(text: str) -> int:
    """Return the signal of a number or a name, which may be without SIG."""
    if is_number(text):
        return int(text)
    name = text.upper()
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
    except KeyError:
        raise ValueError(f"no such signal: {text!r}") from None


def scheduler(text: str) -> int | tuple[int, int]:
    """Return a policy, or policy and priority of POLICY:PRIORITY."""
    name, colon, priority = text.partition(":")
    if name not in POLICIES or not (is_number(priority) if colon else name not in WITH_PRIORITY):
        raise _wrong("other, batch, idle, fifo:PRIORITY or rr:PRIORITY", text)
    return (POLICIES[name], int(priority)) if colon else POLICIES[name]


def resource_number(name: str) -> int:
    """Return the number of a limit of getrlimit(2) by its name, such as ``nofile``."""
    number: int | None = getattr(resource, f"RLIMIT_{name.upper()}", None)
    if number is None:
        raise ValueError(f"no such limit: {name!r}")
    return number
