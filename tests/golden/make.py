"""Makes the golden files of the exporters.

    python tests/golden/make.py             ocsf.jsonl, ecs.jsonl and otel.jsonl from the records that are here
    python tests/golden/make.py --records   records.jsonl first, by really spawning; needs root

`contract.jsonl` is written by hand from docs/audit-format.md: records that no spawn brings about.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import safespawn
from safespawn import _probe, audit
from safespawn.audit.exporters import FORMATS, Joined

HERE = Path(__file__).resolve().parent
SOURCES = ("records.jsonl", "contract.jsonl")
HOST = "host.example"
#: Made up: that of the machine is nobody's business.
BOOT = "00000000-0000-4000-8000-00000000b007"


def lines() -> list[bytes]:
    """Return the lines of all records."""
    return [line for name in SOURCES for line in (HERE / name).read_bytes().splitlines()]


def exported(form: str) -> list[dict[str, Any]]:
    """Return them in a form of the exporters, in the same order."""
    joined, convert = Joined(), FORMATS[form]
    made = []
    for line in lines():
        record = json.loads(line)
        made.append(convert(record, line, intent=joined.intent_of(record), host=HOST))
    return made


def text(form: str) -> str:
    """Return what the golden file of a form holds."""
    return "".join(json.dumps(one, sort_keys=True) + "\n" for one in exported(form))


def spawn_all(directory: str) -> None:
    """Bring about every record that a program can."""
    env = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    run = safespawn.run
    with audit.context(job="nightly", ticket="OPS-7"):
        run(["sh", "-c", "exit 3"], env=env, cwd="/", nice=5)
    odd = os.path.join(os.fsencode(directory), b"not-utf8-\xff")
    os.symlink("/bin/true", odd)
    run([odd, b"\xfe\x80", "two words", "caf\u00e9 \u2028 \U0001f680"], env=env)
    run(["id"], env=env, user="nobody", stdout=safespawn.DEVNULL, no_new_privs=True, pin=True)
    run(["sh", "-c", "kill -9 $$"], env=env)
    run(["true", *(f"argument-{number}" for number in range(300))], env=env)
    _refuses(["/no/such/program"], FileNotFoundError, env=env)
    _refuses(["true"], safespawn.UnsafeSpawn, env=env, digest="sha256:" + "0" * 64)
    os.seteuid(65534)
    with contextlib.suppress(PermissionError):
        os.setgid(12)
    os.seteuid(0)
    os.setgroups([4, 24])
    _lose_a_record(env)


def _refuses(argv: list[str], problem: type[Exception], **options: Any) -> None:
    try:
        safespawn.run(argv, **options)
    except problem:
        return
    raise AssertionError(f"{argv} was started")


def _lose_a_record(env: dict[str, str]) -> None:
    """A full file: the records of a spawn that has begun are lost, and the next one says so."""
    child = safespawn.spawn(["/bin/true"], env=env)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    child.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    safespawn.run(["/bin/true"], env=env)


def make_records() -> None:
    """Write records.jsonl anew."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with tempfile.TemporaryDirectory(prefix="golden-", dir="/tmp") as directory:
        ledger = os.path.join(directory, "ledger.jsonl")
        with mock.patch.object(_probe, "boot_id", lambda: BOOT), audit.open(ledger):
            spawn_all(directory)
        (HERE / "records.jsonl").write_bytes(Path(ledger).read_bytes())


def main() -> None:
    """Write the files."""
    if "--records" in sys.argv[1:]:
        make_records()
    for form in FORMATS:
        (HERE / f"{form}.jsonl").write_text(text(form), encoding="ascii")


if __name__ == "__main__":
    main()
