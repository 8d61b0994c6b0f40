"""Every malformed request is refused before anything is started, and the value is named."""

from __future__ import annotations

import errno
import io
import os
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import safespawn
from safespawn import DEVNULL, PIPE, STDOUT, _checks, audit

pytestmark = pytest.mark.threat("T-17")

#: MAX_ARG_STRLEN of the kernel, its NUL included.
STRING_MAX = 131_072


def traces() -> tuple[Any, ...]:
    """Return what changes when a child of ours is reaped, whatever became of it."""
    # Not the times, which are first: the kernel scales those anew each time it is asked.
    return tuple(resource.getrusage(resource.RUSAGE_CHILDREN))[2:]


@pytest.fixture(autouse=True)
def nothing_starts(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """Without the mark of its opposite a test starts no child and writes no record."""
    ledger = tmp_path / "ledger"
    with audit.open(ledger):
        written, before = ledger.read_bytes(), traces()
        yield
        if "starts" not in request.fixturenames:
            assert ledger.read_bytes() == written
            assert traces() == before


@pytest.fixture
def starts() -> None:
    """Mark a test that does start something."""


@pytest.fixture
def touch(tmp_path: Path) -> Iterator[list[str]]:
    """Return a command that leaves a trace, and look for none afterwards."""
    marker = tmp_path / "ran"
    yield ["/usr/bin/touch", str(marker)]
    assert not marker.exists()


# ------------------------------------------------------------- the witnesses


@pytest.mark.parametrize("strategy", ["vfork", "fork"])
def test_a_child_that_fails_would_be_seen(strategy: str, tmp_path: Path, starts: None) -> None:
    """The witness of this file sees even a child that runs no program: otherwise it proves nothing."""
    before, ledger = traces(), (tmp_path / "ledger").read_bytes()

    with pytest.raises(OSError):
        safespawn.spawn(["/bin/true"], strategy=strategy, cpu_affinity=[65535])  # type: ignore[arg-type]

    assert traces() != before
    assert (tmp_path / "ledger").read_bytes() != ledger


# ------------------------------------------------------------------------ argv


@pytest.mark.parametrize(
    ("argv", "kind", "named"),
    [
        ([], ValueError, r"argv is empty: \[\]"),
        ((), ValueError, r"argv is empty: \(\)"),
        ("/bin/true", TypeError, "argv.*'/bin/true'"),
        (b"/bin/true", TypeError, "argv.*b'/bin/true'"),
        (Path("/bin/true"), TypeError, "argv.*PosixPath"),
        ({"/bin/true": 1}, TypeError, "argv.*/bin/true.*dict"),
        (None, TypeError, "argv.*None"),
        (7, TypeError, "argv.*7"),
        ([""], ValueError, r"argv\[0\] is empty: ''"),
        ([b""], ValueError, r"argv\[0\] is empty: b''"),
        ([None], TypeError, r"argv\[0\].*None"),
        (["/bin/true", 5], TypeError, r"argv\[1\].*5.*int"),
        (["/bin/true", "a", ["b"]], TypeError, r"argv\[2\].*\['b'\].*list"),
        (["/bin/true", bytearray(b"x")], TypeError, r"argv\[1\].*bytearray"),
        (["/bin/tr\0ue"], ValueError, r"argv\[0\].*NUL.*tr\\x00ue"),
        (["/bin/true", "a", b"b\0"], ValueError, r"argv\[2\].*NUL.*b\\x00"),
        (["/bin/true", "\0"], ValueError, r"argv\[1\].*NUL"),
        (["/bin/true", "\ud800"], ValueError, "ud800"),
        (["/bin/true", "x" * STRING_MAX], OSError, r"argv\[1\] has 131072 bytes.*131071.*xxx"),
        (["/bin/true", "\u00e9" * 65_536], OSError, r"argv\[1\] has 131072 bytes"),
        (["/" + "x" * STRING_MAX], OSError, r"argv\[0\] has 131073 bytes"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_argv_that_is_refused(argv: Any, kind: type[Exception], named: str) -> None:
    """argv must be a sequence of strings without NUL, not empty, each no longer than execve takes."""
    with pytest.raises(kind, match=named) as caught:
        safespawn.spawn(argv)

    assert len(str(caught.value)) < 400
    if isinstance(caught.value, OSError):
        assert caught.value.errno == errno.E2BIG


def test_generator_that_raises_is_heard(touch: list[str]) -> None:
    """What an iterable of arguments raises reaches the caller."""

    def words() -> Iterator[str]:
        yield from touch
        raise ZeroDivisionError("of the caller")

    with pytest.raises(ZeroDivisionError, match="of the caller"):
        safespawn.spawn(words())


@pytest.mark.parametrize("strategy", ["vfork", "fork"])
def test_longest_string_that_execve_takes(strategy: Any, starts: None) -> None:
    """One byte less than is refused is accepted by the kernel, in argv and in the environment."""
    # With one page of 4 KiB; where pages are larger the kernel takes more.
    longest = "x" * (STRING_MAX - 1)

    done = safespawn.run(
        ["/bin/sh", "-c", 'echo ${#1} ${#v}', "zero", longest],
        env={"v": longest[2:]},
        stdout=PIPE,
        check=True,
        strategy=strategy,
    )

    assert done.stdout == b"131071 131069\n"


def test_argv_larger_than_execve_takes(touch: list[str]) -> None:
    """Arguments that are too many together are E2BIG with their number and size."""
    many = ["x" * 100_000] * 200

    with pytest.raises(OSError, match="202 arguments.*200.*execve takes") as caught:
        safespawn.spawn([*touch, *many])

    assert caught.value.errno == errno.E2BIG


def test_environment_larger_than_execve_takes(touch: list[str]) -> None:
    """So are variables that are too many together."""
    with pytest.raises(OSError, match="2 arguments and 200 variables.*execve takes") as caught:
        safespawn.spawn(touch, env={f"v{i}": "x" * 100_000 for i in range(200)})

    assert caught.value.errno == errno.E2BIG


# --------------------------------------------------------------------- options

#: For every option what it cannot be: value, exception, and what the message must name.
#: ``object()`` and None are tried on all of them besides.
WRONG: dict[str, list[tuple[Any, type[Exception], str]]] = {
    "executable": [
        ("", ValueError, "executable is empty: ''"),
        (7, TypeError, "executable.*7.*int"),
        ("a\0b", ValueError, r"executable.*NUL.*a\\x00b"),
        (["/bin/true"], TypeError, "executable.*/bin/true.*list"),
        ("x" * STRING_MAX, OSError, "executable has 131072 bytes"),
    ],
    "env": [
        ([("A", "b")], TypeError, "env.*A.*list"),
        ("A=b", TypeError, "env.*A=b.*str"),
        ({"A=B": "x"}, ValueError, "env name has '=' in it: 'A=B'"),
        ({"=": "x"}, ValueError, "env name has '=' in it: '='"),
        ({"A\0B": "x"}, ValueError, r"env name.*NUL.*A\\x00B"),
        ({"A": "x\0"}, ValueError, r"env\['A'\].*NUL.*x\\x00"),
        ({"A": None}, TypeError, r"env\['A'\].*None"),
        ({"A": 1}, TypeError, r"env\['A'\].*1.*int"),
        ({1: "A"}, TypeError, "env name.*1.*int"),
        ({"A": "\ud800"}, ValueError, "ud800"),
        ({"A": "x" * STRING_MAX}, OSError, r"env\['A'\] has 131072 bytes"),
        ({"A": "x" * (STRING_MAX - 2)}, OSError, r"env\[b'A'\] has 131070 bytes"),
        ({"A" * STRING_MAX: "x"}, OSError, "env name has 131072 bytes"),
    ],
    "cwd": [
        ("", ValueError, "cwd is empty: ''"),
        ("a\0b", ValueError, r"cwd.*NUL.*a\\x00b"),
        (-1, ValueError, "cwd.*-1"),
        (2**31, ValueError, f"cwd.*{2**31}"),
        (True, TypeError, "cwd.*True.*bool"),
        (1.5, TypeError, "cwd.*1.5.*float"),
        ("x" * STRING_MAX, OSError, "cwd has 131072 bytes"),
        (9_999, OSError, "cwd: descriptor 9999"),
    ],
    "fds": [
        ([(3, 0)], TypeError, r"fds.*\[\(3, 0\)\].*list"),
        ({2: 0}, ValueError, "fds target must be from 3.*not 2"),
        ({-1: 0}, ValueError, "fds target.*-1"),
        ({2**31: 0}, ValueError, f"fds target.*{2**31}"),
        ({2**31 - 1: 0}, ValueError, f"fds: target {2**31 - 1}"),
        ({3: -1}, ValueError, r"fds\[3\].*-1"),
        ({3: PIPE}, ValueError, r"fds\[3\].*-1"),
        ({3: DEVNULL}, ValueError, r"fds\[3\].*-3"),
        ({"3": 0}, TypeError, "fds target.*'3'.*str"),
        ({3: "0"}, TypeError, r"fds\[3\].*'0'.*str"),
        ({3: None}, TypeError, r"fds\[3\].*None"),
        ({3: True}, TypeError, r"fds\[3\].*True.*bool"),
        ({3: 9_999}, OSError, r"fds\[3\]: descriptor 9999"),
    ],
    "pass_fds": [
        (3, TypeError, "pass_fds.*3.*int"),
        ("345", TypeError, "pass_fds.*345.*str"),
        ({3: 4}, TypeError, "pass_fds.*dict"),
        ([-1], ValueError, "pass_fds.*-1"),
        ([2**31], ValueError, f"pass_fds.*{2**31}"),
        (["3"], TypeError, "pass_fds.*'3'.*str"),
        ([True], TypeError, "pass_fds.*True.*bool"),
        ([0, 9_999], OSError, "pass_fds: descriptor 9999"),
    ],
    "cpu_affinity": [
        (0, TypeError, "cpu_affinity.*0.*int"),
        ([], ValueError, r"cpu_affinity is empty: \[\]"),
        ([-1], ValueError, "cpu_affinity.*-1"),
        ([65_536], ValueError, "cpu_affinity.*65536"),
        (["0"], TypeError, "cpu_affinity.*'0'.*str"),
        ("0", TypeError, "cpu_affinity.*'0'.*str"),
    ],
    "rlimits": [
        ([(7, 1)], TypeError, "rlimits.*list"),
        ({-1: 1}, ValueError, "rlimits resource.*-1"),
        ({16: 1}, ValueError, "rlimits resource.*16"),
        ({"7": 1}, TypeError, "rlimits resource.*'7'.*str"),
        ({7: "1"}, TypeError, r"rlimits\[7\].*'1'.*str"),
        ({7: None}, TypeError, r"rlimits\[7\].*None"),
        ({7: True}, TypeError, r"rlimits\[7\].*True.*bool"),
        ({7: 1.5}, TypeError, r"rlimits\[7\].*1.5.*float"),
        ({7: (1,)}, ValueError, r"rlimits\[7\].*\(1,\)"),
        ({7: (1, 2, 3)}, ValueError, r"rlimits\[7\].*\(1, 2, 3\)"),
        ({7: (1, None)}, TypeError, r"rlimits\[7\].*None"),
        ({7: (2, 1)}, ValueError, r"rlimits\[7\]: soft limit above hard limit: \(2, 1\)"),
        ({7: (resource.RLIM_INFINITY, 1)}, ValueError, r"rlimits\[7\]: soft limit above hard.*\(-1, 1\)"),
        ({7: -2}, ValueError, r"rlimits\[7\].*-2"),
        ({7: 2**64}, ValueError, rf"rlimits\[7\].*{2**64}"),
    ],
    "sigmask": [
        (15, TypeError, "sigmask.*15.*int"),
        ([0], ValueError, "sigmask.*0"),
        ([65], ValueError, "sigmask.*65"),
        (["SIGTERM"], TypeError, "sigmask.*SIGTERM.*str"),
        ("SIGTERM", TypeError, "sigmask.*SIGTERM.*str"),
    ],
    "sigdefault": [
        (15, TypeError, "sigdefault.*15.*int"),
        ([0], ValueError, "sigdefault.*0"),
        ([65], ValueError, "sigdefault.*65"),
        (["SIGTERM"], TypeError, "sigdefault.*SIGTERM.*str"),
        ([1, signal.SIGKILL], ValueError, "sigdefault: SIGKILL cannot be changed"),
        ([signal.SIGSTOP], ValueError, "sigdefault: SIGSTOP cannot be changed"),
    ],
    "user": [
        ("", ValueError, "user.*''"),
        ("no\0body", ValueError, r"user.*no\\x00body"),
        (b"nobody", TypeError, "user.*b'nobody'.*bytes"),
        (-1, ValueError, "user.*-1"),
        (2**32 - 1, ValueError, f"user.*{2**32 - 1}"),
        (True, TypeError, "user.*True.*bool"),
        (0.0, TypeError, "user.*0.0.*float"),
        ("no-such-user", KeyError, "no-such-user"),
        (54_321, ValueError, "user=54321"),
    ],
    "group": [
        ("", ValueError, "group.*''"),
        ("no\0group", ValueError, r"group.*no\\x00group"),
        (-1, ValueError, "group.*-1"),
        (2**32 - 1, ValueError, f"group.*{2**32 - 1}"),
        ("no-such-group", KeyError, "no-such-group"),
    ],
    "extra_groups": [
        ("games", TypeError, "extra_groups.*games.*str"),
        (60, TypeError, "extra_groups.*60.*int"),
        ([-1], ValueError, "extra_groups.*-1"),
        ([2**32 - 1], ValueError, f"extra_groups.*{2**32 - 1}"),
        ([""], ValueError, "extra_groups.*''"),
        ([None], TypeError, "extra_groups.*None"),
        (["games", "no-such-group"], KeyError, "no-such-group"),
    ],
    "env_policy": [
        ("scrubbed", ValueError, "env_policy.*inherit, scrub, user.*'scrubbed'"),
        (["scrub"], ValueError, r"env_policy.*\['scrub'\]"),
    ],
    "env_allow": [
        ("HOME", TypeError, "env_allow.*'HOME'.*str"),
        ([1], TypeError, "env_allow.*1.*int"),
        ([""], ValueError, "env_allow is empty: ''"),
        (["A\0"], ValueError, r"env_allow.*NUL.*A\\x00"),
    ],
    "digest": [
        ("", ValueError, "digest.*''"),
        ("0" * 64, ValueError, "digest.*000"),
        ("sha256:" + "0" * 63, ValueError, "digest.*sha256:000"),
        ("sha256:" + "0" * 65, ValueError, "digest.*sha256:000"),
        ("sha256:" + "A" * 64, ValueError, "digest.*sha256:AAA"),
        ("sha256:" + "0" * 64 + "\n", ValueError, "digest.*sha256:000"),
        ("sha1:" + "0" * 40, ValueError, "digest.*sha1:000"),
        (b"sha256:" + b"0" * 64, ValueError, "digest.*b'sha256"),
    ],
    "path_policy": [("safe", ValueError, "path_policy.*any, trusted.*'safe'")],
    "deadline": [
        (0, ValueError, "deadline.*0"),
        (-1, ValueError, "deadline.*-1"),
        (float("nan"), ValueError, "deadline.*nan"),
        (float("inf"), ValueError, "deadline.*inf"),
        (1e300, ValueError, "deadline.*1e\\+300"),
        (10**400, ValueError, "deadline.*1000"),
        ("1", TypeError, "deadline.*'1'.*str"),
        (True, TypeError, "deadline.*True.*bool"),
    ],
    "strategy": [
        ("spawn", ValueError, "strategy.*auto, vfork, clone, posix_spawn, launcher, fork, helper, pool.*'spawn'"),
        ("", ValueError, "strategy.*''"),
    ],
    "helper": [
        ("yes", TypeError, "helper.*'yes'"),
        (True, TypeError, "helper.*True"),
        (0, TypeError, "helper.*0"),
    ],
    "on_unproven": [("run", ValueError, "on_unproven.*fork, refuse.*'run'")],
    "audit_tags": [
        ([("a", "b")], TypeError, "audit_tags.*list"),
        ({"a": 1}, TypeError, "audit_tags.*'a' to 1"),
        ({1: "a"}, TypeError, "audit_tags.*1 to 'a'"),
        ({b"a": "b"}, TypeError, "audit_tags.*b'a' to 'b'"),
        ({"a": "x" * 1024}, ValueError, "audit_tags.*1025.*'a'"),
    ],
    "redact": [
        ("--pin=.*", TypeError, "redact.*--pin.*str"),
        (["a", 7], TypeError, r"redact\[1\].*7.*int"),
        ([b"a"], TypeError, r"redact\[0\].*b'a'.*bytes"),
        (["a", "("], ValueError, r"redact\[1\].*'\('.*unterminated"),
        (["\udcff"], ValueError, r"redact\[0\].*udcff.*surrogates"),
    ],
}
WRONG |= {
    "scheduler": [
        ("fifo", TypeError, "scheduler.*'fifo'.*str"),
        (True, TypeError, "scheduler.*True.*bool"),
        (1.0, TypeError, "scheduler.*1.0.*float"),
        ({1: 5}, TypeError, "scheduler.*dict"),
        (-1, ValueError, "scheduler.*-1"),
        (99, ValueError, "scheduler: no such policy: 99"),
        (os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, ValueError, "scheduler: no such policy: 1073741825"),
        (os.SCHED_FIFO, ValueError, "scheduler=1 needs a priority from 1 to 99"),
        ((os.SCHED_RR, None), ValueError, r"scheduler=\(2, None\) needs a priority"),
        ((os.SCHED_FIFO, 0), ValueError, "scheduler priority must be from 1 to 99, not 0"),
        ((os.SCHED_RR, 100), ValueError, "scheduler priority must be from 1 to 99, not 100"),
        ((os.SCHED_FIFO, "5"), TypeError, "scheduler priority.*'5'.*str"),
        ((os.SCHED_FIFO, True), TypeError, "scheduler priority.*True.*bool"),
        ((os.SCHED_OTHER, 1), ValueError, "scheduler priority must be from 0 to 0, not 1"),
        ((os.SCHED_OTHER, ""), TypeError, "scheduler priority.*''.*str"),
        ((), ValueError, r"scheduler must be a policy or \(policy, priority\), not \(\)"),
        ((1, 2, 3), ValueError, r"scheduler must be a policy.*\(1, 2, 3\)"),
    ],
    "caps": [
        ("kill", TypeError, "caps.*'kill'.*str"),
        (5, TypeError, "caps.*5.*int"),
        ({"kill": True}, TypeError, "caps.*dict"),
        (["cap_of_nothing"], ValueError, "caps: unknown: 'cap_of_nothing'"),
        ([""], ValueError, "caps: unknown: ''"),
        (["+kill"], ValueError, r"caps: unknown: '\+kill'"),
        (["all"], ValueError, "caps: unknown: 'all'"),
        ([b"kill"], TypeError, "caps.*b'kill'.*bytes"),
        ([-1], ValueError, "caps must be from 0 to 63, not -1"),
        ([64], ValueError, "caps must be from 0 to 63, not 64"),
        ([True], TypeError, "caps.*True.*bool"),
        ([None], TypeError, "caps.*None"),
    ],
    "securebits": [
        ("noroot", TypeError, "securebits.*'noroot'.*str"),
        (1, TypeError, "securebits.*1.*int"),
        ([1], TypeError, r"securebits must be names, not 1 \(int\)"),
        (["root"], ValueError, "securebits: unknown: 'root'; known are noroot, noroot_locked"),
        (["+noroot"], ValueError, r"securebits: unknown: '\+noroot'"),
        (["noroot", "keep_caps"], ValueError, "securebits: 'keep_caps' is cleared by execve"),
    ],
    "landlock": [
        (["/etc"], TypeError, "landlock.*/etc.*list"),
        ("/etc", TypeError, "landlock.*'/etc'.*str"),
        ({"abi": 0}, ValueError, r"landlock\['abi'\].*not 0"),
        ({"abi": 99}, ValueError, r"landlock\['abi'\].*not 99"),
        ({"abi": "3"}, TypeError, r"landlock\['abi'\].*'3'.*str"),
        ({"abi": None}, TypeError, r"landlock\['abi'\].*None"),
        ({"read": "/etc"}, TypeError, r"landlock\['read'\].*'/etc'.*str"),
        ({"write": [""]}, ValueError, r"landlock\['write'\] is empty: ''"),
        ({"execute": ["a\0b"]}, ValueError, r"landlock\['execute'\].*NUL.*a\\x00b"),
        ({"read": [3]}, TypeError, r"landlock\['read'\].*3.*int"),
        ({"read": ["x" * STRING_MAX]}, OSError, r"landlock\['read'\] has 131072 bytes"),
        ({"remove": ["/etc"]}, ValueError, "landlock has 'abi', 'read', 'write' and 'execute', not 'remove'"),
        ({1: 2}, ValueError, "landlock has.*not 1"),
    ],
    "seccomp": [
        ("12345678", TypeError, "seccomp must be bytes, not '12345678'.*str"),
        ([6, 0, 0, 0], TypeError, r"seccomp.*\[6, 0, 0, 0\].*list"),
        (b"", ValueError, "seccomp.*not 0 bytes: b''"),
        (b"1234567", ValueError, "seccomp must be 1 to 4096 instructions of 8 bytes, not 7 bytes: b'1234567'"),
        (bytes(8 * 4097), ValueError, "seccomp.*not 32776 bytes"),
    ],
}


def _map_cases(kind: str) -> list[tuple[Any, type[Exception], str]]:
    where = rf"namespaces\['user'\]\['{kind}'\]"
    lines: list[tuple[Any, type[Exception], str]] = [
        ("0:0:1", TypeError, f"{where} must be a sequence, not '0:0:1'.*str"),
        ([], ValueError, f"{where} must have 1 to 340 lines, not 0"),
        ([(i, i, 1) for i in range(341)], ValueError, f"{where} must have 1 to 340 lines, not 341"),
        ([(0, 0)], ValueError, rf"{where} must be \(inside, outside, count\) triples, not \(0, 0\)"),
        ([[0, 0, 1]], ValueError, rf"{where}.*triples, not \[0, 0, 1\]"),
        ([0, 0, 1], ValueError, f"{where}.*triples, not 0"),
        ([("0", 0, 1)], TypeError, f"{where}.*'0'.*str"),
        ([(0, True, 1)], TypeError, f"{where}.*True.*bool"),
        ([(-1, 0, 1)], ValueError, f"{where}.*-1"),
        ([(0, 2**32 - 1, 1)], ValueError, f"{where}.*{2**32 - 1}"),
        ([(0, 0, 0)], ValueError, f"{where} must be from 1.*not 0"),
        ([(0, 5, 2**32 - 5)], ValueError, f"{where}.*not {2**32 - 5}"),
        ([(0, 100, 10), (9, 200, 1)], ValueError, rf"{where} names an id twice: \[\(0, 100, 10\), \(9, 200, 1\)\]"),
        ([(0, 100, 10), (10, 109, 1)], ValueError, f"{where} names an id twice"),
    ]
    return [({"user": {kind: value}}, exception, named) for value, exception, named in lines]


WRONG["namespaces"] = [
    ("mount", TypeError, "namespaces.*'mount'.*str"),
    (5, TypeError, "namespaces.*5.*int"),
    ([], ValueError, r"namespaces is empty: \[\]"),
    ({}, ValueError, r"namespaces is empty: {}"),
    (["all"], ValueError, "namespaces: unknown: 'all'; known are time, mount"),
    (["mnt"], ValueError, "namespaces: unknown: 'mnt'"),
    ([0x20000], TypeError, "namespaces must be names, not 131072"),
    ([["user"]], TypeError, r"namespaces must be names, not \['user'\] \(list\)"),
    ({"net": {}}, ValueError, r"namespaces\['net'\] takes None only, not {}"),
    ({"pid": True}, ValueError, r"namespaces\['pid'\] takes None only, not True"),
    ({"user": [(0, 0, 1)]}, TypeError, r"namespaces\['user'\] must be a mapping.*list"),
    ({"user": {"uids": [(0, 0, 1)]}}, ValueError, r"namespaces\['user'\] has 'users' and 'groups', not 'uids'"),
    *_map_cases("users"),
    *_map_cases("groups"),
]
WRONG |= {
    name: [
        ("", ValueError, f"{name} is empty: ''"),
        ("a\0b", ValueError, rf"{name}.*NUL.*a\\x00b"),
        (-1, ValueError, f"{name}.*-1"),
        (2**31, ValueError, f"{name}.*{2**31}"),
        (True, TypeError, f"{name}.*True.*bool"),
        (["/"], TypeError, f"{name}.*list"),
        ("x" * STRING_MAX, OSError, f"{name} has 131072 bytes"),
        (9_999, OSError, f"{name}: descriptor 9999"),
    ]
    for name in ("root", "cgroup")
}
WRONG |= {
    name: [
        ("1", TypeError, f"{name}.*'1'.*str"),
        (1.0, TypeError, f"{name}.*1.0.*float"),
        (True, TypeError, f"{name}.*True.*bool"),
        (low - 1, ValueError, f"{name} must be from {low} to {high}, not {low - 1}"),
        (high + 1, ValueError, f"{name} must be from {low} to {high}, not {high + 1}"),
        (10**30, ValueError, f"{name}.*{10**30}"),
    ]
    for name, low, high in (
        ("process_group", 0, 2**22),
        ("controlling_terminal", 0, 2**31 - 1),
        ("umask", 0, 0o777),
        ("nice", -20, 19),
        ("pdeathsig", 1, signal.NSIG - 1),
    )
}
WRONG |= {
    name: [(value, TypeError, f"{name}.*{value!r}") for value in (0, 1, "yes", "")]
    for name in ("start_new_session", "restore_signals", "subreaper", "no_new_privs", "pin")
}
WRONG |= {
    name: [
        ("/dev/null", TypeError, f"{name}.*/dev/null.*str"),
        (True, TypeError, f"{name}.*True.*bool"),
        (1.0, TypeError, f"{name}.*1.0.*float"),
        (-4, ValueError, f"{name}.*-4"),
        (2**31, ValueError, f"{name}.*{2**31}"),
        (9_999, OSError, f"{name}: descriptor 9999"),
        (b"x", TypeError, f"{name}.*b'x'.*bytes"),
    ]
    for name in ("stdin", "stdout", "stderr")
}
for only_stderr in ("stdin", "stdout"):
    WRONG[only_stderr].append((STDOUT, ValueError, f"{only_stderr}.*-2"))

CASES = [(name, *case) for name, cases in WRONG.items() for case in cases]

#: Those where None is no way to say "not given".
NEVER_NONE = {
    "pass_fds",
    "start_new_session",
    "restore_signals",
    "subreaper",
    "no_new_privs",
    "env_policy",
    "env_allow",
    "pin",
    "path_policy",
    "strategy",
    "on_unproven",
}


def test_every_option_is_tried() -> None:
    """No option of the library is missing from the tables of this file, and none is made up."""
    assert set(WRONG) == set(_checks._OPTIONS)
    assert NEVER_NONE == {name for name, (_, none_allowed) in _checks._OPTIONS.items() if not none_allowed}
    assert all(len(cases) >= 1 for cases in WRONG.values())


@pytest.mark.parametrize(
    ("name", "value", "kind", "named"), CASES, ids=[f"{name}-{value!r:.40}" for name, value, *_ in CASES]
)
def test_value_that_is_refused(name: str, value: Any, kind: type[Exception], named: str, touch: list[str]) -> None:
    """A value that an option cannot have is refused with the right exception, by its name and value."""
    with pytest.raises(kind, match=named) as caught:
        safespawn.spawn(touch, **{name: value})

    assert len(str(caught.value)) < 400
    if isinstance(caught.value, OSError):
        assert caught.value.errno in (errno.EBADF, errno.E2BIG)
    assert not hasattr(caught.value, "report")


@pytest.mark.parametrize("name", sorted(_checks._OPTIONS))
def test_object_is_no_value(name: str, touch: list[str]) -> None:
    """An object of no known type is refused by every option, with the option's name and the object."""
    with pytest.raises((TypeError, ValueError), match=f"{name}.*<object object at"):
        safespawn.spawn(touch, **{name: object()})  # type: ignore[misc]


@pytest.mark.parametrize("name", sorted(NEVER_NONE))
def test_none_is_no_value_where_there_is_a_default(name: str, touch: list[str]) -> None:
    """None is refused by an option that always has a value."""
    with pytest.raises((TypeError, ValueError), match=f"{name}.*None"):
        safespawn.spawn(touch, **{name: None})  # type: ignore[misc]


def test_none_means_not_given_everywhere_else(starts: None) -> None:
    """None stands for "not given" in all other options at once."""
    nothing: dict[str, Any] = dict.fromkeys(set(_checks._OPTIONS) - NEVER_NONE)

    assert safespawn.run(["/bin/true"], **nothing).returncode == 0


def test_files_that_are_no_streams(touch: list[str]) -> None:
    """A file that is closed or has no descriptor, and one that lies about it, are refused by name."""

    class Liar:
        def __init__(self, number: Any) -> None:
            self.number = number

        def fileno(self) -> Any:
            return self.number

    for number in (PIPE, DEVNULL, STDOUT, -7, 2**31):
        with pytest.raises(ValueError, match=rf"stderr.fileno\(\).*{number}"):
            safespawn.spawn(touch, stderr=Liar(number))  # type: ignore[typeddict-item]
    for wrong in ("1", None, True):
        with pytest.raises(TypeError, match=rf"stderr.fileno\(\).*{wrong!r}"):
            safespawn.spawn(touch, stderr=Liar(wrong))  # type: ignore[typeddict-item]


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_file_without_descriptor_is_named(name: str, touch: list[str]) -> None:
    """A file object that is closed, or only in memory, is refused with the option's name."""
    with open(os.devnull, "rb") as closed:
        pass

    with pytest.raises((ValueError, OSError), match=name):
        safespawn.spawn(touch, **{name: closed})  # type: ignore[misc]
    with pytest.raises((ValueError, OSError), match=name):
        safespawn.spawn(touch, **{name: io.BytesIO()})  # type: ignore[misc]


@pytest.mark.parametrize(
    "name", ["shell", "close_fds", "preexec_fn", "Strategy", "creationflags", "capabilities", "timeout", "check", "input", ""]
)
def test_unknown_option_is_named(name: str, touch: list[str]) -> None:
    """An option that there is not is a TypeError with its name and value, for ``subprocess``'s too."""
    with pytest.raises(TypeError, match=f"no such option: {name}=True"):
        safespawn.spawn(touch, **{name: True})  # type: ignore[misc]


# ------------------------------------------------------------------ what is taken


@pytest.mark.parametrize(
    ("option", "value", "made"),
    [
        ("root", Path("/srv"), {"root": b"/srv"}),
        ("cgroup", 7, {"cgroup": 7}),
        ("sigdefault", [1, signal.SIGRTMAX, 1], {"sigdefault": 1 << 63 | 1}),
        ("scheduler", os.SCHED_BATCH, {"scheduler": (3, 0)}),
        ("scheduler", (os.SCHED_IDLE, None), {"scheduler": (5, 0)}),
        ("scheduler", [os.SCHED_FIFO, 99], {"scheduler": (1, 99)}),
        ("caps", (), {"caps": 0}),
        ("caps", ["kill", "CAP_CHOWN", "cap_kill", 63], {"caps": 1 << 5 | 1 | 1 << 63}),
        ("caps", ["checkpoint_restore"], {"caps": 1 << 40}),
        ("securebits", [], {"securebits": 0}),
        ("securebits", {"noroot_locked", "NOROOT"}, {"securebits": 3}),
        ("securebits", ["keep_caps_locked", "no_cap_ambient_raise_locked"], {"securebits": 0xA0}),
        ("namespaces", {"net", "Mount"}, {"namespaces": ("mount", "net")}),
        ("namespaces", {"pid": None, "user": None}, {"namespaces": ("user", "pid")}),
        (
            "namespaces",
            {"user": {"users": [(0, 1000, 1), (1, 100_000, 65_535)]}},
            {"namespaces": ("user",), "map_users": ((0, 1000, 1), (1, 100_000, 65_535))},
        ),
        (
            "namespaces",
            {"user": {"groups": [(0, 0, 2**32 - 1)]}},
            {"namespaces": ("user",), "map_groups": ((0, 0, 2**32 - 1),)},
        ),
        ("landlock", {}, {"landlock": (3, (), (), ())}),
        (
            "landlock",
            {"abi": 1, "read": ["/etc", Path("/usr")], "execute": (b"/usr",)},
            {"landlock": (1, (b"/etc", b"/usr"), (), (b"/usr",))},
        ),
        ("seccomp", bytes(8), {"seccomp": bytes(8)}),
        ("seccomp", bytearray(8 * 4096), {"seccomp": bytes(8 * 4096)}),
        ("redact", (), {"redact": ()}),
        ("redact", ["ä+"], {"redact": (re.compile("ä+".encode()),)}),
        ("redact", [re.compile("a.b", re.I | re.S)], {"redact": (re.compile(b"a.b", re.I | re.S),)}),
        ("redact", [re.compile(b"\xff")], {"redact": (re.compile(b"\xff"),)}),
    ],
    ids=str,
)
def test_value_that_is_taken(option: str, value: Any, made: dict[str, Any]) -> None:
    """What an option accepts becomes the numbers and bytes that the kernel takes, and nothing else changes."""
    plain = _checks.request(["true"], {})

    assert _checks.request(["true"], {option: value}) == plain._replace(**made, has_options=True)


@pytest.mark.parametrize(
    ("options", "sealed"),
    [
        ({}, False),
        ({"no_new_privs": True}, True),
        ({"landlock": {}}, True),
        ({"seccomp": bytes(8)}, True),
        ({"caps": (), "securebits": ["noroot"], "root": "/", "namespaces": ["net"]}, False),
    ],
    ids=str,
)
def test_options_that_imply_no_new_privs(options: dict[str, Any], sealed: bool) -> None:
    """Landlock and filters imply no_new_privs: an exec that gives privileges would undo them."""
    assert _checks.request(["true"], options).seals_privileges is sealed


# ------------------------------------------------------------ options that conflict


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"pass_fds": [3, 4], "fds": {4: 0}}, r"pass_fds and fds both name \[4\]"),
        ({"pass_fds": [0], "stdin": 1}, "pass_fds names 0.*stdin=1"),
        ({"pass_fds": [1], "stdout": PIPE}, "pass_fds names 1.*stdout=-1"),
        ({"pass_fds": [2], "stderr": STDOUT}, "pass_fds names 2.*stderr=-2"),
        ({"controlling_terminal": 0}, "controlling_terminal=0 needs start_new_session=True"),
        ({"start_new_session": True, "process_group": 0}, "process_group=0 and start_new_session=True"),
        ({"env_allow": ["APP"]}, "env_allow=.*APP.*inherit"),
        ({"path_policy": "trusted", "root": "/srv"}, "path_policy='trusted' and root=b'/srv'"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other(options: dict[str, Any], named: str, touch: list[str]) -> None:
    """Options that cannot both hold are a ValueError that names both."""
    with pytest.raises(ValueError, match=named):
        safespawn.spawn(touch, **options)


@pytest.mark.parametrize(
    ("options", "kind", "named"),
    [
        ({"input": b"x", "stdin": DEVNULL}, ValueError, "stdin=-3 and input"),
        ({"capture_output": True, "stdout": DEVNULL}, ValueError, "stdout=-3 and capture_output"),
        ({"capture_output": True, "stderr": STDOUT}, ValueError, "stderr=-2 and capture_output"),
        ({"input": "text"}, TypeError, "input.*str .4 characters"),
        ({"no_such": 1}, TypeError, "no such option: no_such=1"),
        ({"umask": -1}, ValueError, "umask.*-1"),
    ],
    ids=str,
)
def test_run_refuses_as_early(options: dict[str, Any], kind: type[Exception], named: str, touch: list[str]) -> None:
    """``run`` refuses what ``spawn`` does, and its own contradictions, before anything starts."""
    with pytest.raises(kind, match=named):
        safespawn.run(touch, **options)


@pytest.mark.parametrize("argv", [[], "", b"", "a\0b", None, 5, ["a", None]], ids=repr)
def test_run_refuses_malformed_argv(argv: Any) -> None:
    """``run`` takes a single string as the program, and refuses the rest as ``spawn`` does."""
    with pytest.raises((TypeError, ValueError), match="argv"):
        safespawn.run(argv)


# ----------------------------------------------------------------- anything at all

atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.sampled_from(["", "x", "a\0b", "a=b", "\ud800", "nobody", b"", b"\0", b"x"]),
)
anything = st.one_of(
    atoms,
    st.lists(atoms, max_size=3),
    st.tuples(atoms, atoms),
    st.dictionaries(atoms.filter(lambda key: key == key), atoms | st.tuples(atoms, atoms), max_size=3),
)


@settings(max_examples=1000, derandomize=True, database=None, deadline=None)
@given(
    st.one_of(st.lists(atoms, max_size=3), anything),
    st.dictionaries(st.sampled_from(sorted(_checks._OPTIONS)), anything, max_size=3),
)
def test_any_request_is_taken_or_refused_properly(argv: Any, options: dict[str, Any]) -> None:
    """Whatever is given: a request comes of it whose every part is well formed, or one of the exceptions told."""
    try:
        made = _checks.request(argv, options)
    except (TypeError, ValueError) as refusal:
        assert str(refusal)
        return
    except OSError as refusal:
        assert refusal.errno == errno.E2BIG
        return

    assert made.argv
    assert made.argv[0]
    assert all(isinstance(word, bytes) and b"\0" not in word for word in made.argv)
    for name, value in made.env or ():
        assert name
        assert not set(name) & set(b"\0=")
        assert b"\0" not in value
    assert all(0 <= source < 2**31 and 3 <= target < 2**31 for source, target in made.fds)
    assert len({target for _, target in made.fds}) == len(made.fds)
    assert all(0 <= soft <= hard < 2**64 for _, soft, hard in made.rlimits)
    assert made.cpu_affinity is None or made.cpu_affinity
    assert made.caps is None or 0 <= made.caps < 2**64
    assert made.securebits is None or 0 <= made.securebits < 2**8
    assert made.scheduler is None or 0 <= made.scheduler[1] <= 99
    assert "user" in made.namespaces or (made.map_users, made.map_groups) == (None, None)
    assert made.seccomp is None or 0 < len(made.seccomp) <= 8 * 4096
