"""What the environment of a child is made of, by policy: env-scrubbed (T-16). Pure."""

from __future__ import annotations

from functools import lru_cache

from ._spec import EnvPolicy

Pairs = tuple[tuple[bytes, bytes], ...]

#: What a program may need, and no loader or libc takes code from. Interpreters find files of a
#: user by HOME, and everybody finds programs by PATH: whose they are is for the caller to say.
#: An allow-list, because block-lists go out of date: GLIBC_TUNABLES, LD_AUDIT,
#: JAVA_TOOL_OPTIONS and the like each were missed by somebody's.
KEPT = frozenset((b"HOME", b"LANG", b"LOGNAME", b"PATH", b"SHELL", b"TERM", b"TZ", b"USER"))
LOCALE = b"LC_"
#: Values that libc turns into file names or formats; sudo's env_check has the same rule.
CHECKED = frozenset((b"LANG", b"TERM", b"TZ"))
DEFAULT_PATH = b"/usr/bin:/bin"


def _survives(name: bytes, value: bytes, allowed: frozenset[bytes]) -> bool:
    if name in allowed:
        return True
    locale = name.startswith(LOCALE)
    if not locale and name not in KEPT:
        return False
    return not ((locale or name in CHECKED) and (b"/" in value or b"%" in value))


def _absolute(path: bytes) -> bytes:
    """Leave out what depends on the working directory: relative and empty elements."""
    return b":".join(part for part in path.split(b":") if part.startswith(b"/"))


@lru_cache(maxsize=2)
def split(text: bytes) -> Pairs:
    """Return names and values of strings laid end to end. Programs are often started with the same ones."""
    pairs = (one.partition(b"=") for one in text.split(b"\0")[:-1])
    return tuple((name, value) for name, _, value in pairs)


def apply(
    pairs: Pairs, policy: EnvPolicy, allowed: frozenset[bytes], home: Pairs
) -> tuple[Pairs, tuple[str, ...]]:
    """Return the environment and the names that were taken out of it.

    ``home`` is HOME, USER, LOGNAME and SHELL of the target user, used by ``user`` only.
    """
    if policy == "inherit":
        return pairs, ()
    kept = {name: value for name, value in pairs if _survives(name, value, allowed)}
    removed = tuple(name.decode("utf-8", "backslashreplace") for name, _ in pairs if name not in kept)
    if b"PATH" not in allowed:
        kept[b"PATH"] = _absolute(kept.get(b"PATH", b"")) or DEFAULT_PATH
    kept.setdefault(b"PATH", DEFAULT_PATH)
    if policy == "user":
        kept.update(home)
    return tuple(kept.items()), removed
