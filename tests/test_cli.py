"""The command line, as a person or a service manager uses it."""

from __future__ import annotations

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
from safespawn import guards

PATIENCE = 20.0
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
        (["--rlimit", "nofile", "--", "true"], "nofile"),
        (["--rlimit", "nothing=1", "--", "true"], "nothing"),
        (["--rlimit", "core=1:2:3", "--", "true"], "1:2:3"),
        (["--rlimit", "core=x", "--", "true"], "x"),
        (["--rlimit", "core=2:1", "--", "true"], "above hard"),
        (["--env", "NOVALUE", "--", "true"], "NOVALUE"),
        (["--tag", "=x", "--", "true"], "=x"),
        (["--pdeathsig", "SIGNOTHING", "--", "true"], "SIGNOTHING"),
        (["--digest", "md5:00", "--", "true"], "md5:00"),
        (["--deadline", "-1", "--", "true"], "-1"),
        (["--strategy", "magic", "--", "true"], "magic"),
        (["--env-policy", "none", "--", "true"], "none"),
        (["--env-allow", "X", "--", "true"], "env_allow"),
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
    for option in ("--user", "--pin", "--audit", "--report", "--deadline"):
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


@pytest.mark.parametrize("strategy", ["auto", "vfork", "fork"])
def test_strategy(strategy: str) -> None:
    """--strategy is the one that is used; auto picks vfork in a process with one thread."""
    report = json.loads(cli("run", "--strategy", strategy, "--report", "--", "/bin/true").stderr)

    assert report["requested"] == strategy
    assert report["strategy"] == ("fork" if strategy == "fork" else "vfork")


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
    for heading in ("machine", "kernel features", "this process", "proofs"):
        assert re.search(f"(?m)^{heading}", done.stdout)


def test_doctor_changes_nothing(tmp_path: Path) -> None:
    """Doctor only looks: no ledger is opened, also where the environment names one."""
    ledger = tmp_path / "ledger"
    done = cli("doctor", "--json", env={**os.environ, "SAFESPAWN_AUDIT": str(ledger)})

    assert done.returncode == 0
    assert json.loads(done.stdout)["audit"] == str(ledger)
    assert not ledger.exists()
