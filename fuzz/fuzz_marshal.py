"""Fuzz target for the way of a request from Python to the plan that the launcher reads.

An input is a literal ``(argv, options)``, as in :mod:`fuzz_spec`. The spawn is a real one, but for a program
that stands in for the launcher and tells its plan. What must hold: the request is refused in one of the
documented ways; or the plan, taken apart by a reader that is not the core's, says what was asked, by a model
that knows nothing of the library: every string and number, each flag where its option is, and nothing that
was not asked.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from pathlib import Path
from typing import Any

import target
from hypothesis import strategies as st

with target.instrumented():
    import plan_corpus
    import plans

    from safespawn import _binding

_LIB = _binding.lib
REFUSED = (TypeError, ValueError, OSError, KeyError)

#: Options that a plan has as a number, by its member, and the flag that says that it was asked for.
NUMBERS = {
    "umask": ("umask", _LIB.SS_SET_UMASK),
    "nice": ("nice", _LIB.SS_SET_NICE),
    "process_group": ("group", _LIB.SS_SET_GROUP),
    "pdeathsig": ("pdeathsig", 0),
}
IDENTITY = ("user", "group", "extra_groups")
FLAGS = {
    "start_new_session": _LIB.SS_NEW_SESSION,
    "no_new_privs": _LIB.SS_NO_NEW_PRIVS,
    "subreaper": _LIB.SS_SUBREAPER,
}
#: How the parent itself is, or how the decision was made.
OWN_FLAGS = (
    plan_corpus.COMPANY | _LIB.SS_REQUIRE_ALONE | _LIB.SS_SHARE_MEMORY | _LIB.SS_LAUNCH | _LIB.SS_BOUND_LATER
)
#: What restore_signals makes default: SIGPIPE and SIGXFSZ, which Python ignores.
RESTORED = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1
TAKEN = {
    *NUMBERS, *FLAGS, "env", "executable", "cpu_affinity", "rlimits", "sigmask", "sigdefault",
    "restore_signals", "extra_groups", "user", "group", "caps", "seccomp", "fds", "deadline",
}  # fmt: skip


def _mask(signals: Any) -> int:
    return sum(1 << int(number) - 1 for number in set(signals))


def _strings(part: bytes) -> list[bytes]:
    assert not part or part.endswith(b"\0")
    return part.split(b"\0")[:-1]


def _numbers(part: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(part) // 4}i", part))


def _becomes(options: dict[str, Any]) -> bool:
    """Whether somebody else is asked for than who we are."""
    ours = {"user": os.getuid(), "group": os.getgid(), "extra_groups": set(os.getgroups())}
    return "user" in options and ours != {
        "user": options["user"], "group": options["group"], "extra_groups": set(options["extra_groups"])
    }  # fmt: skip


def _check_lists(plan: plans.Plan, argv: Any, options: dict[str, Any]) -> None:
    want, parts = plan.want, plan.parts
    assert _strings(parts["argv"]) == [os.fsencode(one) for one in argv]
    assert parts["path"] == b"/bin/true\0"
    pairs = {os.fsencode(name): os.fsencode(value) for name, value in options["env"].items()}
    env = [name + b"=" + value for name, value in pairs.items()]
    assert sorted(_strings(parts["env"])) == sorted(env)
    fds = sorted({0, 1, 2} | {int(number) for number in options.get("fds", ())})
    assert _numbers(parts["targets"]) == fds
    assert parts["places"] == b""
    groups = set(options["extra_groups"]) if _becomes(options) else set()
    assert _numbers(parts["groups"]) == sorted(groups)
    cpus = {8 * at + bit for at, byte in enumerate(parts["cpus"]) for bit in range(8) if byte >> bit & 1}
    assert cpus == set(options.get("cpu_affinity") or ())
    assert parts["filter"] == (options.get("seccomp") or b"")
    limits = [struct.unpack_from("<QQQ", parts["rlimits"], at) for at in range(0, len(parts["rlimits"]), 24)]
    asked = {
        name: pair if isinstance(pair, (tuple, list)) else (pair, pair)
        for name, pair in (options.get("rlimits") or {}).items()
    }
    assert {one[0]: (one[1], one[2]) for one in limits} == {
        int(name): tuple(value % 2**64 for value in pair) for name, pair in asked.items()
    }
    assert (want.argc, want.envc, want.nfds) == (len(argv), len(env), len(fds))


def _check_numbers(plan: plans.Plan, options: dict[str, Any]) -> None:
    want = plan.want
    flags = want.flags & ~OWN_FLAGS
    expected = 0
    for name, (member, flag) in NUMBERS.items():
        value = options.get(name)
        assert getattr(want, member) == (value or 0), name
        expected |= flag if value is not None else 0
    for name, flag in FLAGS.items():
        expected |= flag if options.get(name) else 0
    if options.get("seccomp"):  # who gains privileges could be turned by it against others: seccomp(2)
        expected |= FLAGS["no_new_privs"]
    if _becomes(options):
        expected |= _LIB.SS_SET_UID | _LIB.SS_SET_GID | _LIB.SS_SET_GROUPS
        assert (want.uid, want.gid) == (options["user"], options["group"])
    if options.get("sigmask") is not None:
        expected |= _LIB.SS_SET_SIGMASK
        assert want.sigmask == _mask(options["sigmask"])
        assert plan.mask == _mask(options["sigmask"])
    if options.get("caps") is not None:
        expected |= _LIB.SS_SET_CAPS
        assert want.caps == sum(1 << number for number in set(options["caps"]))
    restored = RESTORED if options.get("restore_signals", True) else 0
    assert want.sigdefault == _mask(options.get("sigdefault") or ()) | restored
    assert flags == expected, f"{flags:x}, not {expected:x}"
    for name in ("cwd", "terminal", "root", "cgroup", "landlock", "parent"):
        assert getattr(want, f"{name}_fd") == -1, name
    for name in plans.POINTERS:
        assert getattr(want, name) == _binding.ffi.NULL, name


def run(given: tuple[Any, dict[str, Any]]) -> str:
    """Ask for a spawn, and compare its plan with what was asked."""
    argv, options = given[0], {"env": {}, **given[1], "executable": "/bin/true"}
    try:
        with plan_corpus.stand_in():
            data = plan_corpus.capture(argv, options)
    except REFUSED:
        return "refused"
    plan = plans.Plan.read(data)
    assert plan.bytes() == data
    assert plan.parent_pid == os.getpid()
    _check_lists(plan, argv, options)
    _check_numbers(plan, options)
    return "plan"


def _is_simple(value: Any) -> bool:
    """Whether an option is written as the model reads it."""
    if isinstance(value, dict):
        return all(map(_is_simple, [*value, *value.values()]))
    if isinstance(value, (list, tuple)):
        return all(map(_is_simple, value))
    return value is None or isinstance(value, (bool, int, float, str, bytes))


#: Those that the model reads as numbers are no booleans or names: these are the affair of fuzz_spec.
def _is_input(given: tuple[Any, dict[str, Any]] | None) -> bool:
    if given is None or type(given[0]) is not list or set(given[1]) - TAKEN:
        return False
    argv, options = given
    identity = [options.get(name) for name in IDENTITY]
    numbers = [options.get(name) for name in (*NUMBERS, "user", "group")]
    lists = [options.get(name) for name in ("cpu_affinity", "sigmask", "sigdefault", "extra_groups", "caps")]
    return (
        (not set(IDENTITY) & set(options) or None not in identity)  # in part it is the user database's affair
        and all(isinstance(one, (str, bytes)) for one in argv)
        and all(_is_simple(value) for value in options.values())
        and all(value is None or type(value) is int for value in numbers)
        and all(
            value is None or (type(value) is list and all(type(one) is int for one in value))
            for value in lists
        )
        and all(type(options.get(name, {})) is dict for name in ("env", "rlimits", "fds"))
        and all(type(one) is int for one in options.get("fds", {}))
        and type(options.get("seccomp", b"")) is bytes
    )


def check(data: bytes) -> str:
    """Ask for the spawn of an input."""
    given = target.literal(data)
    return run(given) if given is not None and _is_input(given) else "no input"


# ------------------------------------------------------------------ with hypothesis

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.binary(max_size=6)
_SIGNALS = st.lists(st.integers(0, 65), max_size=3)
_IDS = st.integers(0, 3) | st.integers(0, 2**32)
_IDENTITY = st.fixed_dictionaries({"user": _IDS, "group": _IDS, "extra_groups": st.lists(_IDS, max_size=4)})
_CAPS = st.fixed_dictionaries({"caps": st.lists(st.integers(0, 42), max_size=4)})
_OPTIONS = st.fixed_dictionaries(
    {"env": st.dictionaries(_TEXTS, _TEXTS, max_size=4)},
    optional={
        **{name: st.booleans() for name in (*FLAGS, "restore_signals")},
        "umask": st.integers(-1, 0o1000),
        "nice": st.integers(-21, 20),
        "process_group": st.integers(-1, 9),
        "pdeathsig": st.integers(0, 65),
        "cpu_affinity": st.lists(st.integers(-1, 200), max_size=4),
        "rlimits": st.dictionaries(
            st.integers(0, 16), st.integers(-1, 2**64) | st.tuples(st.integers(0, 9), st.integers(0, 9))
        ),
        "sigmask": _SIGNALS,
        "sigdefault": _SIGNALS,
        "seccomp": st.integers(0, 9).map(lambda count: bytes(8 * count)),
        "fds": st.dictionaries(st.integers(0, 40), st.just(0), max_size=4),
        "deadline": st.integers(0, 99),
    },
)
_MORE = st.just({}) | (_IDENTITY | _CAPS if os.geteuid() == 0 else st.nothing())
INPUTS = st.tuples(
    st.lists(_TEXTS, max_size=4), st.builds(lambda one, more: {**one, **more}, _OPTIONS, _MORE)
)

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    target.main(check, INPUTS, run)
