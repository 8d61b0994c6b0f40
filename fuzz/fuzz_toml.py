"""Fuzz target for the policy of a process: any bytes of a file, and only the documented answers.

Whatever is in the file, ``policy.load`` returns a policy that holds together, or raises PolicyError with the
file, and with the line of the statement that brings the problem about: what stands before it does not. Syntax
always has a line; so has what is wrong with a key, but for a key that is missing.
"""

from __future__ import annotations

import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import target
from hypothesis import strategies as st

with target.instrumented():
    from safespawn import _checks, _policy_file, _policy_values, _values, policy
    from safespawn.policy import PolicyError


def _where() -> Path:
    """Return a file that nobody else can write, in a directory like that."""
    return Path(tempfile.mkdtemp(prefix="safespawn-fuzz-"), "policy.toml")


_FILE = _where()


def _load(data: bytes) -> policy.Policy | PolicyError:
    _FILE.write_bytes(data)
    os.chmod(_FILE, 0o600)
    try:
        return policy.load(_FILE)
    except PolicyError as problem:
        return problem


def _check_policy(made: policy.Policy, data: bytes) -> None:
    assert made.path == str(_FILE)
    assert set(made.options) <= set(_policy_values.SPAWN)
    _checks.request(["program"], made.options)
    assert made.audit is None or os.path.isabs(made.audit["path"])
    told = [key for key, _ in made.told]
    assert len(set(told)) == len(told)
    for key, value in made.told:
        table, name = key.split(".", 1)
        assert name in _policy_values.KEYS[table]
        json.loads(value)
    assert _load(data) == made


def _before(data: bytes, line: int) -> bytes:
    return b"".join(part + b"\n" for part in data.split(b"\n")[: line - 1])


def _complaint(problem: PolicyError) -> tuple[str | None, str]:
    """Return what is wrong with which key, without the value: that of ``[[table]]`` grows by lines."""
    return problem.key, problem.why.replace(_values.shown(problem.value), "")


def _check_problem(problem: PolicyError, data: bytes) -> None:
    assert problem.path == str(_FILE)
    assert str(problem).startswith(str(_FILE))
    assert problem.why
    assert "Traceback" not in problem.why
    if problem.line is not None:
        assert 1 <= problem.line <= data.count(b"\n") + 1
    if problem.key is None:
        assert (
            problem.line is not None
            or len(data) > _policy_file.LENGTH_MAX
            or b"nested too deeply" in (problem.why.encode())
        )
        return
    # The text of a short file is read for each of its lines; of a long one that has an end.
    assert problem.line is not None or len(data) > 2000
    if problem.line is not None:
        earlier = _load(_before(data, problem.line))
        assert not isinstance(earlier, PolicyError) or _complaint(earlier) != _complaint(problem)


def check(data: bytes) -> str:
    """Load a file; returns what came of it: a policy, or the line and the key of what is wrong."""
    made = _load(data)
    if isinstance(made, PolicyError):
        _check_problem(made, data)
        return f"{made.line}: {made.key}"
    _check_policy(made, data)
    return "policy"


# ------------------------------------------------------------------ with hypothesis

_STRINGS = st.sampled_from(
    ["", "a", "/srv", "027", "fifo:10", "0,2-3", "SIGTERM", "HUP", "unlimited", "net_admin",
     "scrub", "nobody", "vfork", "sealed", "durable", "refuse", "(", "[a-z]+", "sha256:00", "/dev/null",
     "../x", "user"]
) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)  # fmt: skip
_NUMBERS = st.integers(-3, 70) | st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**30])
_PLAIN = st.one_of(
    _STRINGS.map(partial(json.dumps, ensure_ascii=False)),
    _NUMBERS.map(str),
    st.sampled_from(
        [
            "true",
            "false",
            "1.5",
            "inf",
            "nan",
            "-0.0",
            "1979-05-27",
            "07:32:00",
            "0o17",
            "1e400",
            "'''x\ny'''",
        ]
    ),
)
_VALUES = st.recursive(
    _PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(inner, max_size=2).map(lambda items: "[\n" + ",\n".join(items) + "\n]"),
        st.dictionaries(
            st.sampled_from(["core", "nofile", "user", "users", "read", "abi", "A", "net"]), inner, max_size=2
        ).map(lambda pairs: "{ " + ", ".join(f"{name} = {value}" for name, value in pairs.items()) + " }"),
    ),
    max_leaves=4,
)
_KNOWN = [(table, key) for table, keys in _policy_values.KEYS.items() for key in keys]
_LINES = st.one_of(
    st.tuples(st.sampled_from(_KNOWN), _VALUES).map(lambda pair: f"{pair[0][0]}.{pair[0][1]} = {pair[1]}"),
    st.sampled_from([f"[{table}]" for table in [*_policy_values.KEYS, "x"]]),
    st.tuples(st.sampled_from([key for _, key in _KNOWN]), _VALUES).map(" = ".join),
    st.sampled_from(["", "# a remark", '"""', "'''", "]", "[[spawn]]", 'a.b."c d" = 1', "= 1", "\t", "\r"]),
)
TEXTS = st.lists(_LINES, max_size=6).map(lambda lines: "\n".join(lines).encode())
INPUTS: st.SearchStrategy[Any] = TEXTS | st.binary(max_size=40)

if __name__ == "__main__":
    target.main(check, INPUTS, check)
