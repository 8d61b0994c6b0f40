"""The launcher of the other machine: built for aarch64, and run by an emulator where we are not one.

qemu-user passes system calls on to our kernel, which judges them as any others: seals, ids,
capabilities, namespaces and limits are real. Three calls it has not, and each has a test of what
the launcher does then:

* set_robust_list: the kernel would walk a list in the memory of the emulated program, by addresses
  that are not its own (linux-user/syscall.c of qemu says so). The launcher names its list before
  anything else, so all other tests run one that was compiled without that call.
* seccomp: a filter would judge the calls of the emulator.
* execveat: unknown before qemu 8.
"""

from __future__ import annotations

import errno
import os
import runpy
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import helpers
import launching
from launching import NONCE, SEALS, memfd, plans
from safespawn import _binding

pytestmark = [
    pytest.mark.threat("T-29"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it becomes another user"),
]

LIB = _binding.lib
COMPILER = "aarch64-linux-gnu-gcc"
NATIVE = os.uname().machine == "aarch64"

TELLER = r"""
#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

static void
tell_status(void)
{
	char line[4096];
	FILE *status = fopen("/proc/self/status", "r");

	while (status && fgets(line, sizeof(line), status))
		if (!strncmp(line, "Uid:", 4) || !strncmp(line, "Gid:", 4) || !strncmp(line, "Groups:", 7) ||
		    !strncmp(line, "Cap", 3) || !strncmp(line, "NoNewPrivs:", 11) || !strncmp(line, "Umask:", 6) ||
		    !strncmp(line, "Cpus_allowed_list:", 18))
			fputs(line, stdout);
}

static void
tell_descriptors(void)
{
	int fd;

	printf("open:");
	for (fd = 0; fd < 64; fd++) {
		char path[32], real[256] = "";

		sprintf(path, "/proc/self/fd/%d", fd);
		/* The emulator has some of its own, but no pipes. */
		if (readlink(path, real, sizeof(real) - 1) > 0 && (fd < 3 || strstr(real, "pipe:")))
			printf(" %d", fd);
	}
	printf("\n");
}

int
main(int argc, char **argv)
{
	struct rlimit core;
	char text[4096];
	sigset_t mask;
	int i;

	for (i = 1; i < argc; i++)
		printf("argv: %s\n", argv[i]);
	for (i = 0; environ[i]; i++)
		printf("env: %s\n", environ[i]);
	tell_status();
	tell_descriptors();
	getrlimit(RLIMIT_CORE, &core);
	printf("core: %llu %llu\n", (unsigned long long)core.rlim_cur, (unsigned long long)core.rlim_max);
	printf("nice: %d\n", getpriority(PRIO_PROCESS, 0));
	printf("policy: %d\n", sched_getscheduler(0));
	printf("session: %s\n", getsid(0) == getpid() ? "own" : "inherited");
	printf("group: %s\n", getpgrp() == getpid() ? "own" : "inherited");
	printf("securebits: %d\n", prctl(PR_GET_SECUREBITS));
	i = 0;
	prctl(PR_GET_PDEATHSIG, &i);
	printf("pdeathsig: %d\n", i);
	sigprocmask(SIG_BLOCK, NULL, &mask);
	for (i = 1; i < 32; i++)
		if (sigismember(&mask, i))
			printf("blocked: %d\n", i);
	printf("cwd: %s\n", getcwd(text, sizeof(text)));
	i = (int)readlink("/proc/self/ns/uts", text, sizeof(text) - 1);
	printf("uts: %.*s\n", i, text);
	return 7;
}
"""


def _compiler() -> str:
    found = shutil.which(COMPILER)
    if found is None:
        pytest.skip(f"{COMPILER} is not installed")
    return found


def _emulator() -> list[str]:
    if NATIVE:
        return []
    found = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if found is None:
        pytest.skip("qemu-aarch64 (package qemu-user) is not installed")
    return [found]


def build(where: Path, source: Path) -> Path:
    """Build the launcher for aarch64 from a directory of sources."""
    made = runpy.run_path(str(source / "_native_build.py"))["build_program"]
    made("launcher", where, command=[_compiler()], machine="aarch64")
    return where / "launcher"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where programs lie that every user can run."""
    where = tmp_path_factory.mktemp("aarch64")
    helpers.make_readable(where)
    return where


@pytest.fixture(scope="module")
def teller(place: Path) -> list[str]:
    """A static program for aarch64 that tells what it became, and the words that run it."""
    (place / "teller.c").write_text(TELLER, encoding="ascii")
    program = place / "teller"
    subprocess.run([_compiler(), "-static", str(place / "teller.c"), "-o", str(program)], check=True)
    program.chmod(0o755)
    words = [*_emulator(), str(program)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (7, ""), "the emulator cannot even run a static program"
    return words


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The launcher as it is."""
    return build(tmp_path_factory.mktemp("shipped"), helpers.ROOT / "safespawn")


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The launcher, but that an emulated one asks for its pid where it would name its robust list."""
    copy = tmp_path_factory.mktemp("emulated") / "safespawn"
    shutil.copytree(helpers.ROOT / "safespawn", copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    steps = copy / "_steps.c"
    text = steps.read_text(encoding="utf-8")
    assert text.count("SYS_set_robust_list") == 1
    if not NATIVE:
        steps.write_text(text.replace("SYS_set_robust_list", "SYS_getpid"), encoding="utf-8")
    return build(copy.parent, copy)


def run(
    launcher: Path, plan: plans.Plan | bytes, *, seals: int = SEALS, fds: tuple[int, ...] = ()
) -> tuple[int, str, int, list[str]]:
    """Run a launcher; return its exit code, stage and errno in the page, and what its program told."""
    data = plan if isinstance(plan, bytes) else plan.bytes()
    with memfd(data, seals) as fd, launching.report() as page:
        done = subprocess.run(
            [*_emulator(), str(launcher), str(fd), str(page), NONCE.hex()],
            pass_fds=(fd, page, *fds),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={},
            timeout=60,
            check=False,
        )
        stage, error = launching.told(page)
    assert done.stderr == ""
    return done.returncode, stage, error, done.stdout.splitlines()


@pytest.fixture
def plan(teller: list[str]) -> plans.Plan:
    """A plan for ourselves that runs the teller."""
    return launching.own_plan().put(
        path=os.fsencode(teller[0]) + b"\0",
        argv=plans.joined([*map(os.fsencode, teller), b"first", b"", b"third"]),
        env=plans.joined([b"A=1", b"EMPTY="]),
        targets=plans.targets(0, 1, 2),
    )


def test_shipped_launcher_stops_where_the_emulator_does(shipped: Path, plan: plans.Plan) -> None:
    """Without a robust list nobody would be told of its exec or its end, so it goes no further."""
    done = run(shipped, plan)
    if NATIVE:
        assert done[:3] == (7, "exec", 0)
    else:
        assert done == (127, "launch", errno.ENOSYS, [])


def test_plan_is_carried_out(launcher: Path, plan: plans.Plan) -> None:
    """Arguments, environment and ids reach the program as they are in the plan."""
    code, stage, error, told = run(launcher, plan)
    assert (code, stage, error) == (7, "exec", 0)
    assert [line for line in told if line.startswith("argv")] == ["argv: first", "argv: ", "argv: third"]
    assert sorted(line for line in told if line.startswith("env")) == ["env: A=1", "env: EMPTY="]
    assert {"Uid:\t0\t0\t0\t0", "Gid:\t0\t0\t0\t0"} <= set(told)


@pytest.mark.threat("T-08")
def test_descriptors_that_are_no_targets_are_closed(launcher: Path, plan: plans.Plan) -> None:
    """Of two that it inherits the program has the one that is in the plan."""
    read, write = os.pipe()
    try:
        _, _, _, told = run(launcher, plan.put(targets=plans.targets(0, 1, 2, write)), fds=(read, write))
    finally:
        os.close(read)
        os.close(write)
    assert f"open: 0 1 2 {write}" in told


def _user(plan: plans.Plan) -> None:
    plan.want.flags |= LIB.SS_SET_UID | LIB.SS_SET_GID | LIB.SS_SET_GROUPS
    plan.want.uid, plan.want.gid = 12345, 23456
    plan.put(groups=struct.pack("=III", 4, 24, 23456))


def _caps(plan: plans.Plan) -> None:
    _user(plan)
    plan.want.flags |= LIB.SS_SET_CAPS
    plan.want.caps = 1 << 10  # CAP_NET_BIND_SERVICE


def _securebits(plan: plans.Plan) -> None:
    plan.want.flags |= LIB.SS_SET_SECUREBITS
    plan.want.securebits = 1 << 6  # SECBIT_NO_CAP_AMBIENT_RAISE


def _number(flag: int, **numbers: int) -> Callable[[plans.Plan], None]:
    def change(plan: plans.Plan) -> None:
        plan.want.flags |= flag
        for name, value in numbers.items():
            setattr(plan.want, name, value)

    return change


def _pdeathsig(plan: plans.Plan) -> None:
    plan.want.pdeathsig, plan.parent_pid = signal.SIGTERM, os.getpid()


def _mask(plan: plans.Plan) -> None:
    plan.mask = 1 << signal.SIGUSR2 - 1


CASES: dict[str, tuple[Callable[[plans.Plan], object], tuple[str, ...]]] = {
    "another-user": (
        _user,
        (
            "Uid:\t12345\t12345\t12345\t12345",
            "Gid:\t23456\t23456\t23456\t23456",
            "Groups:\t4 24 23456 ",
            "CapEff:\t0000000000000000",
            "CapPrm:\t0000000000000000",
        ),
    ),
    "capabilities": (
        _caps,
        tuple(f"Cap{name}:\t0000000000000400" for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")),
    ),
    "securebits": (_securebits, ("securebits: 64",)),
    "no-new-privs": (_number(LIB.SS_NO_NEW_PRIVS), ("NoNewPrivs:\t1",)),
    "session": (_number(LIB.SS_NEW_SESSION), ("session: own", "group: own")),
    "process-group": (_number(LIB.SS_SET_GROUP, group=0), ("session: inherited", "group: own")),
    "nice": (_number(LIB.SS_SET_NICE, nice=7), ("nice: 7",)),
    "umask": (_number(LIB.SS_SET_UMASK, umask=0o27), ("Umask:\t0027",)),
    "scheduler": (_number(LIB.SS_SET_SCHEDULER, policy=os.SCHED_BATCH), (f"policy: {os.SCHED_BATCH}",)),
    "pdeathsig": (_pdeathsig, (f"pdeathsig: {signal.SIGTERM:d}",)),
    "mask": (_mask, (f"blocked: {signal.SIGUSR2:d}",)),
    "affinity": (lambda plan: plan.put(cpus=b"\1" + bytes(7)), ("Cpus_allowed_list:\t0",)),
    "limits": (lambda plan: plan.put(rlimits=struct.pack("=QQQ", 4, 1 << 20, 1 << 30)), ("core: 1048576 1073741824",)),
}


@pytest.mark.parametrize("case", CASES)
def test_step_is_carried_out(launcher: Path, plan: plans.Plan, case: str) -> None:
    """Each step does there what it does here: the program tells what it became."""
    change, expected = CASES[case]
    change(plan)
    code, stage, error, told = run(launcher, plan)
    assert (code, stage, error) == (7, "exec", 0)
    assert set(expected) <= set(told)


def test_directory_is_entered(launcher: Path, plan: plans.Plan) -> None:
    """By a descriptor, which does not stay open."""
    plan.want.cwd_fd = os.open("/usr", os.O_PATH | os.O_CLOEXEC)
    try:
        code, _, _, told = run(launcher, plan, fds=(plan.want.cwd_fd,))
    finally:
        os.close(plan.want.cwd_fd)
    assert code == 7
    assert "cwd: /usr" in told


def test_namespace_is_left(launcher: Path, plan: plans.Plan) -> None:
    """A new namespace is another than ours."""
    plan.want.unshared = 0x04000000  # CLONE_NEWUTS
    code, _, _, told = run(launcher, plan)
    assert code == 7
    assert f"uts: {os.readlink('/proc/self/ns/uts')}" not in told
    assert any(line.startswith("uts: uts:[") for line in told)


@pytest.mark.parametrize("seals", [0, SEALS & ~launching.WRITE, SEALS & ~launching.SEAL])
def test_plan_that_can_change_is_refused(launcher: Path, plan: plans.Plan, seals: int) -> None:
    """The seals are the kernel's, and are asked for."""
    assert run(launcher, plan, seals=seals) == (127, "plan", errno.EPROTO, [])


@pytest.mark.parametrize("name", plans.EVIL)
def test_evil_plan_is_refused(launcher: Path, plan: plans.Plan, name: str) -> None:
    """The parser is the same: bytes that are no plan run nothing."""
    plan.put(groups=bytes(8), rlimits=bytes(24), cpus=bytes(8), filter=bytes(8), cwd=b"/\0")
    plan.put(places=plans.targets(2, 2, 2))
    assert run(launcher, plans.EVIL[name](plan)) == (127, "plan", errno.EPROTO, [])


def test_plan_of_another_spawn_is_refused(launcher: Path, plan: plans.Plan) -> None:
    """The nonce is compared."""
    plan.nonce = bytes(16)
    assert run(launcher, plan) == (127, "plan", errno.EPROTO, [])


def test_failing_step_is_told(launcher: Path, plan: plans.Plan) -> None:
    """Stage and errno come back, and the program does not run."""
    plan.want.cwd_fd = 999
    assert run(launcher, plan) == (127, "cwd", errno.EBADF, [])


def test_other_credentials_are_noticed(launcher: Path, plan: plans.Plan) -> None:
    """It compares itself with who decided: level-kept (T-28)."""
    plan.want.expected.rgid = 5
    assert run(launcher, plan) == (127, "level", errno.ESTALE, [])


def test_filter_is_not_ignored(launcher: Path, plan: plans.Plan) -> None:
    """Where the emulator knows no filters the launcher says so, and runs no program without."""
    plan.want.flags |= LIB.SS_NO_NEW_PRIVS
    plan.put(filter=struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000))  # allow
    expected = (7, "exec", 0) if NATIVE else (127, "seccomp", errno.ENOSYS)
    assert run(launcher, plan)[:3] == expected


def test_program_by_descriptor_is_not_replaced_by_its_path(launcher: Path, plan: plans.Plan) -> None:
    """Where the emulator knows no execveat(2) the launcher says so, and runs nothing by path instead."""
    plan.want.exec_fd = os.open(plan.parts["path"].rstrip(b"\0"), os.O_PATH | os.O_CLOEXEC)
    try:
        done = run(launcher, plan, fds=(plan.want.exec_fd,))
    finally:
        os.close(plan.want.exec_fd)
    assert done[:3] in {(7, "exec", 0), (127, "exec", errno.ENOSYS)}
    assert done[0] == 127 or NATIVE or _knows_execveat()


def _knows_execveat() -> bool:
    version = subprocess.run([*_emulator(), "--version"], capture_output=True, text=True, check=True).stdout
    return int(version.split("version ")[1].split(".")[0]) >= 8
