"""Which commands need no shell, and what a shell would run for them.

Only what dash and bash both take as the words of one program; in any doubt it is a command for the shell.
"""

from __future__ import annotations

import os
import re
import stat
from typing import NamedTuple

#: Characters that mean nothing to a shell. Others than ASCII may be blanks in some locale.
_PLAIN = rb"[A-Za-z0-9_./,:@%+=-]"
_QUOTED = rb"'[\t\n\x20-\x26\x28-\x7e]*'|\"[\t\n\x20\x23\x25-\x5b\x5d-\x5f\x61-\x7e]*\""
_WORD = re.compile(rb"(?:" + _PLAIN + rb"|" + _QUOTED + rb")+")
_COMMAND = re.compile(rb"[ \t]*" + _WORD.pattern + rb"(?:[ \t]+" + _WORD.pattern + rb")*[ \t]*")
_QUOTES = re.compile(_QUOTED)

#: First words that are no program in one of the shells: reserved words, and what they do themselves.
_OWN = frozenset(
    b"! { } [[ ]] case coproc do done elif else esac fi for function if in select then time until while"
    b" . : [ alias bg bind break builtin caller cd chdir command compgen complete compopt continue"
    b" declare dirs disown echo enable eval exec exit export false fc fg getopts hash help history"
    b" jobs kill let local logout mapfile popd printf pushd pwd read readarray readonly return set"
    b" shift shopt source suspend test times trap true type typeset ulimit umask unalias unset wait".split()
)

#: Where the two shells are known; what sh is elsewhere may have programs of its own (busybox).
SHELL = b"/bin/sh"
_KNOWN = (b"dash", b"bash")

#: Variables of which a shell takes notice, or that it gives a value of its own.
_HEEDED = frozenset(
    b"IFS OPTIND OPTERR PPID UID EUID LINENO RANDOM SRANDOM SECONDS SHELLOPTS EXECIGNORE POSIXLY_CORRECT"
    b" FUNCNAME GROUPS DIRSTACK HISTCMD EPOCHSECONDS EPOCHREALTIME PIPESTATUS".split()
)
_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")


class Command(NamedTuple):
    """What a shell would run: ``env`` is None for our environment as it is.

    ``outlived``: the shell does not become the program, so it tells by an exit code that a signal killed it.
    """

    argv: list[bytes]
    program: bytes
    env: dict[bytes, bytes] | None
    outlived: bool


def words(command: bytes) -> list[bytes] | None:
    """Return the words of a command that has nothing else in it; None if a shell has to read it."""
    if not _COMMAND.fullmatch(command):
        return None
    found = [_unquoted(one) for one in _WORD.findall(command)]
    # An assignment, a job, an option of the shell itself, or none of a program's.
    if not found[0] or b"=" in found[0] or found[0][:1] in (b"%", b"-", b"+") or found[0] in _OWN:
        return None
    return found


def _unquoted(word: bytes) -> bytes:
    return _QUOTES.sub(lambda quoted: quoted[0][1:-1], word)


def without_shell(command: bytes, environment: bytes) -> Command | None:
    """Return what a shell would run; None if a shell has to see to it.

    ``environment`` is that of the process, strings end to end, each with its NUL.
    """
    argv, shell = words(command), os.path.basename(os.path.realpath(SHELL))
    if argv is None or shell not in _KNOWN:
        return None
    variables = _variables(environment)
    program = None if variables is None else _program(argv[0], variables.get(b"PATH", b""))
    if variables is None or program is None or not _is_run_by_the_kernel(program):
        return None
    try:
        env = _with_directory(variables)
    except OSError:
        return None
    return Command(argv, program, None if env == variables else env, outlived=shell == b"dash")


def _variables(environment: bytes) -> dict[bytes, bytes] | None:
    """Return the variables, None if a shell would change them or heed them."""
    found: dict[bytes, bytes] = {}
    for one in environment.split(b"\0")[:-1]:
        name, equals, value = one.partition(b"=")
        # dash keeps no name that is none of its own; bash takes functions from some of those.
        if not equals or name in found or not _NAME.fullmatch(name) or name.startswith(b"BASH"):
            return None
        found[name] = value
    return None if _HEEDED & found.keys() else found


def _program(word: bytes, path: bytes) -> bytes | None:
    if b"/" in word:
        return word if word.startswith(b"/") else None
    for where in path.split(b":"):
        # What is relative, and what dash takes as a word to itself (%builtin), is the shell's business.
        if not where.startswith(b"/") or b"%" in where:
            return None
        program = os.path.join(where, word)
        if os.path.lexists(program):
            return program
    return None


def _at_once(path: str | bytes, flags: int) -> int:
    """Open without waiting for whoever has a lease on the file (fcntl(2)): a shell would wait later."""
    return os.open(path, flags | os.O_NONBLOCK)


def _is_run_by_the_kernel(program: bytes) -> bool:
    """Return whether it is a program, or a script that names its interpreter.

    Others a shell reads itself (ENOEXEC).
    """
    try:
        if not (stat.S_ISREG(os.stat(program).st_mode) and os.access(program, os.X_OK, effective_ids=True)):
            return False
        with open(program, "rb", buffering=0, opener=_at_once) as file:
            return file.read(4).startswith((b"\x7fELF", b"#!"))
    except OSError:
        return False


def _with_directory(variables: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Return them with the PWD that a shell exports: it stays where it names our directory.

    Raises OSError.
    """
    here, told = os.stat("."), variables.get(b"PWD", b"")
    if told.startswith(b"/") and os.path.normpath(told) == told:
        try:
            if os.path.samestat(os.stat(told), here):
                return variables
        except OSError:
            pass  # it is no more
    return {**variables, b"PWD": os.getcwdb()}
