"""With the audit on, every program that the kernel saw this process start has its record: strace is the witness."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import helpers

#: Starts programs in every way that is covered, some at once, some that fail.
PROGRAM = """
import asyncio, concurrent.futures, multiprocessing, os, subprocess, sys, threading, warnings
from os import posix_spawn as bound_early
import safespawn
from safespawn import aio, audit, subprocess as ours

def nothing(number):
    return number

async def in_loop():
    first = await asyncio.create_subprocess_exec("/bin/true", "asyncio")
    second = await aio.create_subprocess_exec("/bin/true", "aio")
    await asyncio.gather(first.wait(), second.wait())

def in_thread(number):
    subprocess.run(["/bin/true", f"thread {number}"])
    os.waitpid(bound_early("/bin/true", ["true", f"posix_spawn {number}"], {}), 0)

def main():
    audit.open(sys.argv[1])
    safespawn.install()
    warnings.simplefilter("ignore")
    subprocess.run(["true", "in the path"])
    subprocess.run("exec true shell", shell=True)
    subprocess.run(["/bin/true", "preexec"], preexec_fn=os.getpid)
    subprocess.run(["/bin/true", "user"], user=65534)
    ours.run(["/bin/true", "ours"])
    safespawn.run(["/bin/true", "run"])
    safespawn.run(["/bin/true", "run as another"], user=65534, group=65534)
    os.popen("true popen").close()
    os.system("true system")
    os.system("true by a shell; exit 0")
    os.spawnlp(os.P_WAIT, "true", "true", "spawn")
    try:
        subprocess.run(["/nowhere/at/all"])
    except FileNotFoundError:
        pass
    asyncio.run(in_loop())
    threads = [threading.Thread(target=in_thread, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(nothing, range(4))) == [0, 1, 2, 3]

if __name__ == "__main__":
    main()
"""

#: A child of a process: its parent's number comes first, because of -f.
_CLONE = re.compile(r"^(\d+) +(?!<).*(?:clone3?|v?fork)\(.*\)? = (\d+)$|^(\d+) +<\.\.\. (?:clone3?|v?fork) resumed.* = (\d+)$")
_EXEC = re.compile(r"^(\d+) +(?!<).*execve(?:at)?\(.* = 0$|^(\d+) +<\.\.\. execve(?:at)? resumed.*= 0$")


def _programs(trace: Path, root: int) -> set[int]:
    """Return the children of the first process, or of its threads, that came to run a program."""
    lines = trace.read_text(encoding="utf-8", errors="replace").splitlines()
    ran = {int(found[1] or found[2]) for line in lines if (found := _EXEC.match(line))}
    ours, children = {root}, set()
    for line in lines:
        found = _CLONE.match(line)
        if found is None:
            continue
        parent, child = int(found[1] or found[3]), int(found[2] or found[4])
        if parent in ours:
            (ours if "CLONE_THREAD" in line or _is_thread(lines, child) else children).add(child)
    return {child for child in children if child in ran}


def _is_thread(lines: list[str], number: int) -> bool:
    return any(line.startswith(f"{number} ") and "rseq(" in line for line in lines) and not any(
        (found := _EXEC.match(line)) and int(found[1] or found[2]) == number for line in lines
    )


def test_every_program_that_strace_saw_is_recorded(tmp_path: Path) -> None:
    """No child of the process runs a program without a start and an end in its ledger."""
    program, trace, ledger = tmp_path / "program.py", tmp_path / "trace", tmp_path / "ledger"
    program.write_text(PROGRAM, encoding="utf-8")
    traced = "clone,clone3,fork,vfork,execve,execveat,rseq"
    done = subprocess.run(
        ["strace", "-f", "-qq", "-e", "signal=none", "-e", f"trace={traced}", "-o", str(trace),
         sys.executable, str(program), str(ledger)],
        env={**os.environ, "PYTHONPATH": str(helpers.CORE or helpers.ROOT)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    root = int(trace.read_text(encoding="utf-8").split(" ", 1)[0])
    records = helpers.records(ledger)
    argv = {record["sid"]: record["what"]["argv"] for record in records if record["ev"] == "spawn.intent"}
    started = {
        record["outcome"]["pid"]: argv[record["sid"]] for record in records if record["ev"] == "spawn.started"
    }
    ended = {record["exit"]["pid"] for record in records if record["ev"] == "spawn.exit"}
    seen = _programs(trace, root)
    assert len(seen) > 20
    assert seen == set(started)
    running = [words for pid, words in started.items() if pid not in ended]
    assert [True] == ["resource_tracker" in str(words) for words in running], "it ends behind its parent"
