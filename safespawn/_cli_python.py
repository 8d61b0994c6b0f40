"""Whether a command is a Python program in which our startup would run: looked at before the exec."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Mapping, Sequence

#: Linux reads so much of a file for its ``#!`` (BINPRM_BUF_SIZE of include/uapi/linux/binfmts.h), and
#: follows so many interpreters (exec_binprm of fs/exec.c).
HEAD, INTERPRETERS_MAX = 256, 5
ELF = b"\x7fELF"
ELSE = "use `safespawn run`, or name the interpreter: `safespawn exec -- python3 SCRIPT`"


class NotPythonError(ValueError):
    """The command is no Python program, or one that would not run our startup."""


def find(name: str, env: Mapping[str, str]) -> str:
    """Return the path that execvp(3) would run. Raises FileNotFoundError or PermissionError."""
    places = [""] if "/" in name else os.get_exec_path(env)
    problem = errno.ENOENT
    for path in [os.path.join(where, name) for where in places]:
        if os.path.isfile(path) and os.access(path, os.X_OK, effective_ids=True):
            return path
        if os.path.lexists(path):
            problem = errno.EACCES
    raise OSError(problem, os.strerror(problem), name)


def judge(path: str, arguments: Sequence[str], env: Mapping[str, str]) -> None:
    """Raise NotPythonError, unless our startup will run in what comes of this program and its arguments."""
    words = list(arguments)
    for _ in range(INTERPRETERS_MAX):
        head = _head(path)
        if head[:2] != b"#!":
            return _judge_interpreter(path, head, words)
        path, words = _interpreter(path, head, words, env)
    raise NotPythonError(f"{path}: too many scripts that name a script as their interpreter; {ELSE}")


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(HEAD)
    except OSError as problem:
        raise NotPythonError(f"whether {path} is a Python program is unknown: {problem}; {ELSE}") from problem


def _judge_interpreter(path: str, head: bytes, words: Sequence[str]) -> None:
    real = os.path.realpath(path)
    if head[: len(ELF)] != ELF or not os.path.basename(real).startswith("python"):
        raise NotPythonError(f"{real} is no Python interpreter; {ELSE}")
    option = isolating(words)
    if option is not None:
        raise NotPythonError(
            f"with {option} Python takes no PYTHONPATH, or runs no site: nothing could be installed in it"
        )


def _interpreter(path: str, head: bytes, words: list[str], env: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return the interpreter behind a ``#!`` and its arguments, split where the kernel does."""
    line = os.fsdecode(head[2:].partition(b"\n")[0]).strip(" \t")
    name, _, rest = line.replace("\t", " ", 1).partition(" ")
    if not name.startswith("/"):
        raise NotPythonError(f"the interpreter {name!r} of {path} is no absolute path; {ELSE}")
    option = [rest.strip(" \t")] if rest.strip(" \t") else []
    if os.path.basename(name) == "env":
        return _behind_env(path, option, words, env)
    return name, [*option, path, *words]


def _behind_env(
    path: str, option: list[str], words: list[str], env: Mapping[str, str]
) -> tuple[str, list[str]]:
    """Return what env(1) runs of its one argument. With options and assignments it could take away ours."""
    given = option[0] if option else ""
    # What env(1) reads in a string of its own: variables, escapes, comments.
    is_odd = given.startswith("-S") and any(one in given for one in "$\\#")
    said = shlex.split(given[2:]) if given.startswith("-S") and not is_odd else [given]
    if not said or not said[0] or said[0].startswith("-") or "=" in said[0]:
        raise NotPythonError(f"what env makes of {given!r} in {path} is not followed; {ELSE}")
    try:
        return find(said[0], env), [*said[1:], path, *words]
    except OSError as problem:
        raise NotPythonError(f"the interpreter of {path}: {problem}; {ELSE}") from problem


def isolating(words: Sequence[str]) -> str | None:
    """Return the option of a Python command line that keeps PYTHONPATH or ``site`` from it: -I, -E, -S.

    Options are read as Python does: in clusters, up to the script, ``-c`` or ``-m``.
    """
    rest = iter(words)
    for word in rest:
        if not word.startswith("-") or word in ("-", "--"):
            return None
        if word == "--check-hash-based-pycs":
            next(rest, None)
        elif not word.startswith("--"):
            found, last = _cluster(word[1:])
            if found:
                return word
            if last in ("c", "m"):
                return None
            if last in ("W", "X"):
                next(rest, None)  # its value is a word of its own
    return None


def _cluster(letters: str) -> tuple[bool, str]:
    """Return whether there is one of ours among the letters, and the one that takes what comes behind."""
    for at, letter in enumerate(letters, 1):
        if letter in "IES":
            return True, ""
        if letter in "cm":
            return False, letter
        if letter in "WX":
            return False, letter if at == len(letters) else ""
    return False, ""
