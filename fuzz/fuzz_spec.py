"""Fuzz target for the validation of requests: any options, and only the documented answers.

``_checks.request`` takes whatever a caller hands over. It must return a request of nothing
but checked values, or raise TypeError, ValueError or OSError; never anything else. See target.py.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import target
from hypothesis import strategies as st

with target.instrumented():
    from safespawn import Secret, _checks, _privileges

if TYPE_CHECKING:
    from collections.abc import Mapping

    from safespawn._spec import IdMap, Request

EXPECTED = (TypeError, ValueError, OSError)
OPTIONS = sorted(_checks._OPTIONS)  # noqa: SLF001 - the table under test

NUMBERS = {
    "stdin": (-3, 2**31 - 1),
    "stdout": (-3, 2**31 - 1),
    "stderr": (-3, 2**31 - 1),
    "process_group": (0, 2**22),
    "controlling_terminal": (0, 2**31 - 1),
    "umask": (0, 0o777),
    "nice": (-20, 19),
    "pdeathsig": (1, 64),
    "sigmask": (0, 2**64 - 1),
    "sigdefault": (0, 2**64 - 1),
    "caps": (0, 2**64 - 1),
    "securebits": (0, 2**8 - 1),
}
FLAGS = ("start_new_session", "restore_signals", "subreaper", "no_new_privs", "pin")
CHOICES = {
    "env_policy": ("inherit", "scrub", "user"),
    "path_policy": ("any", "trusted"),
    "strategy": ("auto", "vfork", "clone", "launcher", "fork", "posix_spawn"),
    "on_unproven": ("fork", "refuse"),
}


class Opaque:
    """An object of no use to anybody."""

    def __repr__(self) -> str:
        """Return more text than fits a message."""
        return "opaque" * 100


class Pathlike:
    """An object that says it is a path, whatever its answer is."""

    def __init__(self, answer: object) -> None:
        """Remember the answer."""
        self.answer = answer

    def __fspath__(self) -> Any:
        """Give it."""
        return self.answer


class Filelike:
    """An object that says it has a descriptor, whatever its answer is."""

    def __init__(self, answer: object) -> None:
        """Remember the answer."""
        self.answer = answer

    def fileno(self) -> Any:
        """Give it."""
        return self.answer


def _is_string(value: object) -> bool:
    return type(value) is bytes and b"\0" not in value and len(value) < _checks.STRING_MAX


def _check_lists(made: Request) -> None:
    assert made.argv
    assert made.argv[0]
    assert all(map(_is_string, made.argv))
    for name, value in made.env or ():
        assert _is_string(name)
        assert _is_string(value)
        assert b"=" not in name
    targets = [target for _, target in made.fds]
    assert len(set(targets)) == len(targets)
    assert all(3 <= target < 2**31 and 0 <= source < 2**31 for source, target in made.fds)
    assert set(targets).isdisjoint(made.pass_fds)
    assert all(0 <= fd < 2**31 for fd in made.pass_fds)
    assert all(0 <= cpu <= 65535 for cpu in made.cpu_affinity or ())
    assert all(0 <= soft <= hard < 2**64 for _, soft, hard in made.rlimits)
    assert all(map(_is_string, made.env_allow))


def _check_scalars(made: Request) -> None:
    for name, (low, high) in NUMBERS.items():
        value = getattr(made, name)
        assert value is None or low <= value <= high
        assert not isinstance(value, bool)
    for name in FLAGS:
        assert type(getattr(made, name)) is bool
    for name, choices in CHOICES.items():
        assert getattr(made, name) in choices
    for account in (made.user, made.group, *(made.extra_groups or ())):
        assert account is None or (isinstance(account, str) and account) or 0 <= int(account) < 2**32 - 1
    assert made.executable is None or _is_string(made.executable)
    for place in (made.cwd, made.root, made.cgroup):
        assert place is None or _is_string(place) or (type(place) is int and 0 <= place < 2**31)
    assert made.deadline is None or 0 < made.deadline < float("inf")


def _check_map(lines: IdMap | None) -> None:
    if lines is None:
        return
    assert 1 <= len(lines) <= 340
    for side in (0, 1):
        ranges = sorted((line[side], line[side] + line[2]) for line in lines)
        assert all(0 <= first < end <= 2**32 - 1 for first, end in ranges)
        assert all(end <= ranges[i + 1][0] for i, (_, end) in enumerate(ranges[:-1]))


def _check_confinement(made: Request) -> None:
    assert made.securebits is None or not made.securebits & _privileges.SECUREBITS["keep_caps"]
    if made.scheduler is not None:
        policy, priority = made.scheduler
        assert (1 <= priority <= 99) if policy in (os.SCHED_FIFO, os.SCHED_RR) else priority == 0
    # In the kernel's order, each once.
    assert list(made.namespaces) == [name for name in _privileges.NAMESPACES if name in made.namespaces]
    assert "user" in made.namespaces or (made.map_users is None and made.map_groups is None)
    _check_map(made.map_users)
    _check_map(made.map_groups)
    if made.landlock is not None:
        assert 1 <= made.landlock.abi <= 5
        for paths in (made.landlock.read, made.landlock.write, made.landlock.execute):
            assert all(map(_is_string, paths))
    if made.seccomp is not None:
        assert type(made.seccomp) is bytes
        assert 0 < len(made.seccomp) <= 8 * 4096
        assert len(made.seccomp) % 8 == 0
    assert made.root is None or made.path_policy != "trusted"


def check(argv: object, options: Mapping[str, Any]) -> Request | None:
    """Make a request and look at it; None if it was refused in one of the expected ways."""
    try:
        made = _checks.request(argv, options)
    except EXPECTED:
        return None
    _check_lists(made)
    _check_scalars(made)
    _check_confinement(made)
    return made


# ------------------------------------------------------------------ with hypothesis

NUMBERS_ANY = st.one_of(
    st.integers(-4, 70),
    st.integers(),
    st.sampled_from([2**22, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**63, 2**64 - 1, 2**64, 10**400]),
)
TEXTS = st.one_of(
    st.sampled_from(["", "a", "/bin/true", "A=1", "scrub", "trusted", "vfork", "sha256:" + 64 * "0"]),
    st.text(max_size=12),
    st.characters(categories=["Cs"]),
    st.binary(max_size=12),
    st.sampled_from(["x" * (_checks.STRING_MAX - 1), b"x" * _checks.STRING_MAX, "a\0b", b"\0"]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS_ANY, st.floats(), TEXTS)
KEYS = st.one_of(st.booleans(), NUMBERS_ANY, TEXTS, st.tuples(NUMBERS_ANY))
OBJECTS = st.one_of(
    st.builds(Opaque),
    SCALARS.map(Pathlike),
    SCALARS.map(Filelike),
    st.builds(io.StringIO),
    st.just(Path("/bin/true")),
    st.just(Secret("hidden")),
    st.just(print),
    st.complex_numbers(),
    st.just(Path),
)
ANYTHING = st.recursive(
    SCALARS | OBJECTS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(iter),
        st.dictionaries(KEYS, inner, max_size=4),
        st.frozensets(KEYS, max_size=4),
    ),
    max_leaves=8,
)
IDS = st.sampled_from([0, 1, 9, 1000, 2**32 - 2, 2**32 - 1]) | st.integers(-1, 20)
LINES = st.lists(st.tuples(IDS, IDS, IDS) | st.lists(IDS, max_size=4).map(tuple), max_size=4)
MAPS = st.none() | st.dictionaries(st.sampled_from(["users", "groups", "uids"]), LINES, max_size=2)
NAMESPACES = st.sampled_from([*_privileges.NAMESPACES, "User", "all", ""])
DIRECTORIES = TEXTS | st.integers(-1, 9) | st.just(Path("/"))
#: Right often enough that the checks of one option against another are reached.
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    **{name: st.booleans() for name in FLAGS},
    **{name: st.sampled_from(choices) for name, choices in CHOICES.items()},
    **{name: st.integers(low, high) | st.none() for name, (low, high) in NUMBERS.items()},
    "env": st.dictionaries(TEXTS, TEXTS, max_size=3),
    "fds": st.dictionaries(st.integers(0, 9), st.integers(-1, 9), max_size=4),
    "pass_fds": st.lists(st.integers(0, 9), max_size=4),
    "cpu_affinity": st.sets(st.integers(-1, 65536), max_size=4),
    "rlimits": st.dictionaries(
        st.integers(-1, 17), st.integers(-2, 2**64) | st.lists(st.integers(-2, 2**64), max_size=3), max_size=3
    ),
    "sigmask": st.lists(st.integers(0, 65), max_size=4),
    "sigdefault": st.lists(st.integers(0, 65), max_size=4),
    "root": DIRECTORIES,
    "cgroup": DIRECTORIES,
    "scheduler": st.integers(-1, 7) | st.tuples(st.integers(-1, 7), st.none() | st.integers(-1, 100)),
    "caps": st.lists(
        st.sampled_from([*_privileges.CAPABILITIES, "CAP_KILL", "all", "cap_", ""]) | st.integers(-1, 64),
        max_size=4,
    ),
    "securebits": st.lists(st.sampled_from([*_privileges.SECUREBITS, "NoRoot", ""]), max_size=3),
    "namespaces": st.lists(NAMESPACES, max_size=3)
    | st.dictionaries(NAMESPACES, st.none() | MAPS, max_size=3)
    | st.fixed_dictionaries({"user": MAPS}),
    "landlock": st.dictionaries(
        st.sampled_from(["abi", "read", "write", "execute", "all"]),
        st.integers(-1, 9) | st.lists(TEXTS | st.just(Path("/usr")), max_size=3),
        max_size=4,
    ),
    "seccomp": st.binary(max_size=32) | st.integers(0, 4097).map(lambda count: bytes(8 * count)),
    "env_allow": st.lists(TEXTS, max_size=3),
    "extra_groups": st.lists(NUMBERS_ANY | TEXTS, max_size=3),
    "deadline": st.floats(allow_nan=True) | NUMBERS_ANY,
    "audit_tags": st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.just("x" * 1025), max_size=3),
}
ARGV = st.lists(TEXTS | st.just(Path("/bin/true")), max_size=4) | ANYTHING
GIVEN = st.lists(st.sampled_from(OPTIONS), unique=True, max_size=6).flatmap(
    lambda names: st.fixed_dictionaries({name: LIKELY.get(name, ANYTHING) | ANYTHING for name in names})
)
UNKNOWN = st.dictionaries(st.text(max_size=8), ANYTHING, max_size=2)


INPUTS = st.builds(lambda argv, options, more: (argv, {**more, **options}), ARGV, GIVEN, UNKNOWN)


def run(given: tuple[Any, Mapping[str, Any]]) -> str:
    """Make the request of an input; returns what became of it."""
    return "refused" if check(*given) is None else "request"


def one(data: bytes) -> str:
    """Make the request that is written as a literal; see :func:`target.literal`."""
    given = target.literal(data)
    return "no input" if given is None else run(given)


if __name__ == "__main__":
    target.main(one, INPUTS, run)
