"""What a program gets and what a caller sees: the same from the standard module, from ours, and after install()."""

from __future__ import annotations

from typing import Any

import pytest

import helpers

#: Keyword arguments of Popen as text, by name. Each is tried three ways, and nothing may differ.
CASES = {
    "nothing": "{}",
    "name-in-path": "{'args': ['python3', '-I', '-S', PROBE, '100'], 'executable': None}",
    "executable": "{'args': ['other name', '-I', '-S', PROBE, '100'], 'executable': PYTHON}",
    "executable-in-path": "{'args': ['x', '-I', '-S', PROBE, '100'], 'executable': 'python3'}",
    "bytes": "{'args': [os.fsencode(one) for one in ARGV]}",
    "paths": "{'args': [Path(PYTHON), '-I', '-S', Path(PROBE), '100']}",
    "empty-name": "{'args': ['', '-I', '-S', PROBE, '100'], 'executable': PYTHON}",
    "shell": "{'args': shlex.join(ARGV), 'shell': True}",
    "shell-of-ours": "{'args': shlex.join(ARGV), 'shell': True, 'executable': '/bin/bash'}",
    "shell-with-arguments": "{'args': ['exec \"$0\" \"$@\"', *ARGV], 'shell': True}",
    "cwd": "{'cwd': '/usr'}",
    "cwd-path": "{'cwd': Path('/usr')}",
    "cwd-bytes": "{'cwd': b'/usr'}",
    "relative-program": "{'args': ['./python3', '-I', '-S', PROBE, '100'], 'cwd': '/usr/bin'}",
    "relative-path-entry": "{'args': ['python3', '-I', '-S', PROBE, '100'], 'cwd': '/usr', 'env': {'PATH': 'nowhere:bin'}}",
    "env": "{'env': {'A': '1', 'B': ''}}",
    "env-empty": "{'env': {}}",
    "env-bytes": "{'env': {b'A': b'\\xff'}}",
    "env-without-name": "{'env': {'': 'x', 'A': ''}}",
    "odd-numbers": "{'umask': True, 'close_fds': 1, 'pass_fds': (True, 100)}",
    "bytes-of-a-kind": "{'args': [Kind(os.fsencode(one)) for one in ARGV], 'env': {Kind(b'A'): Kind(b'1')}}",
    "env-search": "{'args': ['python3', '-I', '-S', PROBE, '100'], 'env': {'PATH': '/usr/bin'}}",
    "umask": "{'umask': 0o27}",
    "new-session": "{'start_new_session': True}",
    "own-group": "{'process_group': 0} if NEW else {}",
    "restore-signals": "{'restore_signals': True}",
    "keep-signals": "{'restore_signals': False}",
    "kept-descriptors": "{'close_fds': False}",
    "kept-and-hidden": "{'close_fds': False, 'umask': 0o77, 'start_new_session': True}",
    "named-descriptors": "{'pass_fds': (HIDDEN, 100)}",
    "named-standard": "{'pass_fds': (0, 1, 2, 100)}",
    "streams": "{'stdin': DEVNULL, 'stdout': PIPE, 'stderr': STDOUT}",
    "stderr-into-pipe": "{'stderr': PIPE}",
    "file-streams": "{'stdout': INHERITED, 'stderr': HIDDEN}",
    "crossed-streams": "{'stdin': 2, 'stdout': 0, 'stderr': 1}",
    "user": "{'user': 1234}",
    "user-name": "{'user': 'nobody'}",
    "group": "{'group': 1234}",
    "groups": "{'extra_groups': [4, 24, 4]}",
    "no-groups": "{'extra_groups': []}",
    "whole-user": "{'user': 1234, 'group': 1235, 'extra_groups': [1236]}",
    "preexec": "{'preexec_fn': lambda: os.umask(0o13)}",
    "preexec-and-more": "{'preexec_fn': os.setsid, 'cwd': '/usr', 'umask': 0o7, 'pass_fds': (HIDDEN, 100)}",
    # what fails
    "not-there": "{'args': ['/nowhere/at/all']}",
    "not-in-path": "{'args': ['nowhere-at-all']}",
    "not-there-path": "{'args': [Path('/nowhere/at/all')]}",
    "not-there-bytes": "{'args': [b'/nowhere/at/all']}",
    "not-executable": "{'args': ['/etc/passwd']}",
    "directory": "{'args': ['/usr']}",
    "no-name": "{'args': ['']}",
    "no-name-as-text": "{'args': ''}",
    "no-format": "{'args': [NO_FORMAT]}",
    "no-interpreter": "{'args': [NO_INTERPRETER]}",
    "cwd-not-there": "{'cwd': '/nowhere'}",
    "cwd-is-file": "{'cwd': Path('/etc/passwd')}",
    "cwd-number": "{'cwd': 0}",
    "nul-in-argument": "{'args': ['true', 'a\\0b']}",
    "nul-in-program": "{'args': ['tr\\0ue']}",
    "nul-in-env": "{'env': {'A': '\\0'}}",
    "equals-in-env": "{'env': {'A=B': 'c'}}",
    "number-in-env": "{'env': {'A': 1}}",
    "number-in-arguments": "{'args': ['true', 1]}",
    "no-arguments": "{'args': []}",
    "too-long": "{'args': ['true', 'x' * 200000]}",
    "too-much": "{'args': ['true', *(['x' * 100000] * 100)]}",
    "bad-descriptor": "{'pass_fds': (777,)}",
    "negative-descriptor": "{'pass_fds': (-1,)}",
    "bad-stdin": "{'stdin': 777}",
    "cwd-empty": "{'cwd': ''}",
    "negative-stdin": "{'stdin': -7}",
    "umask-with-more": "{'umask': 0o1737}",
    "path-of-one": "{'args': ['nowhere-at-all'], 'env': {'PATH': '/usr'}}",
    "path-of-one-directory": "{'args': ['bin'], 'env': {'PATH': '/usr'}}",
    "path-and-shell": "{'args': Path('/bin/true'), 'shell': True}",
    "no-such-user": "{'user': 'no-such-user-here'}",
    "no-such-group": "{'group': 'no-such-group-here'}",
    "user-too-large": "{'user': 2**64}",
    "negative-user": "{'user': -1}",
    "no-such-argument": "{'no_such_argument': 1}",
    "preexec-raises": "{'preexec_fn': lambda: 1 / 0}",
    "preexec-and-not-there": "{'args': ['/nowhere/at/all'], 'preexec_fn': os.setsid}",
    "windows-only": "{'creationflags': 1}",
}

#: Tries all cases all ways. A pipe is given as descriptor 100, where the probe writes what it is.
BATCH = """
import errno, shlex, subprocess, tempfile, warnings
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from safespawn import subprocess as ours
warnings.simplefilter("ignore")
class Kind(bytes): pass
NEW = sys.version_info >= (3, 11)
ARGV = [PYTHON, "-I", "-S", PROBE, "100"]
os.environ["PATH"] = "/usr/bin:/bin"
where = tempfile.mkdtemp()
NO_FORMAT, NO_INTERPRETER = where + "/none", where + "/gone"
Path(NO_FORMAT).write_text("no program")
Path(NO_INTERPRETER).write_text("#!/nowhere/at/all\\n")
for name in (NO_FORMAT, NO_INTERPRETER):
    os.chmod(name, 0o755)
INHERITED, HIDDEN = os.open("/dev/null", os.O_RDWR), os.open("/dev/zero", os.O_RDWR)
os.dup2(INHERITED, 50)
INHERITED = 50
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.signal(signal.SIGUSR2, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])

def told(state):
    # What differs from one child to the next: numbers of processes, and of pipes.
    for name in ("pid", "ppid"):
        del state[name]
    state["own_group"], state["own_session"] = state.pop("pgid") == pid, state.pop("sid") == pid
    state["fds"] = {fd: where.partition(":")[0] for fd, where in state["fds"].items()}
    # libc's posix_spawn leaves 32 and 33 ignored in what it starts (make, for one), and that is inherited from
    # program to program; only we put them back.
    state["status"]["SigIgn"] = f"{int(state['status']['SigIgn'], 16) & ~(3 << 31):x}"
    state["env"] = {name: value for name, value in state["env"].items() if name != "_"}
    return state

def attempt(module, kwargs):
    global pid
    read, write = os.pipe()
    os.dup2(write, 100)  # inheritable
    os.close(write)
    try:
        done = module.Popen(**{"args": ARGV, "pass_fds": () if kwargs.get("close_fds") is False else (100,), **kwargs})
    except BaseException as problem:
        os.close(100)
        os.close(read)
        filename = getattr(problem, "filename", None)
        return [type(problem).__name__, getattr(problem, "errno", None), repr(filename)]
    os.close(100)
    pid, text = done.pid, b""
    while part := os.read(read, 65536):
        text += part
    os.close(read)
    streams = [None if one is None else one.close() or "pipe" for one in (done.stdin, done.stdout, done.stderr)]
    return [done.wait(), streams, told(json.loads(text)) if text else None]

safespawn.run(["true"], user=65534, group=65534)  # the launcher's file stays open
fds = set(os.listdir("/proc/self/fd"))
def attempts(module):
    return {name: attempt(module, eval(text)) for name, text in cases.items()}

def different(wanted, got):
    # In short: all of it would not fit into the pipe that it goes through.
    return {} if wanted == got else {"wanted": flat(wanted), "got": flat(got)}

def flat(told):
    return told if len(told) < 3 or not isinstance(told[2], dict) else [*told[:2], *map(list, told[2].items())]

def only(differing):
    if not differing:
        return differing
    wanted, got = differing["wanted"], differing["got"]
    return {"wanted": [one for one in wanted if one not in got], "got": [one for one in got if one not in wanted]}

standard, of_ours = attempts(subprocess), attempts(ours)
with safespawn.installed():
    installed = attempts(subprocess)
for name in cases:
    out[name] = {"standard": standard[name][:2], "ours": only(different(standard[name], of_ours[name]))}
    out[name]["installed"] = only(different(standard[name], installed[name]))
left = set(os.listdir("/proc/self/fd")) ^ fds
assert not left, {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in left if os.path.exists(f"/proc/self/fd/{fd}")}
try:
    os.waitpid(-1, os.WNOHANG)
    raise AssertionError("a child was left")
except ChildProcessError:
    pass
"""

#: What differs all the same: what of it, in which ways, and why.
EXCUSED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "groups": ("[4, 24]", ("ours", "installed"), "a group that was named twice is there once"),
    "not-there-path": ("'/nowhere/at/all'", ("installed",), "fork_exec is not told how the program was given"),
    "not-there-bytes": ("'/nowhere/at/all'", ("installed",), "as above"),
    "cwd-is-file": ("'/etc/passwd'", ("installed",), "as above"),
    "too-long": ("None", ("ours", "installed"), "the message names the argument, there is no file that is wrong"),
    "too-much": ("None", ("ours", "installed"), "as above"),
}


@pytest.fixture(scope="module")
def tried() -> dict[str, Any]:
    """All cases, tried in one process."""
    return helpers.run_snippet(
        BATCH, cases=CASES, PYTHON=helpers.SYSTEM_PYTHON, PROBE=str(helpers.PROBES / "state.py"), timeout=120
    )


@pytest.mark.parametrize("way", ["ours", "installed"])
@pytest.mark.parametrize("case", CASES)
def test_the_same_child_or_the_same_problem(tried: dict[str, Any], case: str, way: str) -> None:
    """A program gets the same from ours as from the standard module, and a caller the same exception."""
    part, ways, _ = EXCUSED.get(case, ("", (), ""))
    differing = tried[case][way]
    if way in ways:
        assert len(differing["got"]) == 1
        assert part in str(differing["got"])
    else:
        assert differing == {}
