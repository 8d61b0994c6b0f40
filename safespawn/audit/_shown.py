"""Values of a record as a person reads them: nothing here can be obeyed by a terminal, or mistaken."""

from __future__ import annotations

import pwd
import shlex
import signal
import time
import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache

from .spawns import Spawn

#: Returns how a uid is shown.
Names = Callable[[int], str]


def clean(text: str) -> str:
    r"""Return a text with everything that is not to be seen as itself escaped, as ``\x1b`` or ``\u202e``.

    That is: control characters, those that change the order or the look of others, halves of
    surrogate pairs, separators of lines, and every blank but the space.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8: os.fsdecode
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def argument(text: str) -> str:
    """Return one argument so that a shell would read it; with escapes as bash's $'...'."""
    if text.isprintable():
        return shlex.quote(text)
    inner = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{clean(inner)}'"


def words(spawn: Spawn) -> list[str]:
    """Return the words of the command line, and how many arguments are missing from the record."""
    shown = [argument(word) for word in spawn.argv]
    missing = (spawn.argc or 0) - len(shown)
    if missing > 0:
        shown.append(f"…({missing} more)")
    if not shown:
        return [f"(not in this ledger: spawn {clean(spawn.sid)})"]
    if spawn.program is not None and spawn.argv and spawn.program != spawn.argv[0]:
        shown.append(f"(runs {argument(spawn.program)})")
    return shown


def command(spawn: Spawn) -> str:
    """Return the command line as one text."""
    return " ".join(words(spawn))


@lru_cache(maxsize=4096)
def name_of(uid: int) -> str:
    """Return the name that this host has for a uid, or the number."""
    try:
        return clean(pwd.getpwuid(uid).pw_name)
    except (KeyError, OverflowError):
        return str(uid)


def numbers_only(uid: int) -> str:
    """Return the number."""
    return str(uid)


#: uid_t of all ones: no login user was set (proc(5), loginuid).
_UNSET = (1 << 32) - 1


def caller(spawn: Spawn, names: Names) -> str:
    """Return who asked: the real user, and the effective and login users where they differ."""
    ids = [spawn.ruid] + [uid for uid in (spawn.euid,) if uid != spawn.ruid]
    shown = "/".join("?" if uid is None else names(uid) for uid in ids)
    login = spawn.auid
    return shown if login is None or login in (_UNSET, *ids) else f"{names(login)}:{shown}"


def target(spawn: Spawn, names: Names) -> str:
    """Return as whom the program runs."""
    return "?" if spawn.target_uid is None else names(spawn.target_uid)


def who(spawn: Spawn, names: Names) -> str:
    """Return who ran it, and as whom if that is somebody else."""
    asked, runs = caller(spawn, names), target(spawn, names)
    return asked if spawn.want_uid is None else f"{asked}→{runs}"


def signal_name(number: int) -> str:
    """Return the name of a signal, or its number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def result(spawn: Spawn) -> str:
    """Return in few words what came of it."""
    if spawn.outcome == "unknown":
        return "may have run"
    if spawn.outcome != "exec":
        words = [spawn.outcome, spawn.stage or "", spawn.errno or ""]
        return clean(" ".join(word for word in words if word))
    if not spawn.ended:
        return "running?"
    if spawn.end_unknown is not None:
        return "end unknown"
    if spawn.signal is not None:
        extra = " (core)" * spawn.core + " (timeout)" * spawn.timeout_killed
        return signal_name(spawn.signal) + extra
    return f"exit {'?' if spawn.exit_code is None else spawn.exit_code}"


def reason(spawn: Spawn) -> str | None:
    """Return why it was refused, failed or forked; None where all went the fast way."""
    if spawn.outcome == "refused":
        return clean("refused: " + "; ".join(spawn.refused_by or spawn.why))
    if spawn.outcome not in ("exec", "unknown"):
        return clean(spawn.message) if spawn.message and not spawn.errno else None
    if spawn.end_unknown is not None:
        return clean(f"end unknown: {spawn.end_unknown}")
    return clean("forked: " + "; ".join(spawn.why)) if spawn.fell_back else None


def tags(given: Mapping[str, str] | None) -> str:
    """Return tags as KEY=VALUE, with blanks between them."""
    return " ".join(f"{argument(key)}={argument(value)}" for key, value in (given or {}).items())


_STEPS = ((1_000, "ns", 1), (1_000_000, "µs", 1_000), (1_000_000_000, "ms", 1_000_000))


def duration(ns: int | None) -> str:
    """Return nanoseconds in the unit that suits them, empty for None."""
    if ns is None:
        return ""
    for end, unit, size in _STEPS:
        if ns < end:
            return f"{_three(ns / size)} {unit}"
    seconds = ns / 1_000_000_000
    if seconds < 100:
        return f"{_three(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _three(value: float) -> str:
    """Return a number with three digits, or as many as it has in front of the point."""
    text = f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def moment(when_ns: int) -> str:
    """Return a time to the millisecond in the local time zone."""
    seconds, ns = divmod(when_ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))}.{ns // 1_000_000:03}"


def width(text: str) -> int:
    """Return how many columns of a terminal a clean text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, room: int) -> str:
    """Return a clean text, its end replaced by … where it takes more than ``room`` columns."""
    if width(text) <= room:
        return text
    kept, left = "", room - 1
    for char in text:
        left -= _columns(char)
        if left < 0:
            break
        kept += char
    return kept + "…" * (room > 0)


def filled(text: str, room: int) -> str:
    """Return a clean text with blanks up to ``room`` columns."""
    return text + " " * (room - width(text))
