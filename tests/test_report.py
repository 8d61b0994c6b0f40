"""The report: what it says, and how it comes to what it says (strategy, pinning, path policy)."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import prctl
import pytest

import helpers
import safespawn
from safespawn import DEVNULL, PIPE, SpawnReport, UnsafeSpawn, guards, run, spawn

PATIENCE = 60.0
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: CAP_SETUID and CAP_CHOWN")


@pytest.fixture
def second_thread() -> Iterator[None]:
    """Keep a second thread alive for the whole test."""
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    yield
    release.set()
    thread.join()


def lessen_and_wait(ready: threading.Event, release: threading.Event) -> None:
    """Give up something, in this thread alone, and stay."""
    prctl.set_no_new_privs(1)
    ready.set()
    release.wait()


@pytest.fixture
def lesser_thread() -> Iterator[None]:
    """Keep a thread with fewer privileges alive: no proof holds beside it."""
    ready, release = threading.Event(), threading.Event()
    thread = threading.Thread(target=lessen_and_wait, args=(ready, release))
    thread.start()
    ready.wait()
    yield
    release.set()
    thread.join()


@pytest.fixture(params=["vfork", "fork"])
def strategy(request: pytest.FixtureRequest) -> str:
    """Return each strategy in turn."""
    return str(request.param)


def report_of(problem: BaseException) -> SpawnReport:
    """Return the report on an exception."""
    report = getattr(problem, "report", None)
    assert isinstance(report, SpawnReport)
    return report


# ------------------------------------------------------------------- its form


def test_report_is_frozen() -> None:
    """Nobody can change a report."""
    report = run(["/bin/true"]).report

    with pytest.raises(dataclasses.FrozenInstanceError):
        report.strategy = "fork"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del report.strategy  # type: ignore[misc]


def test_report_has_the_fields_of_the_contract() -> None:
    """The fields that others rely on are all there."""
    contract = {
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
    }

    assert contract <= {field.name for field in dataclasses.fields(SpawnReport)}


def test_ids_are_uuid7_and_ascend() -> None:
    """Every spawn has its own id, a UUID of version 7 that sorts by time."""
    before = time.time_ns() // 1_000_000
    ids = [run(["/bin/true"]).report.id for _ in range(5)]
    after = time.time_ns() // 1_000_000

    assert all(UUID7.fullmatch(one) for one in ids)
    assert ids == sorted(set(ids))
    assert all(before <= int(one.replace("-", "")[:12], 16) <= after for one in ids)


def test_ids_of_a_forked_child_are_its_own() -> None:
    """A forked process does not give out its parent's ids again."""
    out = helpers.run_snippet(
        """
        from safespawn.audit import new_id
        new_id()
        read, write = os.pipe()
        if not os.fork():
            os.write(write, json.dumps([new_id() for _ in range(50)]).encode())
            os._exit(0)
        mine = [new_id() for _ in range(50)]
        theirs = json.loads(os.read(read, 65536))
        os.wait()
        # What follows the time: the clock alone must not be what keeps them apart.
        out["ids"] = len({one[14:] for one in mine + theirs})
        """
    )

    assert out == {"ids": 100}


# ----------------------------------------------------------------- its values


def test_auto_alone() -> None:
    """A process with one thread spawns by vfork, and the report says why that is safe."""
    done = run(["/bin/true"])
    report = done.report

    assert (report.requested, report.strategy, report.proof) == ("auto", "vfork", "single-threaded")
    assert (report.outcome, report.stage, report.errno) == ("exec", "exec", None)
    assert report.threads == 1
    assert any(reason.startswith("alone-or-apart: ") for reason in report.reasons)
    assert report.window_ns is not None
    assert 0 < report.window_ns < PATIENCE * 1e9


@pytest.mark.parametrize("requested", ["vfork", "fork"])
def test_strategy_by_name(requested: str) -> None:
    """A strategy asked for by name is the one that is used, and fork needs no proof."""
    with spawn(["/bin/cat"], stdin=PIPE, strategy=requested) as process:
        report = process.report
        assert (report.requested, report.strategy, report.outcome) == (requested, requested, "exec")
        assert report.proof == (None if requested == "fork" else "single-threaded")
        assert report.pid == process.pid
        assert report.reasons


def test_credentials_are_ours(strategy: str) -> None:
    """The report has the caller's ids and capability sets as /proc tells them."""
    seen = run(["/bin/true"], strategy=strategy).report.credentials
    status = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    )

    assert seen is not None
    assert (seen.ruid, seen.euid, seen.suid) == os.getresuid()
    assert (seen.rgid, seen.egid, seen.sgid) == os.getresgid()
    assert (seen.effective, seen.permitted, seen.inheritable) == tuple(
        int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh")
    )


def test_executable_is_the_file(strategy: str, program: Callable[..., Path]) -> None:
    """The report has the identity of the very file that ran."""
    path = program("#!/bin/sh\nexit 0\n")
    seen = run([path], strategy=strategy).report.executable
    stat = path.stat()

    assert seen is not None
    assert seen.path == str(path)
    assert (seen.device, seen.inode, seen.size) == (stat.st_dev, stat.st_ino, stat.st_size)
    assert (seen.uid, seen.gid, seen.mode) == (stat.st_uid, stat.st_gid, stat.st_mode)
    assert (seen.mtime_ns, seen.ctime_ns) == (stat.st_mtime_ns, stat.st_ctime_ns)
    assert seen.held
    assert not seen.pinned
    assert seen.sha256 is None


def test_executable_of_a_search(tmp_path: Path, program: Callable[..., Path]) -> None:
    """The report has the path that the search in PATH found, not the name."""
    path = program(name="found-me")

    seen = run(["found-me"], env={"PATH": f"/no/such:{tmp_path}"}).report.executable

    assert seen is not None
    assert seen.path == str(path)


@root_only
def test_executable_that_cannot_be_read(tmp_path: Path) -> None:
    """A program that we may run but not read runs, and the report says that it was not held."""
    path = tmp_path / "secret"
    shutil.copy("/bin/true", path)
    path.chmod(0o711)
    helpers.make_readable(tmp_path)
    path.chmod(0o711)
    out = helpers.run_snippet(
        """
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        done = safespawn.run([secret])
        out["code"], out["held"] = done.returncode, done.report.executable.held
        try:
            safespawn.run([secret], pin=True)
            out["pinned"] = "ran"
        except OSError as problem:
            out["pinned"] = type(problem).__name__
        """,
        secret=str(path),
    )

    assert out == {"code": 0, "held": False, "pinned": "PermissionError"}


def test_report_of_a_missing_program(strategy: str) -> None:
    """A lookup that fails is told with its stage and errno, and no process is named."""
    with pytest.raises(FileNotFoundError) as caught:
        spawn(["/no/such/program"], strategy=strategy)
    report = report_of(caught.value)

    assert (report.outcome, report.stage, report.errno) == ("failed", "lookup", errno.ENOENT)
    assert (report.strategy, report.pid, report.executable) == (strategy, None, None)


def test_report_of_a_failed_exec(strategy: str, program: Callable[..., Path]) -> None:
    """An exec that fails is told with its stage and errno, and the file that it was."""
    path = program("no format")
    with pytest.raises(OSError, match="Exec format error") as caught:
        spawn([path], strategy=strategy)
    report = report_of(caught.value)

    assert (report.outcome, report.stage, report.errno) == ("failed", "exec", errno.ENOEXEC)
    assert report.executable is not None
    assert report.executable.inode == path.stat().st_ino


def test_report_of_a_failed_step(strategy: str) -> None:
    """A step in the child that fails is told by its own stage."""
    with pytest.raises(OSError, match="stage process-group") as caught:
        spawn(["/bin/true"], process_group=1, strategy=strategy)
    report = report_of(caught.value)

    assert (report.outcome, report.stage, report.errno) == ("failed", "process-group", errno.EPERM)


@pytest.mark.threat("T-10")
def test_report_of_a_killed_child(strategy: str) -> None:
    """A child killed just before exec, here by a seccomp filter, is told apart from a program that ran."""
    out = helpers.run_snippet(
        """
        import ctypes, platform, resource, struct
        execve, execveat = {"x86_64": (59, 322), "aarch64": (221, 281)}[platform.machine()]
        # Load the number of the call; kill the process for these two, allow all others.
        program = b"".join(
            struct.pack("=HBBI", *op)
            for op in [(0x20, 0, 0, 0), (0x15, 1, 0, execve), (0x15, 0, 1, execveat), (6, 0, 0, 0x80000000),
                       (6, 0, 0, 0x7FFF0000)]
        )
        buffer = ctypes.create_string_buffer(program, len(program))
        filter = struct.pack("@HP", 5, ctypes.addressof(buffer))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        libc = ctypes.CDLL(None)
        assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
        assert libc.prctl(22, 2, filter, 0, 0) == 0  # PR_SET_SECCOMP
        try:
            safespawn.spawn(["/bin/true"], strategy=strategy)
        except OSError as problem:
            report = problem.report
            out["class"] = type(problem).__name__
            out["report"] = [report.outcome, report.stage, report.strategy]
        """,
        strategy=strategy,
    )

    assert out == {"class": "KilledBeforeExec", "report": ["killed-before-exec", "exec", strategy]}


@root_only
def test_report_of_another_user() -> None:
    """A child with another identity goes by the launcher, and the report has the whole identity."""
    report = run(["/bin/true"], user="nobody").report

    assert (report.requested, report.strategy, report.proof) == ("auto", "launcher", "single-threaded")
    assert any(reason.startswith("drop-apart: ") for reason in report.reasons)
    assert report.identity.uid == 65534
    assert report.identity.gid is not None
    assert report.identity.groups == tuple(sorted(os.getgrouplist("nobody", report.identity.gid)))


def test_report_of_removed_variables() -> None:
    """The report names the variables that the policy took away."""
    report = run(
        ["/bin/true"], env={"LD_PRELOAD": "x", "PATH": "/bin", "MINE": "1"}, env_policy="scrub", env_allow=["MINE"]
    ).report

    assert report.removed_env == ("LD_PRELOAD",)


# ----------------------------------------------------------- the choice itself


#: The sanitizer's library stands before libc, so the lock is off: see test_catch_matrix.py.
needs_lock = pytest.mark.skipif(bool(helpers.PRELOAD), reason="a sanitizer is preloaded")


@needs_lock
@pytest.mark.usefixtures("second_thread")
@pytest.mark.threat("T-02")
def test_auto_with_a_second_thread() -> None:
    """While another thread lives that is like ours, the credential lock is the proof."""
    report = run(["/bin/true"]).report

    assert (report.strategy, report.proof, report.threads) == ("vfork", "locked", 2)
    assert [r for r in report.reasons if r.startswith("changes-wait: ")]


@needs_lock
@pytest.mark.usefixtures("lesser_thread")
@pytest.mark.threat("T-25")
def test_auto_with_a_lesser_thread() -> None:
    """While a thread with fewer privileges lives, auto forks, and says that it saw two threads that differ."""
    report = run(["/bin/true"]).report

    assert (report.strategy, report.proof, report.threads) == ("fork", None, 2)
    (reason,) = report.reasons
    assert reason.startswith("alone-or-apart: 2 threads") and "has other credentials than the rest" in reason


@pytest.mark.usefixtures("lesser_thread")
@pytest.mark.parametrize("options", [{"on_unproven": "refuse"}, {"strategy": "vfork"}])
@pytest.mark.threat("T-02")
def test_refusal_with_a_lesser_thread(options: dict[str, str], tmp_path: Path) -> None:
    """Who wants the proof or nothing gets nothing: UnsafeSpawn by the guard, and nothing runs."""
    marker = tmp_path / "marker"
    with pytest.raises(UnsafeSpawn, match="2 threads") as caught:
        spawn(["/usr/bin/touch", marker], **options)  # type: ignore[arg-type]
    report = report_of(caught.value)

    assert caught.value.guard == "alone-or-apart"
    assert caught.value.errno == errno.EPERM
    assert (report.outcome, report.strategy, report.proof, report.pid) == ("refused", None, None, None)
    assert report.requested == options.get("strategy", "auto")
    assert report.threads == 2
    assert not marker.exists()


@pytest.mark.usefixtures("lesser_thread")
def test_fork_by_name_with_a_lesser_thread() -> None:
    """Fork needs no proof: asked for by name it is given, with on_unproven=refuse too."""
    assert run(["/bin/true"], strategy="fork", on_unproven="refuse").report.strategy == "fork"


def test_choice_follows_the_threads() -> None:
    """When the thread that differs has ended, auto goes by vfork again."""
    ready, release = threading.Event(), threading.Event()
    thread = threading.Thread(target=lessen_and_wait, args=(ready, release))
    thread.start()
    ready.wait()
    during = run(["/bin/true"]).report.strategy
    release.set()
    thread.join()
    helpers.wait_until_alone()

    assert (during, run(["/bin/true"]).report.strategy) == ("fork", "vfork")


@pytest.mark.threat("T-02")
def test_a_process_on_our_memory_is_seen() -> None:
    """A process made by CLONE_VM that is no thread of ours makes auto fork, and says so."""
    out = helpers.run_snippet(
        """
        import ctypes
        libc = ctypes.CDLL(None)
        PAUSE = ctypes.cast(libc.pause, ctypes.c_void_p)
        stack = ctypes.create_string_buffer(1 << 20)
        top = ctypes.addressof(stack) + (1 << 20) - 64
        before = safespawn.run(["/bin/true"]).report
        pid = libc.clone(PAUSE, ctypes.c_void_p(top & ~15), 0x100 | signal.SIGCHLD, None)  # CLONE_VM
        assert pid > 0
        report = safespawn.run(["/bin/true"]).report
        out["strategies"] = [before.strategy, report.strategy]
        out["threads"] = report.threads
        out["why"] = report.reasons
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        out["after"] = safespawn.run(["/bin/true"]).report.strategy
        """
    )

    assert out["strategies"] == ["vfork", "fork"]
    assert out["threads"] == 1
    assert any("another process on our memory" in why for why in out["why"])
    assert out["after"] == "vfork"


@root_only
@pytest.mark.threat("T-19")
def test_vfork_with_another_user_is_refused(tmp_path: Path) -> None:
    """A child that changes credentials never shares memory: vfork by name is refused."""
    marker = tmp_path / "marker"
    for options in ({"user": "nobody"}, {"group": "nogroup"}, {"extra_groups": [65534]}):
        with pytest.raises(UnsafeSpawn, match="credentials") as caught:
            spawn(["/usr/bin/touch", marker], strategy="vfork", **options)  # type: ignore[arg-type]
        assert caught.value.guard == "drop-apart"
        assert report_of(caught.value).outcome == "refused"

    assert not marker.exists()


@root_only
def test_our_own_identity_changes_nothing() -> None:
    """Being asked for what we are already takes no change of credentials, so vfork stays."""
    out = helpers.run_snippet(
        """
        os.setgroups([])
        report = safespawn.run(["/bin/true"], user=0, group=0, extra_groups=[], strategy="vfork").report
        out["strategy"] = report.strategy
        """
    )

    assert out == {"strategy": "vfork"}


# ------------------------------------------------------------------- guards


@pytest.mark.threat("T-02")
def test_require_fork_is_for_good() -> None:
    """After require("fork") memory is never shared again, and nothing takes that back."""
    out = helpers.run_snippet(
        """
        from safespawn import guards, UnsafeSpawn
        out["before"] = safespawn.run(["/bin/true"]).report.strategy
        guards.require("fork")
        report = safespawn.run(["/bin/true"]).report
        out["after"] = report.strategy
        out["told"] = any("'fork' is required" in why for why in report.reasons)
        refused = []
        for options in ({"strategy": "vfork"}, {"on_unproven": "refuse"}):
            try:
                safespawn.run(["/bin/true"], **options)
            except UnsafeSpawn as problem:
                refused.append(problem.guard)
        out["refused"] = refused
        weaker = 0
        for proof in ("locked", "quiesced", "sealed", "single-threaded"):
            try:
                guards.require(proof)
            except UnsafeSpawn:
                weaker += 1
        out["weaker"] = weaker
        guards.require("fork")
        out["status"] = [guards.status()["required"], guards.status()["strategy"]]
        out["still"] = safespawn.run(["/bin/true"]).report.strategy
        """
    )

    assert out == {
        "before": "vfork",
        "after": "fork",
        "told": True,
        "refused": ["alone-or-apart", "alone-or-apart"],
        "weaker": 4,
        "status": ["fork", "fork"],
        "still": "fork",
    }


def test_require_only_tightens() -> None:
    """From weak to strong every step is accepted, a step back is UnsafeSpawn and changes nothing."""
    out = helpers.run_snippet(
        """
        from safespawn import guards, UnsafeSpawn
        seen = []
        for proof in ("locked", "locked", "quiesced", "sealed", "quiesced", "single-threaded", "sealed"):
            try:
                guards.require(proof)
                seen.append(guards.status()["required"])
            except UnsafeSpawn as problem:
                seen.append("refused at " + guards.status()["required"])
        out["seen"] = seen
        out["strategy"] = safespawn.run(["/bin/true"]).report.strategy
        """
    )

    assert out["seen"] == [
        "locked",
        "locked",
        "quiesced",
        "sealed",
        "refused at sealed",
        "single-threaded",
        "refused at single-threaded",
    ]
    assert out["strategy"] == "vfork"


@pytest.mark.parametrize("name", ["", "vfork", "none", "Fork"])
def test_require_refuses_unknown_names(name: str) -> None:
    """A proof that nobody knows is a ValueError that names it, and requires nothing."""
    before = guards.status()["required"]

    with pytest.raises(ValueError, match=f"'{name}'"):
        guards.require(name)

    assert guards.status()["required"] == before


def test_require_survives_a_fork() -> None:
    """A forked child is bound by what its parent required."""
    out = helpers.run_snippet(
        """
        from safespawn import guards
        guards.require("fork")
        pid = os.fork()
        if not pid:
            os._exit(0 if safespawn.run(["/bin/true"]).report.strategy == "fork" else 1)
        out["code"] = os.waitpid(pid, 0)[1]
        """
    )

    assert out == {"code": 0}


def test_status_alone() -> None:
    """Status tells what auto would do now, and why, as the next spawn then does it."""
    seen = guards.status()
    report = run(["/bin/true"]).report

    assert seen["strategy"] == report.strategy == "vfork"
    assert tuple(seen["reasons"]) == report.reasons
    assert seen["threads"] == 1
    assert set(seen["proofs"]) == {"locked", "quiesced", "sealed", "single-threaded"}
    assert seen["guards"] == {name: guard.statement for name, guard in guards.registry.items()}
    assert seen["attributes"].no_new_privs is False
    assert seen["required"] == "locked"


@needs_lock
@pytest.mark.usefixtures("second_thread")
def test_status_with_a_second_thread() -> None:
    """Status follows the facts."""
    seen = guards.status()

    assert (seen["strategy"], seen["threads"]) == ("vfork", 2)
    assert "2 threads" in seen["proofs"]["single-threaded"]
    assert seen["proofs"]["locked"] == "holds"


def test_status_reads_our_attributes() -> None:
    """Status tells no_new_privs, dumpable and the subreaper flag as they are set."""
    out = helpers.run_snippet(
        """
        import dataclasses, prctl
        from safespawn import guards
        prctl.set_no_new_privs(1)
        prctl.set_dumpable(0)
        prctl.set_child_subreaper(1)
        seen = guards.status()["attributes"]
        out.update(nnp=seen.no_new_privs, dumpable=seen.dumpable, subreaper=seen.child_subreaper)
        """
    )

    assert out == {"nnp": True, "dumpable": False, "subreaper": True}


def test_registry() -> None:
    """Every guard has its own id, a statement, threats, places and a source that exists."""
    package = Path(safespawn.__file__).parent
    threats = [threat for guard in guards.registry.values() for threat in guard.threats]

    for name, guard in guards.registry.items():
        assert guard.id == name
        assert re.fullmatch(r"[a-z]+(-[a-z]+)+", name)
        assert guard.statement
        assert guard.threats
        assert all(re.fullmatch(r"T-\d\d", threat) for threat in guard.threats)
        assert set(guard.enforced) <= {"parent", "child", "launcher", "helper", "kernel"}
        assert guard.enforced
        # C sources are not part of an installed package.
        assert guard.source.endswith(".c") or (package / guard.source).is_file()
    assert len(threats) == len(set(threats))
    with pytest.raises(dataclasses.FrozenInstanceError):
        guards.registry["signals-blocked"].statement = ""  # type: ignore[misc]


# -------------------------------------------------------------------- pinning


def sha256(path: Path | str) -> str:
    """Return the digest of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.mark.parametrize("deadline", [None, PATIENCE])
@pytest.mark.threat("T-14")
def test_pinned(strategy: str, deadline: float | None) -> None:
    """A pinned program runs, and its digest is in the report."""
    done = run(["/bin/echo", "ran"], pin=True, stdout=PIPE, strategy=strategy, deadline=deadline)
    seen = done.report.executable

    assert done.stdout == b"ran\n"
    assert seen is not None
    assert seen.pinned
    assert seen.sha256 == sha256("/bin/echo")
    assert any(reason.startswith("exe-pinned: ") for reason in done.report.reasons)


@pytest.mark.threat("T-14")
def test_right_digest(strategy: str) -> None:
    """The right digest lets the program run, and pins it without being asked."""
    done = run(["/bin/echo", "ran"], digest=f"sha256:{sha256('/bin/echo')}", stdout=PIPE, strategy=strategy)

    assert done.stdout == b"ran\n"
    assert done.report.executable is not None
    assert done.report.executable.pinned


@pytest.mark.parametrize("deadline", [None, PATIENCE])
@pytest.mark.threat("T-14")
def test_wrong_digest(strategy: str, tmp_path: Path, deadline: float | None) -> None:
    """A program with another digest is refused by exe-pinned, with both digests, and nothing runs."""
    marker = tmp_path / "marker"
    wrong = f"sha256:{'0' * 64}"
    with pytest.raises(UnsafeSpawn, match=wrong) as caught:
        spawn(["/usr/bin/touch", marker], digest=wrong, strategy=strategy, deadline=deadline)
    report = report_of(caught.value)

    assert caught.value.guard == "exe-pinned"
    assert report.outcome == "refused"
    assert report.executable is not None
    assert report.executable.sha256 == sha256("/usr/bin/touch")
    assert not marker.exists()


@pytest.mark.threat("T-14")
def test_pinned_binary_leaks_no_descriptor(strategy: str) -> None:
    """The program that was run by descriptor does not have that descriptor."""
    done = run(
        helpers.probe_argv("state"), pin=True, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, strategy=strategy
    )

    assert sorted(json.loads(done.stdout)["fds"]) == ["0", "1", "2"]


@pytest.mark.threat("T-14")
def test_pinned_script(strategy: str, program: Callable[..., Path]) -> None:
    """A pinned script runs, by its descriptor: its interpreter gets /dev/fd/N and nothing else."""
    script = program('#!/bin/sh\necho "$0" "$1"\nls -l /proc/$$/fd\n')
    done = run([script, "an argument"], pin=True, stdin=DEVNULL, stdout=PIPE, strategy=strategy)
    first, _, rest = done.stdout.partition(b"\n")
    match = re.fullmatch(rb"/dev/fd/(\d+) an argument", first)

    assert match
    number = match.group(1).decode()
    assert f"{number} -> {script}" in rest.decode()
    assert done.report.executable is not None
    assert done.report.executable.sha256 == sha256(script)
    assert done.report.executable.interpreter == "/bin/sh"


@pytest.mark.threat("T-14")
def test_pinned_script_beside_other_descriptors(program: Callable[..., Path]) -> None:
    """The descriptor of a pinned script does not take the place of one that the caller named."""
    script = program("#!/bin/sh\ncat <&9\n")
    read, write = os.pipe()
    os.write(write, b"from nine")
    os.close(write)

    done = run([script], pin=True, stdout=PIPE, fds={9: read})
    os.close(read)

    assert done.stdout == b"from nine"


@pytest.mark.threat("T-14")
def test_pinned_file_is_what_runs(strategy: str, program: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file put in the place of the pinned one after the look does not run."""
    script = program("#!/bin/sh\necho good\n")
    evil = program("#!/bin/sh\necho evil\n", name="evil")
    from safespawn import _executable

    hashing = _executable._sha256

    def swap_after_hashing(*arguments: int) -> str:
        digest = hashing(*arguments)
        if evil.exists():
            evil.rename(script)
        return digest

    monkeypatch.setattr(_executable, "_sha256", swap_after_hashing)
    done = run([script], pin=True, stdout=PIPE, strategy=strategy)

    assert done.stdout == b"good\n"
    assert script.read_text(encoding="ascii").endswith("evil\n")


def test_pin_leaves_argv_alone() -> None:
    """A pinned program sees the argv that was given, not a descriptor's name."""
    done = run(["my own name", "-c", 'echo "$0"'], executable="/bin/sh", pin=True, stdout=PIPE)

    assert done.stdout == b"my own name\n"


# ---------------------------------------------------------------- path policy


@pytest.fixture
def trusted_dir() -> Iterator[Path]:
    """Return a directory that only root can replace: none below /tmp is one."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a directory where only root writes")
    where = Path(tempfile.mkdtemp(prefix="safespawn-test-", dir="/var/lib"))
    try:
        yield where
    finally:
        shutil.rmtree(where)


def script(path: Path, text: str = "#!/bin/sh\nexit 0\n") -> Path:
    """Write an executable script."""
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def refused(path: Path | str, name: Path | str, **options: object) -> None:
    """Expect path-trusted to refuse a program and to name the component that is to blame."""
    with pytest.raises(UnsafeSpawn) as caught:
        spawn([path], path_policy="trusted", **options)  # type: ignore[arg-type]
    assert caught.value.guard == "path-trusted"
    assert f"{name} " in str(caught.value)
    assert report_of(caught.value).outcome == "refused"


@pytest.mark.parametrize("deadline", [None, PATIENCE])
@pytest.mark.threat("T-15")
def test_trusted_program(strategy: str, deadline: float | None) -> None:
    """A program of the system is trusted, by its path or found in PATH, and the report says so."""
    for name in ("/usr/bin/true", "true"):
        report = run([name], path_policy="trusted", strategy=strategy, deadline=deadline).report
        assert report.outcome == "exec"
        assert any(reason.startswith("path-trusted: ") for reason in report.reasons)


@pytest.mark.threat("T-15")
def test_trusted_script(trusted_dir: Path, strategy: str) -> None:
    """A script of ours with a trusted interpreter runs."""
    assert run([script(trusted_dir / "ok")], path_policy="trusted", strategy=strategy).returncode == 0


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
@pytest.mark.threat("T-15")
def test_directory_that_others_write(trusted_dir: Path, mode: int) -> None:
    """A directory on the way that group or others can write is refused, sticky or not."""
    (trusted_dir / "open").mkdir()
    (trusted_dir / "open" / "deep").mkdir()
    path = script(trusted_dir / "open" / "deep" / "program")
    assert run([path], path_policy="trusted").returncode == 0
    (trusted_dir / "open").chmod(mode)

    refused(path, trusted_dir / "open")


@pytest.mark.threat("T-15")
def test_program_below_tmp() -> None:
    """A program below the sticky /tmp is refused, whoever owns it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as where:
        refused(script(Path(where) / "program"), "/tmp")


@pytest.mark.parametrize("mode", [0o775, 0o757])
@pytest.mark.threat("T-15")
def test_program_that_others_write(trusted_dir: Path, mode: int) -> None:
    """A program that group or others can write is refused."""
    path = script(trusted_dir / "program")
    path.chmod(mode)

    refused(path, path)


@pytest.mark.threat("T-15")
def test_owned_by_somebody_else(trusted_dir: Path) -> None:
    """A program or directory of another user is refused."""
    path = script(trusted_dir / "program")
    os.chown(path, 65534, 65534)
    refused(path, path)

    (trusted_dir / "theirs").mkdir()
    inner = script(trusted_dir / "theirs" / "program")
    os.chown(trusted_dir / "theirs", 65534, 65534)
    refused(inner, trusted_dir / "theirs")


@pytest.mark.threat("T-15")
def test_link_into_an_untrusted_place(trusted_dir: Path) -> None:
    """A link is judged by where it leads, also when a directory on the way is the link."""
    (trusted_dir / "open").mkdir()
    target = script(trusted_dir / "open" / "program")
    (trusted_dir / "open").chmod(0o777)
    (trusted_dir / "link").symlink_to(target)
    (trusted_dir / "dirlink").symlink_to(trusted_dir / "open")

    refused(trusted_dir / "link", trusted_dir / "open")
    refused(trusted_dir / "dirlink" / "program", trusted_dir / "open")


@pytest.mark.threat("T-15")
def test_link_in_an_untrusted_place(trusted_dir: Path) -> None:
    """A link that others can turn leads to a trusted program: that one runs, by its real path."""
    with tempfile.TemporaryDirectory(dir="/tmp") as where:
        link = Path(where) / "link"
        link.symlink_to(script(trusted_dir / "program", "#!/bin/sh\necho $0\n"))
        done = run([link], path_policy="trusted", stdout=PIPE)

    assert done.stdout.decode() == f"{trusted_dir / 'program'}\n"


@pytest.mark.parametrize("deadline", [None, PATIENCE])
@pytest.mark.threat("T-15")
def test_interpreter_is_judged_too(trusted_dir: Path, deadline: float | None) -> None:
    """A trusted script with an interpreter that others can replace is refused, two deep as well."""
    with tempfile.TemporaryDirectory(dir="/tmp") as where:
        shell = Path(where) / "sh"
        shutil.copy("/bin/sh", shell)
        one = script(trusted_dir / "one", f"#!{shell} -e\nexit 0\n")
        two = script(trusted_dir / "two", f"#! {one}\nexit 0\n")
        assert run([one]).returncode == 0

        refused(one, "/tmp", deadline=deadline)
        refused(two, "/tmp", deadline=deadline)


@pytest.mark.threat("T-15")
def test_untrusted_and_pinned(trusted_dir: Path) -> None:
    """Pinning does not make up for an untrusted path, and both together work for a trusted one."""
    path = script(trusted_dir / "program")
    done = run([path], path_policy="trusted", pin=True)
    assert done.returncode == 0
    assert {r.partition(":")[0] for r in done.report.reasons} >= {"path-trusted", "exe-pinned"}
    path.chmod(0o777)

    refused(path, path, pin=True)


@pytest.mark.threat("T-15")
def test_refusals_leave_nothing_open(trusted_dir: Path) -> None:
    """Refusals close the program, its directory and the pipes that were made; the fixture looks."""
    path = script(trusted_dir / "program")
    path.chmod(0o777)
    for _ in range(3):
        with contextlib.suppress(UnsafeSpawn):
            spawn([path], path_policy="trusted", pin=True, stdin=PIPE, stdout=PIPE, cwd="/")

    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


def test_handle_keeps_no_more_than_its_report_needs() -> None:
    """A thousand results in a list hold reports, not the tables of the lookups behind them."""
    out = helpers.run_snippet(
        """
import tracemalloc
safespawn.run(["/bin/true"])
tracemalloc.start()
before = tracemalloc.get_traced_memory()[0]
kept = [safespawn.run(["/bin/true"]) for _ in range(200)]
out["bytes"] = (tracemalloc.get_traced_memory()[0] - before) / len(kept)
out["strategy"] = kept[0].report.strategy
"""
    )
    assert out["strategy"] == "vfork"
    assert out["bytes"] < 4500
