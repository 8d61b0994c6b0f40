"""Typical uses of the public API, for the type checker. Checked with mypy --strict, never run."""

from __future__ import annotations

import logging
import os
import re
import resource
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from typing_extensions import assert_type

import safespawn
from safespawn import (
    DEVNULL,
    PIPE,
    STDOUT,
    AuditError,
    Command,
    CompletedProcess,
    KilledBeforeExec,
    Process,
    RaceDetected,
    Secret,
    SpawnError,
    SpawnReport,
    SpawnTimeout,
    UnsafeSpawn,
    audit,
    guards,
    policy,
)
from safespawn.audit import mirrors

# ---------------------------------------------------------------- what run takes and returns

assert_type(safespawn.run(["true"]), CompletedProcess)
assert_type(safespawn.run("true"), CompletedProcess)
assert_type(safespawn.run(b"true"), CompletedProcess)
assert_type(safespawn.run(Path("/bin/true")), CompletedProcess)
assert_type(safespawn.run((b"cat", Path("/etc/hostname"), "-n")), CompletedProcess)
assert_type(safespawn.run(word for word in ("echo", "x")), CompletedProcess)

done = safespawn.run(
    ["cat"],
    input=b"text",
    capture_output=True,
    timeout=1.5,
    check=True,
    text=False,
    encoding="utf-8",
    errors="replace",
    stdin=None,
    user="nobody",
)
assert_type(done.returncode, int)
assert_type(done.report, SpawnReport)
done.check_returncode()
safespawn.run(["cat"], input="text", text=True)
status: int = safespawn.system("true")
safespawn.system(Path("/bin/true"))
safespawn.popen("true", "w", 1).close()

# ------------------------------------------------------------------------- every option

with open("/dev/null", "rb") as file, open("/dev/null", encoding="utf-8") as text_file:
    process = safespawn.spawn(
        ["program", b"argument", Path("/etc")],
        executable=Path("/bin/true"),
        env={"LANG": "C", "HOME": "/root"},
        cwd="/",
        root=Path("/srv/root"),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        fds={5: 3, 6: file.fileno()},
        pass_fds=[7, 8],
        start_new_session=True,
        process_group=None,
        controlling_terminal=None,
        umask=0o022,
        nice=5,
        scheduler=(os.SCHED_FIFO, 10),
        cpu_affinity={0, 1},
        rlimits={resource.RLIMIT_NOFILE: 256, resource.RLIMIT_CORE: (0, 0)},
        cgroup="/sys/fs/cgroup/one",
        pdeathsig=signal.SIGTERM,
        restore_signals=True,
        sigmask=[signal.SIGUSR1],
        sigdefault={signal.SIGHUP, 2},
        subreaper=True,
        no_new_privs=True,
        user=65534,
        group="nogroup",
        extra_groups=["audio", 44],
        caps=["net_bind_service", 5],
        securebits=("noroot", "noroot_locked"),
        namespaces={"mount": None, "user": {"users": [(0, 1000, 1)], "groups": [(0, 1000, 1)]}},
        landlock={"abi": 3, "read": ["/usr", Path("/etc")], "write": (b"/tmp",), "execute": ["/usr/bin"]},
        seccomp=bytes.fromhex("060000000000ff7f"),
        env_policy="scrub",
        env_allow=("LD_LIBRARY_PATH",),
        pin=True,
        digest="sha256:" + 64 * "0",
        path_policy="trusted",
        deadline=2,
        strategy="auto",
        on_unproven="refuse",
        audit_tags={"ticket": "42"},
        redact=["--pin=([0-9]+)", re.compile("x"), re.compile(b"x")],
    )
    safespawn.spawn(["true"], cwd=3, stdin=file, stdout=file, stderr=text_file)

# The other forms of the options that have more than one.
safespawn.spawn(["true"], root=3, cgroup=4, scheduler=os.SCHED_BATCH, strategy="launcher")
safespawn.run(["true"], caps=(), securebits=set[str](), namespaces={"net", "uts"}, landlock={}, root=b"/srv")
safespawn.run(["true"], root=None, cgroup=None, scheduler=None, caps=None, securebits=None)
safespawn.run(["true"], namespaces=None, landlock=None, seccomp=None)
safespawn.run(["true"], namespaces=["user"], caps=range(3), cgroup=Path("/sys/fs/cgroup/one"))

# Mappings as callers have them: their key types are what they are.
variables: dict[str, str] = {"LANG": "C"}
raw_variables: dict[bytes, bytes] = {b"LANG": b"C"}
mixed_variables: dict[str, str | bytes | Path] = {"LANG": b"C", "HOME": Path("/root")}
limits: dict[int, int] = {resource.RLIMIT_NOFILE: 256}
safespawn.spawn(["true"], env=os.environ, rlimits=limits)
safespawn.spawn(["true"], env=variables)
safespawn.spawn(["true"], env=raw_variables)
safespawn.spawn(["true"], env=mixed_variables)
safespawn.spawn(["true"], env={b"PATH": "/bin"})
assert_type(process, Process)

# ------------------------------------------------------------------------------ secrets

secret = Secret("hunter2")
assert_type(secret, Secret[str])
assert_type(secret.reveal(), str)
assert_type(Secret(b"x").reveal(), bytes)
assert_type("--password=" + secret, Secret[str])
assert_type(secret + "@host", Secret[str])
assert_type(secret + secret, Secret[str])
assert_type(secret.shown, str)
secret_variables: dict[str, str | Secret[str]] = {"PASSWORD": secret, "LANG": "C"}
safespawn.run(["tool", "--password=" + secret, b"-p" + Secret(b"x")], env=secret_variables)

# ---------------------------------------------------------------------------- the handle

assert_type(process.args, tuple[bytes | Secret[Any], ...])
assert_type(process.pid, int)
assert_type(process.pidfd, int)
assert_type(process.returncode, int | None)
assert_type(process.poll(), int | None)
assert_type(process.wait(), int)
assert_type(process.wait(timeout=1), int)
assert_type(process.stdin, IO[bytes] | None)
assert_type(process.stdout, IO[bytes] | None)
assert_type(process.stderr, IO[bytes] | None)
assert_type(process.communicate(), tuple[bytes | None, bytes | None])
assert_type(process.communicate(b"text", timeout=0.5), tuple[bytes | None, bytes | None])
process.send_signal(signal.SIGHUP)
process.terminate()
process.kill()
process.kill_tree()
with safespawn.spawn(["true"]) as entered:
    assert_type(entered, Process)

# ---------------------------------------------------------------------------- the report

report = process.report
assert_type(report, SpawnReport)
assert_type(report.id, str)
assert_type(report.requested, str)
assert_type(report.strategy, str | None)
assert_type(report.proof, str | None)
assert_type(report.reasons, tuple[str, ...])
assert_type(report.outcome, str)
assert_type(report.stage, str | None)
assert_type(report.errno, int | None)
assert_type(report.pid, int | None)
assert_type(report.window_ns, int | None)
assert_type(report.threads, int | None)
assert_type(report.removed_env, tuple[str, ...])
if report.executable is not None:
    assert_type(report.executable.sha256, str | None)
    assert_type(report.executable.held, bool)
if report.credentials is not None:
    assert_type(report.credentials.euid, int)
assert_type(report.identity.groups, tuple[int, ...] | None)

# ------------------------------------------------------------------------ the exceptions


def handle() -> int:
    """Catch what a spawn may raise, the narrow before the wide."""
    try:
        return safespawn.run(["true"], deadline=1.0).returncode
    except SpawnTimeout as late:
        as_timeout: TimeoutError = late
        raise as_timeout from None
    except RaceDetected as race:
        as_unsafe: UnsafeSpawn = race
        assert_type(as_unsafe.guard, str | None)
    except UnsafeSpawn as unsafe:
        assert_type(unsafe.report, SpawnReport | None)
    except (KilledBeforeExec, AuditError) as failed:
        assert_type(failed.stage, str | None)
    except SpawnError as error:
        as_os_error: OSError = error
        assert_type(as_os_error.errno, int | None)
    return 125


# ------------------------------------------------------------------- audit and guards

assert_type(audit.open("/var/log/spawns.jsonl"), audit.Ledger)
with audit.open(Path("/var/log/spawns.jsonl"), mode="durable") as ledger:
    assert_type(ledger, audit.Ledger)
    assert_type(ledger.closed, bool)
    assert_type(ledger.lost, int)
ledger.close()
with audit.context(ticket="42", who="me"):
    pass
context: AbstractContextManager[None] = audit.context(ticket="42")

guards.require("single-threaded")
assert_type(guards.arm(wait=0.5, guard_foreign=True), dict[str, Any])
assert_type(guards.arm()["state"], Any)
with guards.credential_change() as nothing:
    assert_type(nothing, None)
guards.seal()
assert_type(guards.status(), dict[str, Any])
assert_type(policy.load(Path("/etc/safespawn.toml")), policy.Policy)
policy.apply(policy.load("/etc/safespawn.toml"))
assert_type(policy.applied(), policy.Policy | None)
try:
    policy.load("/etc/safespawn.toml")
except policy.PolicyError as wrong:
    assert_type((wrong.path, wrong.line, wrong.key), tuple[str | None, int | None, str | None])
assert_type(guards.registry, dict[str, guards.Guard])
guard = guards.registry["creds-agree"]
assert_type(guard.threats, tuple[str, ...])
assert_type(guard.statement, str)

# ------------------------------------------------------------------------ the mirrors

mirrors.Logging(logging.getLogger("audit"), logging.WARNING, events={"spawn.denied"}, name="denials")
mirrors.Journald(Path("/run/systemd/journal/socket"), events=["checkpoint"])
mirrors.Syslog()
mirrors.Syslog(("collector.example", 514), "udp", facility="local0", timeout=2.5)
mirrors.LinuxAudit(events=None)
mirrors.OpenTelemetry()


class Pipe(mirrors.Mirror):
    """A mirror that somebody wrote themselves."""

    def send(self, line: bytes) -> None:
        """Write the line."""
        os.write(5, line + b"\n")


assert_type(Pipe("pipe", {"checkpoint"}).check(), str | None)

# ------------------------------------------------------------------------- many at once

commands: list[Command | list[str]] = [Command(["true"], umask=0o077), Command(iter(("echo", b"x"))), ["true"]]
safespawn.spawn_many([("true", b"x"), (b"echo", Path("/"))])
assert_type(safespawn.spawn_many(commands), list[Process])
assert_type(safespawn.spawn_many(iter(commands), at_once=4, return_errors=False), list[Process])
assert_type(safespawn.spawn_many(commands, return_errors=True), list[Process | Exception])
assert_type(safespawn.spawn_many(commands, return_errors=bool(status)), list[Process | Exception])


def started() -> tuple[Process | Exception, ...]:
    """Return what came of each."""
    try:
        return tuple(safespawn.spawn_many(commands))
    except safespawn.SpawnManyError as problem:
        return problem.results


# ----------------------------------------------------- what the checker must not let through
#
# mypy reports an ignore that nothing needs, so each of these must be an error.

safespawn.spawn("true --option")  # a str is an iterable of str: `_checks` refuses it
safespawn.spawn(["true"], colour=1)  # type: ignore[call-arg]
guards.arm(0.5)  # type: ignore[call-arg]
policy.apply("/etc/safespawn.toml")  # type: ignore[arg-type]
guards.arm(wait="1")  # type: ignore[arg-type]
safespawn.spawn(["true"], None)  # type: ignore[call-arg]
safespawn.spawn([1])  # type: ignore[list-item]
safespawn.spawn(["true"], strategy="posix")  # type: ignore[arg-type]
safespawn.spawn_many(["true", 1])  # type: ignore[list-item]
safespawn.spawn_many([["true"]], strategy="clone")  # type: ignore[call-overload]
Command(["true"], colour=1)  # type: ignore[call-arg]
safespawn.spawn(["true"], on_unproven="pray")  # type: ignore[arg-type]
safespawn.spawn(["true"], env_policy="user ")  # type: ignore[arg-type]
safespawn.spawn(["true"], path_policy=None)  # type: ignore[arg-type]
safespawn.spawn(["true"], pin=None)  # type: ignore[arg-type]
safespawn.spawn(["true"], deadline="2")  # type: ignore[arg-type]
safespawn.spawn(["true"], fds=[3, 4])  # type: ignore[arg-type]
safespawn.spawn(["true"], root=3.5)  # type: ignore[arg-type]
safespawn.spawn(["true"], cgroup=["/sys/fs/cgroup"])  # type: ignore[arg-type]
safespawn.spawn(["true"], scheduler="fifo")  # type: ignore[arg-type]
safespawn.spawn(["true"], scheduler=(1, 5, 9))  # type: ignore[arg-type]
safespawn.spawn(["true"], caps=5)  # type: ignore[arg-type]
safespawn.spawn(["true"], securebits=[1])  # type: ignore[list-item]
safespawn.spawn(["true"], namespaces={1: None})  # type: ignore[dict-item]
safespawn.spawn(["true"], namespaces=0x20000)  # type: ignore[arg-type]
safespawn.spawn(["true"], landlock={"delete": ["/"]})  # type: ignore[arg-type]
safespawn.spawn(["true"], landlock=["/"])  # type: ignore[arg-type]
safespawn.spawn(["true"], seccomp="06")  # type: ignore[arg-type]
safespawn.spawn(["true"], audit_tags={"ticket": 42})  # type: ignore[dict-item]
safespawn.spawn(["true"], redact=[3])  # type: ignore[list-item]
safespawn.spawn(["true"], executable=secret)  # type: ignore[arg-type]
safespawn.run(["cat"], input=secret)  # type: ignore[arg-type]
safespawn.run(secret)  # type: ignore[arg-type]
b"x" + secret  # type: ignore[operator]
Secret(1)  # type: ignore[type-var]
safespawn.run(["true"], shell=True)  # type: ignore[call-arg]
safespawn.run(["true"], preexec_fn=print)  # type: ignore[call-arg]
audit.open("/x", mode="sometimes")  # type: ignore[arg-type]
audit.context(ticket=42)  # type: ignore[arg-type]
mirrors.Syslog("/dev/log", "tls")  # type: ignore[arg-type]
mirrors.LinuxAudit({"checkpoint"})  # type: ignore[call-arg]
mirrors.Mirror("nothing")  # type: ignore[abstract]
process.pid = 1  # type: ignore[misc]
report.outcome = "exec"  # type: ignore[misc]


class Child(Process):  # type: ignore[misc]
    """Handles are final."""
