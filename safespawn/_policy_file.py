"""A policy file, read: each key by its own reader, and of what is wrong the line."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from . import _checks, _own_file, _policy_lines, _policy_values
from ._errors import PolicyError
from ._policy import Policy
from ._values import shown

#: In bytes; of a policy with a fault each statement is read anew with all that come before it.
LENGTH_MAX = 1 << 16


def read(path: str | os.PathLike[str]) -> Policy:
    """Return the policy of a file. Raises PolicyError."""
    where = os.path.join(os.getcwd(), os.fspath(path))
    try:
        data = _own_file.read(where, LENGTH_MAX, "the policy")
    except OSError as problem:
        raise PolicyError(problem.strerror or str(problem), where) from problem
    try:
        return _policy(_told(data), where, data)
    except PolicyError as problem:
        line = problem.line or _line(data, problem)
        raise PolicyError(problem.why, where, line, problem.key, problem.value) from problem.__cause__


@functools.cache
def _parser() -> Any:
    if sys.version_info >= (3, 11):
        import tomllib  # noqa: PLC0415 - who has no policy needs none
    else:
        try:
            import tomli as tomllib  # noqa: PLC0415 - an extra
        except ImportError:
            raise PolicyError(
                "Python 3.10 reads no TOML: install tomli, as pip install 'safespawn[toml]' does"
            ) from None
    return tomllib.loads


def _told(data: bytes) -> Mapping[str, Any]:
    try:
        text = data.decode()
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise PolicyError(f"no UTF-8: {data[problem.start : problem.start + 8]!r}", line=line) from problem
    return _parsed(text)


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        told: Mapping[str, Any] = _parser()(text)
    except RecursionError:
        raise PolicyError("no TOML: nested too deeply") from None
    except PolicyError:
        raise
    except ValueError as problem:
        line = _policy_lines.of_syntax(text, str(problem))
        raise PolicyError(f"no TOML: {problem}", line=line, value=_line_text(text, line)) from problem
    return told


def _line_text(text: str, line: int) -> str:
    return text.split("\n")[line - 1]


def _line(data: bytes, problem: PolicyError) -> int | None:
    """Return the line of the statement that brings the problem about."""

    def is_wrong(told: Mapping[str, Any]) -> bool:
        try:
            _policy(told, "", b"")
        except PolicyError as seen:
            return _complaint(seen) == _complaint(problem)
        return False

    if problem.key is None:
        return None
    return _policy_lines.of_fault(data.decode(), _parsed, is_wrong)


def _complaint(problem: PolicyError) -> tuple[str | None, str]:
    """Return what is wrong, without the value: what stands in ``[[table]]`` grows by later statements."""
    return problem.key, problem.why.replace(shown(problem.value), "")


def _policy(told: Mapping[str, Any], path: str, data: bytes) -> Policy:
    """Return what a file says. Each key is looked at before what they say together."""
    made = {table: _table(table, content) for table, content in told.items()}
    options, audit = made.get("spawn", {}), made.get("audit")
    _fit_together(options, audit, children := made.get("exec", {}).get("children", False))
    return Policy(
        require=made.get("guards", {}).get("require"),
        options=options,
        audit=audit,
        redact=made.get("redaction", {}).get("patterns", ()),
        refused=made.get("programs", {}).get("refused", ()),
        preexec_fn=made.get("subprocess", {}).get("preexec_fn", "allow"),
        children=children,
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        told=tuple(
            (f"{table}.{key}", json.dumps(value, ensure_ascii=False, default=str))
            for table, content in told.items()
            for key, value in content.items()
        ),
    )


def _table(table: str, content: object) -> dict[str, Any]:
    known = _policy_values.KEYS.get(table)
    if known is None:
        raise _unknown("table", table, table, content, _policy_values.KEYS)
    if not isinstance(content, Mapping):
        raise PolicyError(
            f"{table} must be a table, [{table}], not {shown(content)}", key=table, value=content
        )
    return {name: _value(f"{table}.{name}", name, value, known) for name, value in content.items()}


def _value(key: str, name: str, value: Any, known: Mapping[str, _policy_values.Read]) -> Any:
    if name not in known:
        raise _unknown("key", name, key, value, known)
    try:
        return known[name](key, value)
    except (TypeError, ValueError, OSError) as problem:
        raise PolicyError(str(problem), key=key, value=value) from problem


def _unknown(what: str, name: str, key: str, value: object, known: Mapping[str, Any]) -> PolicyError:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return PolicyError(f"no such {what}: {key} ({hint})", key=key, value=value)


#: Policies of environments that take PYTHONPATH away, which leads our part to children.
_ENDS_AT_CHILDREN = ("scrub", "user")


def _fit_together(options: Mapping[str, Any], audit: Mapping[str, Any] | None, children: bool) -> None:
    try:
        _checks.request(["program"], options)
    except ValueError as problem:
        raise PolicyError(f"spawn: {problem}", key="spawn", value=dict(options)) from problem
    takes = options.get("env_policy") in _ENDS_AT_CHILDREN or "env" in options
    if children and takes:
        name = "env" if "env" in options else "env_policy"
        raise PolicyError(
            f"exec.children = true cannot hold with spawn.{name} = {shown(options[name])}:"
            " it goes by PYTHONPATH and SAFESPAWN_EXEC, which that takes from children",
            key="exec.children",
            value=True,
        )
    if audit is not None and "path" not in audit:
        raise PolicyError("audit.path is missing: where the ledger is", key="audit.path")
