"""The public names, their signatures and their texts: a contract that changes only on purpose."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

import pytest

import helpers
import safespawn
from safespawn import _checks, _spec, aio, audit, guards, policy, takeover
from safespawn import subprocess as subprocess_face

README = helpers.ROOT / "README.md"

OPTIONS = sorted(_spec.SpawnOptions.__annotations__)

#: What we hand on.
OF_SUBPROCESS = {subprocess.CalledProcessError, subprocess.TimeoutExpired, subprocess.SubprocessError}

#: Exception to its bases, which callers write in ``except``.
EXCEPTIONS: dict[type[BaseException], tuple[type[BaseException], ...]] = {
    safespawn.SpawnError: (OSError,),
    safespawn.UnsafeSpawn: (safespawn.SpawnError,),
    safespawn.RaceDetected: (safespawn.UnsafeSpawn,),
    safespawn.KilledBeforeExec: (safespawn.SpawnError,),
    safespawn.SpawnTimeout: (safespawn.SpawnError, TimeoutError),
    safespawn.SpawnManyError: (safespawn.SpawnError,),
    safespawn.AuditError: (safespawn.SpawnError,),
}

SIGNATURES: list[tuple[Callable[..., Any], str]] = [
    (
        safespawn.run,
        "argv, *, input=None, capture_output=False, timeout=None, check=False,"
        " text=None, encoding=None, errors=None, **options",
    ),
    (safespawn.spawn, "argv, **options"),
    (safespawn.spawn_many, "commands, *, at_once=16, return_errors=False"),
    (safespawn.Command, "argv, **options"),
    (safespawn.Helper, "*, allow='any', pool=0, keep_after_drop=False, restart=True"),
    (safespawn.Helper.shrink, "self, allow"),
    (safespawn.system, "command"),
    (safespawn.popen, "cmd, mode='r', buffering=-1"),
    (safespawn.prepare_fork, "*, collapse=True, measure=True, max_added=67108864"),
    (safespawn.Process.poll, "self"),
    (safespawn.Process.wait, "self, timeout=None"),
    (safespawn.Process.communicate, "self, input=None, timeout=None"),
    (safespawn.Process.send_signal, "self, number"),
    (safespawn.Process.terminate, "self"),
    (safespawn.Process.kill, "self"),
    (safespawn.Process.kill_tree, "self"),
    (
        audit.open,
        "path, mode='require', *, keys=None, max_bytes=0, max_seconds=0.0, append_only=False,"
        " checkpoint_seconds=60.0, late_failure='continue', mirrors=()",
    ),
    (audit.carry, "function"),
    (
        audit.verify,
        "path, *, key=None, without_key=False, state=True, registry=None, witness=(), dedupe=False",
    ),
    (audit.redact, "*patterns"),
    (audit.keys.initialise, "directory=None, *, show=None"),
    (audit.retention.retire, "path, *, keep, keys=None"),
    (audit.context, "**tags"),
    (audit.Ledger.close, "self"),
    (subprocess_face.run, "*popenargs, input=None, capture_output=False, timeout=None, check=False, **kwargs"),
    (subprocess_face.call, "*popenargs, timeout=None, **kwargs"),
    (subprocess_face.check_call, "*popenargs, **kwargs"),
    (subprocess_face.check_output, "*popenargs, timeout=None, **kwargs"),
    (subprocess_face.getoutput, "cmd, *, encoding=None, errors=None"),
    (subprocess_face.getstatusoutput, "cmd, *, encoding=None, errors=None"),
    (subprocess_face.Popen.kill_tree, "self"),
    (aio.create_subprocess_exec, "program, *args, stdin=None, stdout=None, stderr=None, limit=65536, **kwds"),
    (aio.create_subprocess_shell, "cmd, stdin=None, stdout=None, stderr=None, limit=65536, **kwds"),
    (takeover.install, ""),
    (takeover.installed, ""),
    (takeover.uninstall, ""),
    (guards.arm, "*, wait=None, guard_foreign=False"),
    (guards.credential_change, ""),
    (guards.require, "proof"),
    (guards.seal, ""),
    (guards.status, ""),
    (policy.applied, ""),
    (policy.apply, "policy"),
    (policy.load, "path"),
]


def shown(function: Callable[..., Any]) -> str:
    """Return a signature without types; those are held by typing/api.py."""
    parts = []
    starred = False
    for name, parameter in inspect.signature(function).parameters.items():
        starred = starred or parameter.kind is parameter.VAR_POSITIONAL
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        parts.append(f"{prefix}{name}{default}")
    return ", ".join(parts)


def public(cls: type) -> list[str]:
    """Return the public names that a class itself defines."""
    return sorted(name for name in vars(cls) if not name.startswith("_"))


def test_package_exports_these_names() -> None:
    """``safespawn.__all__`` is pinned."""
    assert safespawn.__all__ == [
        "DEVNULL",
        "PIPE",
        "STDOUT",
        "AuditError",
        "CalledProcessError",
        "Command",
        "CompletedProcess",
        "ForkCost",
        "ForkRefusal",
        "ForkReport",
        "Helper",
        "KilledBeforeExec",
        "Popen",
        "Process",
        "RaceDetected",
        "Secret",
        "SpawnError",
        "SpawnManyError",
        "SpawnReport",
        "SpawnTimeout",
        "SubprocessError",
        "TimeoutExpired",
        "UnsafeSpawn",
        "UnsafeSpawnWarning",
        "audit",
        "call",
        "check_call",
        "check_output",
        "getoutput",
        "getstatusoutput",
        "guards",
        "install",
        "installed",
        "policy",
        "popen",
        "prepare_fork",
        "run",
        "spawn",
        "spawn_many",
        "subprocess",
        "system",
        "uninstall",
    ]


def test_modules_export_these_names() -> None:
    """The public names of the audit and of the guards are pinned."""
    assert audit.__all__ == ["Ledger", "carry", "context", "keys", "open", "redact", "retention", "verify"]
    assert subprocess_face.__all__ == sorted(subprocess.__all__, key=lambda name: (not name.isupper(), name.islower(), name))
    assert takeover.__all__ == ["install", "installed", "is_installed", "uninstall"]
    assert aio.__all__ == ["DEVNULL", "PIPE", "STDOUT", "Process", "create_subprocess_exec", "create_subprocess_shell"]
    assert policy.__all__ == ["Policy", "PolicyError", "applied", "apply", "load"]
    assert guards.__all__ == ["Guard", "arm", "credential_change", "registry", "require", "seal", "status"]


@pytest.mark.parametrize("module", [safespawn, audit, guards, policy])
def test_exported_name_exists(module: types.ModuleType) -> None:
    """Every name in ``__all__`` is there."""
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@pytest.mark.parametrize(("function", "signature"), SIGNATURES, ids=lambda value: getattr(value, "__qualname__", ""))
def test_signature_is_pinned(function: Callable[..., Any], signature: str) -> None:
    """A public function takes these parameters with these defaults."""
    assert shown(function) == signature


def test_process_has_these_public_names() -> None:
    """The handle offers these methods and properties and no other."""
    assert public(safespawn.Process) == [
        "communicate",
        "kill",
        "kill_tree",
        "pid",
        "pidfd",
        "poll",
        "report",
        "returncode",
        "send_signal",
        "terminate",
        "wait",
    ]


def test_process_properties_are_read_only() -> None:
    """What the handle tells of the program cannot be set."""
    for name in ("pid", "pidfd", "report", "returncode"):
        member = inspect.getattr_static(safespawn.Process, name)
        assert isinstance(member, property)
        assert member.fset is None


def test_handles_are_final() -> None:
    """Handle and command are marked as classes that nobody subclasses (Python 3.11 keeps the mark)."""
    for one in (safespawn.Process, safespawn.Command):
        assert getattr(one, "__final__", sys.version_info < (3, 11)) is True


def test_command_has_these_public_names() -> None:
    """A command tells what it was made of."""
    assert public(safespawn.Command) == ["argv", "options"]


def test_report_is_frozen_and_has_these_fields() -> None:
    """A report holds these fields, and none of them can be set."""
    assert [field.name for field in dataclasses.fields(safespawn.SpawnReport)] == [
        "id",
        "requested",
        "strategy",
        "proof",
        "reasons",
        "outcome",
        "stage",
        "errno",
        "pid",
        "window_ns",
        "threads",
        "credentials",
        "executable",
        "identity",
        "removed_env",
    ]
    report = safespawn.SpawnReport("id", "auto")
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.outcome = "exec"  # type: ignore[misc]


def test_status_has_these_keys() -> None:
    """``guards.status()`` tells these things and its docstring names each."""
    seen = guards.status()
    keys = "required proofs strategy reasons launcher threads attributes guards lock"
    assert list(seen) == keys.split()
    assert [key for key in seen if f"``{key}``" not in (guards.status.__doc__ or "")] == []
    assert [key for key in seen["lock"] if f"``{key}``" not in (guards.status.__doc__ or "")] == []


def test_constants_are_those_of_subprocess() -> None:
    """Either module's stream constants can be given."""
    ours = (safespawn.PIPE, safespawn.STDOUT, safespawn.DEVNULL)
    assert ours == (subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL)


def test_completed_process_is_that_of_subprocess() -> None:
    """Code that handles subprocess's result handles ours."""
    assert safespawn.CompletedProcess.__mro__[1] is subprocess.CompletedProcess
    assert isinstance(inspect.getattr_static(safespawn.CompletedProcess, "report"), property)


# -------------------------------------------------------------------- exceptions


@pytest.mark.parametrize(("exception", "bases"), EXCEPTIONS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_exception_has_these_bases(
    exception: type[BaseException], bases: tuple[type[BaseException], ...]
) -> None:
    """The exceptions form this tree below OSError."""
    assert exception.__bases__ == bases


def test_every_exported_exception_is_in_the_tree() -> None:
    """No exception is exported that is not a SpawnError."""
    warning = safespawn.UnsafeSpawnWarning
    exported = {getattr(safespawn, name) for name in safespawn.__all__} - {*OF_SUBPROCESS, warning}
    assert {one for one in exported if isinstance(one, type) and issubclass(one, BaseException)} == set(EXCEPTIONS)


@pytest.mark.parametrize("exception", EXCEPTIONS, ids=lambda value: value.__name__)
def test_exception_carries_report_stage_and_guard(exception: type[safespawn.SpawnError]) -> None:
    """Each can be asked for report, stage, guard and errno, and an errno does not change its class."""
    made = exception(2, "text", "program")
    assert type(made) is exception
    assert (made.report, made.stage, made.guard) == (None, None, None)
    assert (made.errno, made.filename) == (2, "program")


# ----------------------------------------------------------------------- options


def test_options_have_the_same_names_everywhere() -> None:
    """Type, request and checks name the same options."""
    assert set(_checks._OPTIONS) == set(OPTIONS)
    of_namespaces = {"map_users", "map_groups"}
    of_argv = {"argv", "secrets", "has_options"}
    of_faces = {"candidates", "identity", "keep_fds", "closed"}
    assert set(_spec.Request._fields) - of_argv - of_namespaces - of_faces == set(OPTIONS)


def test_no_option_is_required() -> None:
    """Every option may be left out, and a request without options has the defaults."""
    assert _spec.SpawnOptions.__required_keys__ == frozenset()
    assert _checks.request(["true"], {}) == _spec.Request((b"true",), has_options=False)


@pytest.mark.parametrize("option", OPTIONS)
def test_none_is_taken_where_the_type_says_so(option: str) -> None:
    """None stands for "not given" in exactly the options whose type has it."""
    hint = typing.get_type_hints(_spec.SpawnOptions)[option]
    if type(None) in typing.get_args(hint):
        assert _checks.request(["true"], {option: None}) == _checks.request(["true"], {})
    else:
        with pytest.raises((TypeError, ValueError), match=option):
            _checks.request(["true"], {option: None})


def test_run_takes_no_option_for_itself() -> None:
    """No parameter of ``run`` hides an option of ``spawn``."""
    assert set(inspect.signature(safespawn.run).parameters).isdisjoint(OPTIONS)


def test_readme_documents_every_option() -> None:
    """README.md names every option as code."""
    text = README.read_text(encoding="utf-8")
    assert [option for option in OPTIONS if f"`{option}`" not in text] == []


# -------------------------------------------------------------------- docstrings


def documented() -> dict[str, object]:
    """Return everything public that must have a docstring, by its name."""
    found: dict[str, object] = {"SpawnOptions": _spec.SpawnOptions}
    for module in (safespawn, audit, guards, policy, subprocess_face, takeover, aio):
        found[module.__name__] = module
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, (int, dict)) or not getattr(value, "__module__", "safespawn").startswith("safespawn"):
                continue  # constants and the registry have a comment, and others have their own texts
            found[f"{module.__name__}.{name}"] = value
            if isinstance(value, type):
                found.update({f"{name}.{part}": inspect.getattr_static(value, part) for part in _methods(value)})
    return found


def _methods(cls: type) -> list[str]:
    parts = [name for name in public(cls) if isinstance(vars(cls)[name], (types.FunctionType, property))]
    return parts + [name for name in ("__init__", "__enter__", "__exit__") if _is_written(cls, name)]


def _is_written(cls: type, name: str) -> bool:
    # What a dataclass made of its fields is no text of anybody.
    return name in vars(cls) and not (name == "__init__" and dataclasses.is_dataclass(cls))


@pytest.mark.parametrize("name", documented())
def test_public_name_has_a_docstring(name: str) -> None:
    """Everything public says in a sentence what it is."""
    text = getattr(documented()[name], "__doc__", None) or ""
    assert text.strip().partition("\n\n")[0].rstrip().endswith((".", ":"))


def test_every_guard_has_a_statement_a_threat_and_a_source() -> None:
    """The registry is keyed by id, and each guard states what holds, against what, and where."""
    for key, guard in guards.registry.items():
        assert guard.id == key
        assert guard.statement
        assert guard.threats
        assert guard.enforced
        assert (helpers.ROOT / "safespawn" / guard.source).is_file(), guard.source
