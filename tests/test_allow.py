"""What a helper may start: the words of a caller, and what comes of a plan that goes beyond them.

The helper is started by hand, and gets plans that no core of ours would send: it is the helper that obeys.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import launching
from helping import BORN, READY, START, asking, marking, policy, reap, request, started
from launching import plans
from safespawn import _allow, _binding

pytestmark = pytest.mark.threat("T-37")

LIB = _binding.lib

#: Words that cannot be meant, and what is said of them.
BAD: dict[str, tuple[object, str]] = {
    "path-relative": ({"programs": ["bin/true"]}, "absolute path"),
    "path-with-two-slashes-first": ({"programs": ["//bin/true"]}, "absolute path"),
    "path-with-two-slashes": ({"programs": ["/bin//true"]}, "absolute path"),
    "path-with-two-slashes-last": ({"programs": ["/bin//"]}, "absolute path"),
    "path-with-a-dot": ({"programs": ["/bin/./true"]}, "absolute path"),
    "path-with-dots": ({"programs": ["/bin/../bin/true"]}, "absolute path"),
    "path-with-dots-last": ({"programs": ["/bin/.."]}, "absolute path"),
    "path-empty": ({"programs": [""]}, "is empty"),
    "path-with-nul": ({"programs": ["/bin/true\0"]}, "NUL"),
    "variable-empty": ({"variables": [""]}, "is empty"),
    "variable-with-equals": ({"variables": ["A="]}, "beginning of names"),
    "variable-with-star-first": ({"variables": ["*A"]}, "beginning of names"),
    "variable-with-stars": ({"variables": ["A**"]}, "beginning of names"),
    "option-unknown": ({"options": ["user"]}, "one of cwd"),
    "part-unknown": ({"program": []}, "it takes programs"),
    "root-beside-programs": ({"programs": ["/bin/true"], "options": ["nice", "root"]}, "lead elsewhere"),
    "too-many-programs": ({"programs": [f"/{n}" for n in range(4097)]}, "4097 entries"),
    "too-many-bytes": ({"programs": [f"/{n:0300}" for n in range(4096)]}, "bytes, at most"),
}


@pytest.mark.parametrize("name", BAD)
def test_words_that_cannot_be_meant_are_refused(name: str) -> None:
    """Before any helper is started, with what is wrong."""
    allow, said = BAD[name]
    with pytest.raises(ValueError, match=said):
        _allow.allowed(allow, keeps=False)  # type: ignore[arg-type]


def test_groups_of_all_users_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each user alone may have as many as the kernel takes; all of them together no more than a policy holds."""
    many = tuple(range(_binding.POLICY_GROUPS_MAX // 2 + 1))
    monkeypatch.setattr(_allow, "_user", lambda _name, value: (value, value, many))
    assert _allow.allowed({"users": [1]}, keeps=False).users == ((1, 1, many),)
    with pytest.raises(ValueError, match="groups, at most 65536"):
        _allow.allowed({"users": [1, 2]}, keeps=False)


@pytest.mark.parametrize("spare", [0, 1])
def test_longest_policy_is_read(spare: int) -> None:
    """What just fits is taken by the helper, and one byte more is refused here."""
    paths = [f"/{n:04}{'x' * 250}" for n in range(4095)]
    used = sum(len(path) + 1 for path in paths)
    allow = {"programs": [*paths, "/" + "y" * (_binding.POLICY_BYTES_MAX - used - 2 + spare)]}
    if spare:
        with pytest.raises(ValueError, match="bytes, at most"):
            policy(allow)
        return
    data = policy(allow)
    assert len(data) == 1 << 20
    with started(data) as one:
        assert one.hear() == (READY, 0, 0, 0, 0, [])


# ----------------------------------------------------------------- plans beyond them


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What a program leaves behind, if it runs."""
    return tmp_path / "mark"


@pytest.fixture
def plan(mark: Path) -> plans.Plan:
    """A plan that leaves a mark: the helper's own user, no option, one variable."""
    return marking(mark)


USUAL: dict[str, list[object]] = {"programs": ["/bin/sh"], "variables": ["MARK"], "users": [], "options": []}


@pytest.fixture
def outcome(mark: Path) -> Iterator[Callable[..., tuple[str, int, bool]]]:
    """Return a runner of a plan by a helper with this policy: stage, errno, and whether the mark is there."""
    with ExitStack() as stack:

        def run(allow: dict[str, list[object]], made: plans.Plan, *more: int) -> tuple[str, int, bool]:
            one = stack.enter_context(started(policy({**allow, "users": [os.geteuid()]})))
            assert one.hear() == (READY, 0, 0, 0, 0, [])
            with request(made.bytes()) as fds:
                one.send(asking(START, 3 + len(more), 5), *fds, *more)
                told = one.hear()
                assert told is not None and told.op == BORN
                reap(told)
                return (*launching.told(fds[1]), mark.exists())

        yield run


def test_plan_within_them_runs(outcome: Callable[..., object], plan: plans.Plan) -> None:
    """So what is refused below is refused for what goes beyond."""
    assert outcome(USUAL, plan) == ("exec", 0, True)


@pytest.mark.parametrize("numbers", [(), (0, 1), (1, 2), (0, 2), (0, 1, 3)])
def test_child_without_its_three_needs_an_option(
    outcome: Callable[..., object], plan: plans.Plan, numbers: tuple[int, ...]
) -> None:
    """A program that has no standard error prints into the first file that it opens."""
    plan.put(targets=plans.targets(*numbers), places=plans.targets(*[2] * len(numbers)))
    assert outcome(USUAL, plan) == ("policy-option", errno.EACCES, False)
    assert outcome({**USUAL, "options": ["fds"]}, plan) == ("exec", 0, True)


def test_program_in_another_root_is_not_allowed(outcome: Callable[..., object], plan: plans.Plan) -> None:
    """The path is that of the policy, and leads to whatever lies in that root."""
    plan.want.root_fd = 3
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with_root = {name: part for name, part in USUAL.items() if name != "options"}  # all of them
        assert outcome(with_root, plan, root) == ("policy-program", errno.EACCES, False)
        assert outcome({"options": ["nice"]}, plan, root) == ("policy-option", errno.EACCES, False)
        if os.geteuid() == 0:
            assert outcome({"options": ["root"]}, plan, root) == ("exec", 0, True)
    finally:
        os.close(root)


def test_program_cannot_be_made_to_die_with_us(outcome: Callable[..., object], plan: plans.Plan) -> None:
    """Who may not signal a program may not have it signalled either."""
    plan.want.pdeathsig, plan.parent_pid = 9, os.getpid()
    assert outcome(USUAL, plan) == ("policy-option", errno.EACCES, False)
    assert outcome({**USUAL, "options": ["pdeathsig"]}, plan) == ("exec", 0, True)


def test_program_cannot_be_confined(outcome: Callable[..., object], plan: plans.Plan) -> None:
    """Programs with rights were turned against their users by what they could not do."""
    plan.want.landlock_fd = 3
    plan.want.flags |= LIB.SS_NO_NEW_PRIVS  # or landlock_restrict_self(2) takes CAP_SYS_ADMIN
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)  # no ruleset
    try:
        assert outcome(USUAL, plan, null) == ("policy-option", errno.EACCES, False)
        assert outcome({**USUAL, "options": ["landlock"]}, plan, null) in {
            ("landlock", errno.EBADFD, False),
            ("landlock", errno.EOPNOTSUPP, False),
            ("landlock", errno.ENOSYS, False),
        }
    finally:
        os.close(null)
