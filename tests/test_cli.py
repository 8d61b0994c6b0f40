"""The command line, as a person or a service manager uses it."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import helpers
import safespawn
from safespawn import _checks, _cli_options, _spec, audit, doctor, guards
from safespawn.cli import main

PATIENCE = 60.0
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: CAP_SETUID, CAP_SYS_NICE")


def command(*arguments: object) -> list[str]:
    """Return the command line."""
    return [sys.executable, "-m", "safespawn", *map(str, arguments)]


def cli(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=PATIENCE * 3, check=False, **options
    )


def state(*options: object, **more: Any) -> dict[str, Any]:
    """Return what a program started with these options tells of itself."""
    done = cli("run", *options, "--", *helpers.probe_argv("state"), stdin=subprocess.DEVNULL, **more)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def status_mask(pid: int, name: str) -> int:
    """Return a signal mask of /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    return int(dict(line.split(":", 1) for line in text.splitlines() if ":" in line)[name], 16)


def until(condition: Callable[[], object]) -> None:
    """Look until a fact holds of which the kernel sends no event."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came true"
        os.sched_yield()


# ----------------------------------------------------------------- exit codes


@pytest.mark.parametrize("code", [0, 1, 2, 42, 124, 125, 127, 255])
def test_code_of_the_program(code: int) -> None:
    """The exit code is the program's own, whatever it is, and nothing is said about it."""
    done = cli("run", "--", "/bin/sh", "-c", f"exit {code}")

    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_program_killed_by_a_signal(number: int) -> None:
    """A program killed by signal N makes 128+N, as in a shell."""
    assert cli("run", "--", "/bin/sh", "-c", f"kill -{int(number)} $$").returncode == 128 + number


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--no-such-option", "--", "true"], "no-such-option"),
        ([], "no program"),
        (["--"], "no program"),
        (["--umask", "9", "--", "true"], "9"),
        (["--nice", "x", "--", "true"], "x"),
        (["--nice", "40", "--", "true"], "40"),
        (["--cpus", "", "--", "true"], "cpus"),
        (["--cpus", "3-x", "--", "true"], "3-x"),
        (["--cpus", "3-1", "--", "true"], "3-1"),
        (["--cpus", "0-99999999999", "--", "true"], "99999999999"),
        (["--rlimit", "nofile", "--", "true"], "nofile"),
        (["--rlimit", "nothing=1", "--", "true"], "nothing"),
        (["--rlimit", "core=1:2:3", "--", "true"], "1:2:3"),
        (["--rlimit", "core=x", "--", "true"], "x"),
        (["--rlimit", "core=2:1", "--", "true"], "above hard"),
        (["--env", "NOVALUE", "--", "true"], "NOVALUE"),
        (["--tag", "=x", "--", "true"], "=x"),
        (["--redact", "(", "--", "true"], "'('"),
        (["--pdeathsig", "SIGNOTHING", "--", "true"], "SIGNOTHING"),
        (["--digest", "md5:00", "--", "true"], "md5:00"),
        (["--deadline", "-1", "--", "true"], "-1"),
        (["--strategy", "magic", "--", "true"], "magic"),
        (["--env-policy", "none", "--", "true"], "none"),
        (["--env-allow", "X", "--", "true"], "env_allow"),
        (["--cpu", "x", "--", "true"], "argument --cpu: SOFT, SOFT:HARD"),
        (["--work", "/", "--", "true"], "--work"),
        (["--uid", "no-such-user", "--", "true"], "no-such-user"),
        (["--clear-groups", "--groups", "5", "--", "true"], "--clear-groups and --groups 5"),
        (["--seccomp-filter", "/no/such/filter", "--", "true"], "/no/such/filter"),
        (["--user", "no-such-user", "--", "true"], "no-such-user"),
        (["--group", "no-such-group", "--", "true"], "no-such-group"),
        (["--groups", "no-such-group", "--", "true"], "no-such-group"),
        (["--user", "3999999999", "--", "true"], "3999999999"),
        (["--cwd", "/no/such/dir", "--", "true"], "/no/such/dir"),
        (["--audit", "/no/such/dir/ledger", "--", "true"], "/no/such/dir/ledger"),
        (["--audit", "/dev/full", "--", "true"], "/dev/full"),
        (["--audit-mode", "never", "--", "true"], "never"),
        (["--digest", f"sha256:{'0' * 64}", "--", "true"], "exe-pinned"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_125_for_our_failures(arguments: list[str], said: str, tmp_path: Path) -> None:
    """Bad usage, a missing user, a refusal and a ledger that cannot be had make 125 and name the value."""
    done = cli("run", *arguments)

    assert done.returncode == 125
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ["doctor", "--js"],
        ["audit", "keys", "init", "--di", "/"],
        ["audit", "verify", "--witn", "x", "ledger"],
        ["audit", "show", "--num", "ledger"],
        ["audit", "export", "--format", "ecs", "--ho", "x", "ledger"],
        ["audit", "retire", "--keep", "1", "--ke", "x", "ledger"],
    ],
    ids=" ".join,
)
def test_options_are_not_abbreviated(words: list[str]) -> None:
    """Of no command, as of `run`: another version may have one more that begins like that."""
    done = cli(*words)

    assert (done.returncode, "unrecognized arguments" in done.stderr) == (125, True), done.stderr


def test_bad_usage_without_a_command() -> None:
    """No command, or one that does not exist, is bad usage too."""
    assert cli().returncode == 125
    assert cli("walk").returncode == 125


def test_126_for_what_cannot_be_executed(tmp_path: Path) -> None:
    """A file without the permission, a directory and no known format make 126, with the name."""
    plain = tmp_path / "plain"
    plain.write_text("no program", encoding="ascii")
    for mode, program in ((0o644, plain), (0o755, plain), (0o755, tmp_path)):
        program.chmod(mode)
        done = cli("run", "--", program)
        assert done.returncode == 126
        assert str(program) in done.stderr


def test_127_for_what_is_not_there() -> None:
    """A program that is missing makes 127, by its path or not found in PATH."""
    for program in ("/no/such/program", "no-such-program"):
        done = cli("run", "--", program)
        assert done.returncode == 127
        assert program in done.stderr


def test_refusal_says_why(tmp_path: Path) -> None:
    """A refused program does not run, and people are told the guard and the reason."""
    marker = tmp_path / "marker"
    done = cli("run", "--digest", f"sha256:{'0' * 64}", "--", "/usr/bin/touch", marker)

    assert done.returncode == 125
    assert "refused" in done.stderr
    assert "exe-pinned: its digest is sha256:" in done.stderr
    assert not marker.exists()


def test_help() -> None:
    """Help names every option and the exit codes, and is no failure."""
    done = cli("run", "--help")

    assert done.returncode == 0
    assert "128+N" in done.stdout
    for option in ("--user", "--pin", "--audit", "--report", "--deadline", "--caps", "--nofile", "--map-users"):
        assert option in done.stdout


# -------------------------------------------------------------------- options


def test_arguments_are_the_programs() -> None:
    """Everything after -- belongs to the program, options of ours and empty words included."""
    done = cli("run", "--", "/usr/bin/printf", "%s|", "--user", "--", "", "a b", "-h")

    assert done.stdout == "--user|--||a b|-h|"


def test_program_without_the_dashes() -> None:
    """The -- can be left out where the program is no option."""
    assert cli("run", "/bin/echo", "x").stdout == "x\n"


def test_streams_are_passed_through() -> None:
    """The program has our stdin, stdout and stderr."""
    done = cli("run", "--", "/bin/sh", "-c", "cat; echo err >&2; exit 3", input="in")

    assert (done.returncode, done.stdout, done.stderr) == (3, "in", "err\n")


def test_defaults() -> None:
    """Without options the program has our directory, environment and ids, and no descriptor more."""
    told = state()

    assert told["cwd"] == os.getcwd()
    assert told["uids"] == list(os.getresuid())
    assert sorted(told["fds"]) == ["0", "1", "2"]
    assert int(told["status"]["SigBlk"], 16) == 0
    ignored = cli("run", "--", "/bin/grep", "SigIgn", "/proc/self/status").stdout
    assert int(ignored.split()[1], 16) == 0


def test_cwd(tmp_path: Path) -> None:
    """--cwd sets the working directory."""
    assert state("--cwd", tmp_path)["cwd"] == str(tmp_path)


def test_umask() -> None:
    """--umask is octal."""
    assert state("--umask", "027")["umask"] == 0o27


def test_nice() -> None:
    """--nice sets the niceness."""
    assert state("--nice", "7")["nice"] == 7


def test_cpus() -> None:
    """--cpus takes numbers and ranges."""
    allowed = sorted(os.sched_getaffinity(0))

    assert state("--cpus", allowed[0])["cpus"] == allowed[:1]
    assert state("--cpus", ",".join(map(str, allowed)))["cpus"] == allowed
    assert state("--cpus", f"{allowed[0]}-{allowed[0]}")["cpus"] == allowed[:1]


def test_rlimit() -> None:
    """--rlimit takes one number, soft and hard, and unlimited, and can be repeated."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    top = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    limits = state("--rlimit", "nofile=200", "--rlimit", "core=0:0", "--rlimit", f"cpu=1000:{top}")["limits"]

    assert limits["RLIMIT_NOFILE"] == [200, 200]
    assert limits["RLIMIT_CORE"] == [0, 0]
    assert limits["RLIMIT_CPU"] == [1000, hard]


def test_env() -> None:
    """--env adds to our environment, with '=' in a value and empty values."""
    env = state("--env", "A=1=2", "--env", "EMPTY=", env={**os.environ, "B": "ours"})["env"]

    assert (env["A"], env["EMPTY"], env["B"]) == ("1=2", "", "ours")


@pytest.mark.threat("T-16")
def test_env_policy_scrub() -> None:
    """--env-policy scrub takes away what is not allowed; --env-allow and --env bring it in."""
    ours = {**os.environ, "LD_PRELOAD_X": "bad", "PYTHONSTARTUP": "bad", "MINE": "kept", "PATH": os.environ["PATH"]}
    env = state("--env-policy", "scrub", "--env-allow", "MINE", "--env", "NEW=1", env=ours)["env"]

    assert (env["MINE"], env["NEW"], env["PATH"]) == ("kept", "1", os.environ["PATH"])
    assert "LD_PRELOAD_X" not in env
    assert "PYTHONSTARTUP" not in env


def test_new_session() -> None:
    """--new-session makes the program the leader of a session of its own."""
    told = state("--new-session")

    assert told["sid"] == told["pgid"] == told["pid"]


def test_no_new_privs() -> None:
    """--no-new-privs sets the flag."""
    assert state("--no-new-privs")["status"]["NoNewPrivs"] == "1"


@pytest.mark.parametrize("text", ["KILL", "sigkill", "9"])
def test_pdeathsig(text: str) -> None:
    """--pdeathsig takes a name with or without SIG, or a number."""
    assert state("--pdeathsig", text)["pdeathsig"] == signal.SIGKILL


@root_only
@pytest.mark.threat("T-12")
def test_user() -> None:
    """--user alone means the whole identity: uid, primary group and group list."""
    for name in ("nobody", "65534"):
        told = state("--user", name)
        gid = told["gids"][0]
        assert told["uids"] == [65534] * 3
        assert told["gids"] == [gid] * 3
        assert told["groups"] == sorted(os.getgrouplist("nobody", gid))
        assert int(told["status"]["CapEff"], 16) == 0


@root_only
@pytest.mark.threat("T-12")
def test_group_and_groups() -> None:
    """--group and --groups replace the user's, and an empty list means none."""
    told = state("--user", "nobody", "--group", "daemon", "--groups", "2,daemon")
    none = state("--user", "nobody", "--groups", "")

    assert told["gids"] == [1, 1, 1]
    assert told["groups"] == [1, 2]
    assert none["groups"] == []


@root_only
def test_user_environment() -> None:
    """--env-policy user gives the home and names of the target user."""
    env = state("--user", "daemon", "--env-policy", "user")["env"]

    assert (env["USER"], env["LOGNAME"]) == ("daemon", "daemon")
    assert env["HOME"] != os.environ.get("HOME")


@pytest.mark.threat("T-14")
def test_pin_and_digest() -> None:
    """--pin and the right --digest run the program, and the report has the digest."""
    digest = hashlib.sha256(Path("/bin/echo").read_bytes()).hexdigest()

    for options in (["--pin"], ["--digest", f"sha256:{digest}"]):
        done = cli("run", *options, "--report", "--", "/bin/echo", "x")
        assert (done.returncode, done.stdout) == (0, "x\n")
        assert json.loads(done.stderr)["executable"]["sha256"] == digest


@pytest.mark.threat("T-15")
def test_path_policy(program: Callable[..., Path]) -> None:
    """--path-policy trusted takes a program of the system and refuses one below /tmp."""
    path = program()
    path.chmod(0o777)

    assert cli("run", "--path-policy", "trusted", "--", "/usr/bin/true").returncode == 0
    done = cli("run", "--path-policy", "trusted", "--", path)
    assert done.returncode == 125
    assert "path-trusted" in done.stderr


def test_deadline() -> None:
    """--deadline lets a program run that is up in time, however long it runs then."""
    assert cli("run", "--deadline", "20.5", "--", "/bin/true").returncode == 0


@pytest.mark.parametrize("strategy", ["auto", "vfork", "clone", "fork", "posix_spawn"])
def test_strategy(strategy: str) -> None:
    """--strategy is the one that is used; auto picks vfork in a process with one thread."""
    report = json.loads(cli("run", "--strategy", strategy, "--report", "--", "/bin/true").stderr)

    assert report["requested"] == strategy
    assert report["strategy"] == ("vfork" if strategy == "auto" else strategy)


@root_only
def test_refused_strategy(tmp_path: Path) -> None:
    """--strategy vfork with another user is refused, with the report if it was asked for."""
    marker = tmp_path / "marker"
    done = cli("run", "--user", "nobody", "--strategy", "vfork", "--report", "--", "/usr/bin/touch", marker)

    assert done.returncode == 125
    assert "drop-apart" in done.stderr
    report = json.loads(done.stderr[done.stderr.index("{") :])
    assert (report["outcome"], report["strategy"]) == ("refused", None)
    assert not marker.exists()


def test_on_unproven() -> None:
    """--on-unproven refuse runs where the proof holds."""
    report = json.loads(cli("run", "--on-unproven", "refuse", "--report", "--", "/bin/true").stderr)

    assert report["proof"] == "single-threaded"


# -------------------------------------------------- every option, by what is asked of spawn

#: BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) of linux/filter.h.
ALLOW = b"\x06\x00\x00\x00\x00\x00\xff\x7f"
INFINITY = resource.RLIM_INFINITY

#: Words of the command line, and the keyword arguments that they make: these and no others.
ASKED: list[tuple[list[str], dict[str, Any]]] = [
    ([], {}),
    (["--cwd", "/tmp"], {"cwd": "/tmp"}),
    (["--working-directory=/tmp"], {"cwd": "/tmp"}),
    (["--root", "/srv"], {"root": "/srv"}),
    (["--env-policy", "scrub", "--env-allow", "A", "--env-allow", "B"], {"env_policy": "scrub", "env_allow": ["A", "B"]}),
    (["--new-session"], {"start_new_session": True}),
    (["--umask", "0"], {"umask": 0}),
    (["--umask", "027"], {"umask": 0o27}),
    (["--nice", "-5"], {"nice": -5}),
    (["--scheduler", "other"], {"scheduler": os.SCHED_OTHER}),
    (["--scheduler", "batch"], {"scheduler": os.SCHED_BATCH}),
    (["--scheduler=idle"], {"scheduler": os.SCHED_IDLE}),
    (["--scheduler", "fifo:10"], {"scheduler": (os.SCHED_FIFO, 10)}),
    (["--scheduler", "rr:99"], {"scheduler": (os.SCHED_RR, 99)}),
    (["--cpus", "0,2-4"], {"cpu_affinity": [0, 2, 3, 4]}),
    (["--cgroup", "/sys/fs/cgroup/one"], {"cgroup": "/sys/fs/cgroup/one"}),
    (["--pdeathsig", "term"], {"pdeathsig": signal.SIGTERM}),
    (["--sigdefault", "hup,SIGINT,3"], {"sigdefault": [1, 2, 3]}),
    (["--subreaper"], {"subreaper": True}),
    (["--rlimit", "nofile=7:9", "--rlimit", "core=0"], {"rlimits": {resource.RLIMIT_NOFILE: (7, 9), resource.RLIMIT_CORE: (0, 0)}}),
    (["--rlimit", "cpu=unlimited"], {"rlimits": {resource.RLIMIT_CPU: (INFINITY, INFINITY)}}),
    (["--rlimit", "nofile=3", "--nofile=3:3"], {"rlimits": {resource.RLIMIT_NOFILE: (3, 3)}}),
    (["--as", "1", "--core", "2:3"], {"rlimits": {resource.RLIMIT_AS: (1, 1), resource.RLIMIT_CORE: (2, 3)}}),
    (["--cpu=4:unlimited"], {"rlimits": {resource.RLIMIT_CPU: (4, INFINITY)}}),
    (["--data", "-1"], {"rlimits": {resource.RLIMIT_DATA: (INFINITY, INFINITY)}}),
    (["--fsize", "5"], {"rlimits": {resource.RLIMIT_FSIZE: (5, 5)}}),
    (["--memlock", "6"], {"rlimits": {resource.RLIMIT_MEMLOCK: (6, 6)}}),
    (["--msgqueue", "7"], {"rlimits": {resource.RLIMIT_MSGQUEUE: (7, 7)}}),
    (["--nofile", "8"], {"rlimits": {resource.RLIMIT_NOFILE: (8, 8)}}),
    (["--nproc", "9"], {"rlimits": {resource.RLIMIT_NPROC: (9, 9)}}),
    (["--rss", "10"], {"rlimits": {resource.RLIMIT_RSS: (10, 10)}}),
    (["--rtprio", "11"], {"rlimits": {resource.RLIMIT_RTPRIO: (11, 11)}}),
    (["--rttime", "12"], {"rlimits": {15: (12, 12)}}),
    (["--sigpending", "13"], {"rlimits": {resource.RLIMIT_SIGPENDING: (13, 13)}}),
    (["--stack", "14"], {"rlimits": {resource.RLIMIT_STACK: (14, 14)}}),
    (["--no-new-privs"], {"no_new_privs": True}),
    (["--user", "nobody"], {"user": "nobody"}),
    (["--user", "nobody", "--uid", "nobody"], {"user": "nobody"}),
    (["--uid", "65534", "--gid", "7"], {"user": 65534, "group": 7}),
    (["--group", "daemon"], {"group": "daemon"}),
    (["--groups", "2,daemon"], {"extra_groups": [2, "daemon"]}),
    (["--groups", ""], {"extra_groups": []}),
    (["--clear-groups"], {"extra_groups": []}),
    (["--caps", "kill,+CAP_CHOWN,cap_41"], {"caps": ["kill", "CAP_CHOWN", 41]}),
    (["--caps", "none"], {"caps": []}),
    (["--securebits", "+noroot,+noroot_locked"], {"securebits": ["noroot", "noroot_locked"]}),
    (["--securebits", "noroot"], {"securebits": ["noroot"]}),
    (["--securebits", "none"], {"securebits": []}),
    (["--namespaces", "mount,PID"], {"namespaces": ["mount", "pid"]}),
    (
        ["--namespaces", "net,user", "--map-users", "0:1000:1", "--map-users=1:100000:9"],
        {"namespaces": {"net": None, "user": {"users": [(0, 1000, 1), (1, 100000, 9)]}}},
    ),
    (
        ["--map-users", "0:5:1", "--map-groups", "0:6:1", "--namespaces", "user"],
        {"namespaces": {"user": {"users": [(0, 5, 1)], "groups": [(0, 6, 1)]}}},
    ),
    (
        ["--landlock-rule", "path-beneath:read,execute:/usr", "--landlock-rule=path-beneath:read:/a:b", "--landlock-abi", "2"],
        {"landlock": {"abi": 2, "read": ["/usr", "/a:b"], "execute": ["/usr"]}},
    ),
    (["--landlock-rule", "path-beneath:write:."], {"landlock": {"write": ["."]}}),
    (["--pin"], {"pin": True}),
    (["--digest", f"sha256:{'0' * 64}"], {"digest": f"sha256:{'0' * 64}"}),
    (["--path-policy", "trusted"], {"path_policy": "trusted"}),
    (["--deadline", "2.5"], {"deadline": 2.5}),
    (["--strategy", "launcher"], {"strategy": "launcher"}),
    (["--on-unproven", "refuse"], {"on_unproven": "refuse"}),
    (["--tag", "a=1", "--tag", "b="], {"audit_tags": {"a": "1", "b": ""}}),
    (["--redact", "a+", "--redact=--b=(.*)"], {"redact": [re.compile("a+"), re.compile("--b=(.*)")]}),
]

#: Options of the library that cannot be had from the command line, and why.
NOT_THERE = {
    "executable": "argv[0] is the program; a name of its own is the business of exec -a",
    "stdin": "the program has ours: the shell redirects it",
    "stdout": "as stdin",
    "stderr": "as stdin",
    "fds": "the program has 0 to 2 only: the number of another descriptor means nothing to a service manager",
    "pass_fds": "as fds",
    "helper": "there is none that could run for this one spawn",
    "process_group": "the shell has made a group for us, and the terminal sends its signals to that",
    "controlling_terminal": "needs a descriptor of a terminal: setsid --ctty",
    "restore_signals": "Python's own ignored signals are nobody's wish here",
    "sigmask": "is that of the caller: ours is changed while we start the program",
}

#: Options of the command line that are no option of a spawn, and what they are.
OUR_OWN = {"--help", "--audit", "--audit-mode", "--report"}


class Asked(Exception):
    """Raised in place of a spawn: what was asked for."""


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let spawn check its options, and end there."""

    def spawn(argv: list[str], **options: Any) -> None:
        _checks.request(argv, options)
        raise Asked(argv, options)

    monkeypatch.setattr(safespawn, "spawn", spawn)


def asked(*words: str) -> dict[str, Any]:
    """Return the keyword arguments with which spawn is called."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(Asked) as caught:
        main(["run", *words, "--", "program", "--nofile", "-x"])
    argv, options = caught.value.args
    assert argv == ["program", "--nofile", "-x"]
    assert options.pop("sigmask") == mask == signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return dict(options)


@pytest.fixture
def refused(nothing_starts: None, capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Return what gives the message of a command line that is bad usage, and calls no spawn."""

    def refuse(words: list[str]) -> str:
        try:
            code: object = main(["run", *words, "--", "program"])
        except SystemExit as end:  # from argparse
            code = end.code
        said = capsys.readouterr()
        assert (code, said.out) == (125, "")
        return said.err

    return refuse


@pytest.mark.parametrize(("words", "made"), ASKED, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_words_become_these_keyword_arguments(words: list[str], made: dict[str, Any], nothing_starts: None) -> None:
    """Options become keyword arguments that spawn takes; what is not given is left to its defaults."""
    assert asked(*words) == made


def test_environment_becomes_a_whole(nothing_starts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """--env and --setenv are added to our environment, and what they set is allowed by every policy."""
    monkeypatch.setenv("OURS", "1")

    seen = asked("--env", "A=1=2", "--setenv", "B=", "--env-policy", "user")
    assert seen == {"env": {**os.environ, "A": "1=2", "B": ""}, "env_policy": "user", "env_allow": ["A", "B"]}
    assert asked("--setenv=A=1") == {"env": {**os.environ, "A": "1"}}


def test_filter_is_read(nothing_starts: None, tmp_path: Path) -> None:
    """--seccomp-filter gives the bytes of the file."""
    file = tmp_path / "filter.bpf"
    file.write_bytes(ALLOW * 2)

    assert asked("--seccomp-filter", str(file)) == {"seccomp": ALLOW * 2}


def test_filter_of_any_size_is_not_read_whole(refused: Callable[[list[str]], str], tmp_path: Path) -> None:
    """A large file is refused for its size, of which no more is read than a bound."""
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 1 << 40)
    said = refused(["--seccomp-filter", str(tmp_path / "large")])

    assert "seccomp must be 1 to 4096 instructions of 8 bytes, not 1048576 bytes" in said


@pytest.mark.parametrize("text", ["200", "200:", ":900", "200:900", "200:unlimited", "unlimited", "-1", ":unlimited"])
def test_halves_of_a_limit(text: str, nothing_starts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half that is missing is our own present limit, as in prlimit(1)."""
    monkeypatch.setattr(resource, "getrlimit", lambda number: {resource.RLIMIT_NOFILE: (150, 1000)}[number])
    soft, colon, hard = text.partition(":")
    number = {"unlimited": INFINITY, "-1": INFINITY}
    halves = (
        int(number.get(soft, soft)) if soft else 150,
        (int(number.get(hard, hard)) if hard else 1000) if colon else int(number.get(soft, soft)),
    )

    assert asked("--nofile", text) == {"rlimits": {resource.RLIMIT_NOFILE: halves}}
    assert asked("--rlimit", f"nofile={text}") == {"rlimits": {resource.RLIMIT_NOFILE: halves}}


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Return the long options that a parser takes."""
    return {option for option in parser._option_string_actions if option.startswith("--")}


def test_every_option_of_the_command_line_is_tried() -> None:
    """No option of `run` is missing from the tables of this file."""
    parser = argparse.ArgumentParser()
    _cli_options.add(parser)
    tried = {word.partition("=")[0] for words, _ in ASKED for word in words if word.startswith("--")}

    # Those three have a test of their own above.
    assert tried | {"--env", "--setenv", "--seccomp-filter"} | OUR_OWN == options_of(parser)


def test_every_option_of_the_readme_is_reached() -> None:
    """What README.md lists as an option can be had from the command line, or it is told here why not."""
    text = (helpers.ROOT / "README.md").read_text(encoding="utf-8")
    tables = text[text.index("\n## Options\n") : text.index("\n### Options of `run` alone\n")]
    listed = set(re.findall(r"(?m)^\| `(\w+)` \|", tables))
    reached = {name for _, made in ASKED for name in made} | {"env", "seccomp"}

    assert listed == set(_spec.SpawnOptions.__annotations__)
    assert reached | set(NOT_THERE) == listed
    assert reached.isdisjoint(NOT_THERE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--user", "nobody", "--uid", "5"], "--user/--uid: given twice, as 'nobody' and as 5"),
        (["--uid", "5", "--uid", "6"], "--user/--uid: given twice, as 5 and as 6"),
        (["--gid", "5", "--group", "6"], "--group/--gid: given twice, as 5 and as 6"),
        (["--cwd", "/a", "--working-directory", "/b"], "--cwd/--working-directory: given twice, as '/a' and as '/b'"),
        (["--strategy", "auto", "--strategy", "fork"], "--strategy: given twice, as 'auto' and as 'fork'"),
        (["--caps", "none", "--caps", "kill"], r"--caps: given twice, as [] and as ['kill']"),
        (["--seccomp-filter", "a", "--seccomp-filter", "b"], "--seccomp-filter: given twice, as 'a' and as 'b'"),
        (["--clear-groups", "--groups", "5,audio"], "--clear-groups and --groups 5,audio contradict each other"),
        (["--nofile", "5", "--rlimit", "nofile=6"], "--nofile 5 and --rlimit nofile=6 contradict each other"),
        (["--rlimit", "nofile=6", "--rlimit", "ofile=5:6"], "--rlimit nofile=6 and --rlimit ofile=5:6 contradict"),
        (["--nofile=5", "--nofile=5:"], "--nofile 5 and --nofile 5: contradict each other"),
        (["--map-users", "0:1:1"], "--map-users 0:1:1 needs a user namespace, and there is no --namespaces"),
        (
            ["--namespaces", "net,pid", "--map-groups", "0:1:1"],
            "--map-groups 0:1:1 needs a user namespace, and there is --namespaces net,pid",
        ),
        (["--landlock-abi", "3"], "--landlock-abi 3 needs a --landlock-rule"),
        (["--root", "/srv", "--path-policy", "trusted"], "path_policy='trusted' and root=b'/srv'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_contradict_each_other(words: list[str], said: str, refused: Callable[[list[str]], str]) -> None:
    """What cannot both be meant is an error that shows both."""
    assert said in refused(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scheduler", "fifo"], "--scheduler: other, batch, idle, fifo:PRIORITY or rr:PRIORITY needed, not 'fifo'"),
        (["--scheduler", "rr:"], "--scheduler: other.*not 'rr:'"),
        (["--scheduler", "fifo:x"], "--scheduler: other.*not 'fifo:x'"),
        (["--scheduler", "deadline"], "--scheduler: other.*not 'deadline'"),
        (["--scheduler", "fifo:100"], "scheduler priority must be from 1 to 99, not 100"),
        (["--scheduler", "idle:1"], "scheduler priority must be from 0 to 0, not 1"),
        (["--caps", "kill,nothing"], "caps: unknown: 'nothing'"),
        (["--caps", "none,kill"], "caps: unknown: 'none'"),
        (["--caps", "+all"], "caps: unknown: 'all'"),
        (["--caps", ""], "caps: unknown: ''"),
        (["--caps=-all"], "--caps: the whole set is given, so nothing can be taken from it: '-all' in '-all'"),
        (["--caps", "-all"], r"--caps: expected one argument \(if it begins with '-': OPTION=VALUE\)"),
        (["--securebits", "+noroot,-keep_caps"], "--securebits: the whole set is given.*'-keep_caps' in '\\+noroot,-keep_caps'"),
        (["--securebits", "+keep_caps"], "securebits: 'keep_caps' is cleared by execve"),
        (["--namespaces", "all"], "namespaces: unknown: 'all'; known are time, mount"),
        (["--namespaces", ""], "namespaces: unknown: ''"),
        (["--map-users", "0,1000,1"], "--map-users: INNER:OUTER:COUNT needed, not '0,1000,1'"),
        (["--map-groups", "0:-1:1"], "--map-groups: INNER:OUTER:COUNT needed, not '0:-1:1'"),
        (["--namespaces=user", "--map-users", "0:0:0"], r"namespaces\['user'\]\['users'\] must be from 1.*not 0"),
        (["--landlock-rule", "/etc"], "--landlock-rule: path-beneath:ACCESS.*not '/etc'"),
        (["--landlock-rule", "path-beneath::/etc"], "--landlock-rule: path.*not 'path-beneath::/etc'"),
        (["--landlock-rule", "path-beneath:read:"], "--landlock-rule: path.*not 'path-beneath:read:'"),
        (["--landlock-rule", "path-beneath:read-file:/"], "--landlock-rule: path.*'path-beneath:read-file:/'"),
        (["--landlock-rule", "net-port:read:/"], "--landlock-rule: path.*'net-port:read:/'"),
        (["--landlock-abi", "x"], "--landlock-abi: invalid int value: 'x'"),
        (["--landlock-abi=99", "--landlock-rule=path-beneath:read:/"], r"landlock\['abi'\].*99"),
        (["--seccomp-filter", "/no/such/filter"], "--seccomp-filter: No such file or directory: '/no/such/filter'"),
        (["--seccomp-filter", "/"], "--seccomp-filter: not a regular file: '/'"),
        (["--seccomp-filter", "/dev/zero"], "--seccomp-filter: not a regular file: '/dev/zero'"),
        (["--seccomp-filter", os.devnull], "--seccomp-filter: not a regular file: '/dev/null'"),
        (["--nofile", ":"], "--nofile: SOFT, SOFT:HARD, SOFT: or :HARD.*not ':'"),
        (["--nofile", ""], "--nofile: SOFT.*not ''"),
        (["--nofile", "-2"], "--nofile: SOFT.*not '-2'"),
        (["--nofile", "1k"], "--nofile: SOFT.*not '1k'"),
        (["--nofile", "9:8"], "--nofile 9:8: soft limit 9 above hard limit 8"),
        (["--core", "unlimited:8"], "--core unlimited:8: soft limit -1 above hard limit 8"),
        (["--stack", str(2**64)], rf"rlimits\[3\].*{2**64}"),
        (["--root", ""], "root is empty: ''"),
        (["--cgroup", ""], "cgroup is empty: ''"),
        (["--setenv", "NOVALUE"], "--env/--setenv: NAME=VALUE needed, not 'NOVALUE'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_value_that_is_refused(words: list[str], said: str, refused: Callable[[list[str]], str]) -> None:
    """A value that cannot be meant is an error with the option and the value."""
    assert re.search(said, refused(words))


@pytest.mark.parametrize("limits", ["200", "200:", ":300", "200:300", "unlimited:unlimited"])
def test_limits_mean_what_they_do_for_prlimit(limits: str) -> None:
    """A program has the same limits by our options as by those of prlimit(1)."""
    options = [f"--nofile={limits}"] if limits[0] != "u" else [f"--cpu={limits}"]
    small = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (250, 400))}
    theirs = subprocess.run(
        ["prlimit", *options, "--", *helpers.probe_argv("state")],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE,
        check=True,
        **small,  # type: ignore[call-overload]
    )

    assert state(*options, **small)["limits"] == json.loads(theirs.stdout)["limits"]


@root_only
@pytest.mark.threat("T-12")
def test_user_in_the_spelling_of_others() -> None:
    """--uid, --gid and --clear-groups do what --user, --group and --groups do."""
    told = state("--uid", "nobody", "--gid", "daemon", "--clear-groups")

    assert (told["uids"], told["gids"], told["groups"]) == ([65534] * 3, [1] * 3, [])


def test_directory_and_variable_in_the_spelling_of_others(tmp_path: Path) -> None:
    """--working-directory and --setenv do what --cwd and --env do."""
    told = state("--working-directory", tmp_path, "--setenv", "A=b")

    assert (told["cwd"], told["env"]["A"]) == (str(tmp_path), "b")


# ----------------------------------------------------------- report and audit


def test_report() -> None:
    """--report prints the decision to stderr as JSON, with the fields of the API, and leaves stdout alone."""
    done = cli("run", "--report", "--", "/bin/echo", "x")
    report = json.loads(done.stderr)

    assert done.stdout == "x\n"
    assert {"id", "requested", "strategy", "proof", "reasons", "outcome", "stage", "errno", "pid"} <= set(report)
    assert {"window_ns", "threads", "credentials", "executable"} <= set(report)
    assert (report["outcome"], report["threads"]) == ("exec", 1)
    assert report["credentials"]["euid"] == os.geteuid()


def test_report_of_a_failure() -> None:
    """--report shows the report of a program that could not be started too."""
    done = cli("run", "--report", "--", "/no/such/program")
    report = json.loads(done.stderr[done.stderr.index("{") :])

    assert done.returncode == 127
    assert (report["outcome"], report["stage"], report["errno"]) == ("failed", "lookup", 2)


@pytest.mark.parametrize("mode", ["require", "durable", "best_effort"])
def test_audit(tmp_path: Path, mode: str) -> None:
    """--audit appends a complete chain with tags, mode and exit, run after run."""
    ledger = tmp_path / "ledger"
    for _ in range(2):
        done = cli(
            "run", "--audit", ledger, "--audit-mode", mode, "--tag", "job=7", "--", "/bin/sh", "-c", "exit 3"
        )
        assert done.returncode == 3
    found = helpers.records(ledger)
    # Whether the ledger is closed at the end is the next test's business.
    story = [r["ev"] for r in found if r["ev"] != "chain.close"]

    assert story == ["chain.open", "spawn.intent", "spawn.started", "spawn.exit"] * 2
    assert {r["mode"] for r in found} == {mode}
    assert [r["tags"] for r in found if r["ev"] == "spawn.intent"] == [{"job": "7"}] * 2
    assert [r["exit"]["code"] for r in found if r["ev"] == "spawn.exit"] == [3, 3]


def test_audit_is_closed(tmp_path: Path) -> None:
    """The chain of a run ends with its closing record: without it, it looks like a crash."""
    ledger = tmp_path / "ledger"
    cli("run", "--audit", ledger, "--", "/bin/true")
    cli("run", "--audit", ledger, "--", "/no/such/program")
    events = [r["ev"] for r in helpers.records(ledger)]

    assert events.count("chain.open") == events.count("chain.close") == 2
    assert events[-1] == "chain.close"


# -------------------------------------------------------------------- signals

@pytest.fixture
def listener() -> Iterator[subprocess.Popen[bytes]]:
    """Start the command line with a program that tells which signal it got; both are ready."""
    process = subprocess.Popen(
        command("run", "--", *helpers.probe_argv("listener")),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        # The wrapper's own handlers: there is no event that says that they are in place.
        until(lambda: status_mask(process.pid, "SigCgt") >> (signal.SIGHUP - 1) & 1)
        yield process
    finally:
        process.kill()
        process.stdin.close()
        process.stdout.close()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_is_forwarded(listener: subprocess.Popen[bytes], number: int) -> None:
    """SIGTERM and SIGHUP to the wrapper reach the program, whose own end is the end of both."""
    listener.send_signal(number)

    assert listener.wait(PATIENCE) == 40 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_signal_of_the_terminal_is_left_to_the_program(listener: subprocess.Popen[bytes], number: int) -> None:
    """SIGINT and SIGQUIT do nothing to the wrapper, and are not sent on: the terminal does that."""
    listener.send_signal(number)
    assert listener.stdin is not None
    listener.stdin.write(b"go on\n")
    listener.stdin.flush()

    assert listener.wait(PATIENCE) == 9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_ctrl_c_at_the_terminal(listener: subprocess.Popen[bytes], number: int) -> None:
    """A signal to the whole group, as a terminal sends it, ends the program, and the wrapper tells its code."""
    os.killpg(listener.pid, number)

    assert listener.wait(PATIENCE) == 40 + number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_between_start_and_wait_is_not_lost(number: int) -> None:
    """A signal that comes when the program runs and we do not wait yet reaches the program all the same."""
    out = helpers.run_snippet(
        """
        from safespawn import cli
        real = safespawn.spawn

        def spawn(*args, **options):
            process = real(*args, **options)
            os.kill(os.getpid(), number)  # the narrowest place, hit every time
            return process

        safespawn.spawn = spawn
        # The program ends with us at the latest: nobody but us can write what it reads.
        read, write = os.pipe()
        os.dup2(read, 0)
        os.close(read)
        pid = os.fork()
        if not pid:
            os._exit(cli.main(["run", "--", "/bin/cat"]))
        status = os.waitpid(pid, 0)[1]
        out["code"] = os.waitstatus_to_exitcode(status)
        """,
        number=int(number),
    )

    assert out == {"code": 128 + number}


# --------------------------------------------------------------------- doctor


def test_doctor_json() -> None:
    """doctor --json has everything, in one JSON object."""
    done = cli("doctor", "--json")
    seen = json.loads(done.stdout)

    assert (done.returncode, done.stderr) == (0, "")
    assert {"machine", "features", "process", "proofs", "strategy", "reasons", "guards"} <= set(seen)
    assert seen["machine"]["kernel"] == os.uname().release
    assert seen["machine"]["machine"] == os.uname().machine
    assert all(set(feature) == {"available", "why"} for feature in seen["features"].values())
    assert {"clone3", "pidfd", "close_range"} <= set(seen["features"])
    assert seen["process"]["uids"] == list(os.getresuid())
    assert seen["process"]["threads"] == 1
    assert (seen["strategy"], seen["required"]) == ("vfork", "locked")
    assert any("alone-or-apart" in reason for reason in seen["reasons"])
    assert set(seen["guards"]) == set(guards.registry)
    assert set(seen["proofs"]) == {"locked", "quiesced", "sealed", "single-threaded"}
    assert set(seen["fork"]) == {"page_tables", "resident", "huge", "entries", "fork_ns"}
    assert 0 < seen["fork"]["fork_ns"] < 10**9 and seen["fork"]["page_tables"] > 0


def test_doctor_features_are_those_of_the_kernel() -> None:
    """Doctor's word on pidfd and close_range is what Python finds itself."""
    features = json.loads(cli("doctor", "--json").stdout)["features"]
    try:
        os.close(os.pidfd_open(os.getpid()))
        pidfd = True
    except OSError:
        pidfd = False

    assert features["pidfd"]["available"] is pidfd
    assert features["/dev/fd"]["available"] is os.path.exists("/dev/fd")
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert release
    assert features["close_range"]["available"] is ((int(release[1]), int(release[2])) >= (5, 11))


def test_doctor_table() -> None:
    """doctor prints a table that a person can read: every fact of the JSON, short lines, no braces."""
    done = cli("doctor")
    seen = json.loads(cli("doctor", "--json").stdout)

    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert "{" not in done.stdout
    for name in (*seen["machine"], *seen["features"], *seen["proofs"]):
        assert name in done.stdout
    assert f"a plain spawn would go by {seen['strategy']}" in done.stdout
    for heading in ("machine", "kernel features", "this process", "proofs", "a fork of this process"):
        assert re.search(f"(?m)^{heading}", done.stdout)


def test_doctor_changes_nothing(tmp_path: Path) -> None:
    """Doctor only looks: no ledger is opened, also where the environment names one."""
    ledger = tmp_path / "ledger"
    done = cli("doctor", "--json", env={**os.environ, "SAFESPAWN_AUDIT": str(ledger)})

    assert done.returncode == 0
    seen = json.loads(done.stdout)["audit"]
    assert (seen["ledger"], seen["slots"]) == (str(ledger), None)
    assert not list(tmp_path.iterdir())


def test_doctor_counts_the_chains_of_the_ledger(tmp_path: Path) -> None:
    """Where the environment names a ledger with keys, doctor tells how many slots of its state are used."""
    ledger, keys = tmp_path / "ledger", tmp_path / "keys"
    audit.keys.initialise(keys)
    for _ in range(3):
        audit.open(ledger, keys=keys).close()
    named = {**os.environ, "SAFESPAWN_AUDIT": str(ledger)}
    seen = json.loads(cli("doctor", "--json", env=named).stdout)["audit"]

    assert (seen["slots"], seen["slots_max"]) == (3, 1_000_000)
    assert "3 of 1000000 have a slot" in cli("doctor", env=named).stdout
    Path(f"{ledger}.state").write_bytes(b"something else")
    assert "the file is no state of a ledger" in cli("doctor", env=named).stdout
    assert "SAFESPAWN_AUDIT is not set" in cli("doctor").stdout


def test_doctor_says_when_chains_are_too_many() -> None:
    """From where on the ledger itself says it, so does doctor."""
    seen = doctor.examine()
    few, many = ({**seen, "audit": {"ledger": "x", "slots": n, "slots_max": 100, "why": ""}} for n in (89, 90))

    assert "retire old segments" not in doctor.table(few)
    assert "retire old segments" in doctor.table(many)
