"""The C core built for another libc and for another machine: the corpora of the fuzz targets, and spawns under musl.

The same answers are expected as from the core of this machine (tests/test_fuzz_corpus.py). What qemu-user runs makes no
children by our clone (test_helper_emulated.py says why), so those inputs of the native target are not for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import helpers

FUZZ = helpers.ROOT / "fuzz"
TARGETS = ("native", "plan", "policy", "verify")
HOST = helpers.TESTS / "musl"
#: No warning is let pass: a pointer taken for a length has shown so. Not optimised, which takes longer than to run it.
FLAGS = ["-std=gnu11", "-O0", "-Wall", "-Wextra", "-Wno-unused-function", "-Werror"]
STRICT = ["-Wshadow", "-Wconversion", "-Wvla", "-fsyntax-only"]
#: Children; and descriptors for which there is no room: qemu-user leaves those open that the kernel would close.
NOT_EMULATED = (
    "spawn-", "message-many-unwanted", "message-one-beyond-the-room", "told-with-most", "told-with-two",
)  # fmt: skip
AARCH64 = "aarch64-linux-gnu-gcc"


@pytest.fixture(scope="module")
def musl(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the words that compile for musl, with the kernel's headers, which Debian's musl-tools leave out."""
    if shutil.which("musl-gcc") is None:
        pytest.skip("musl-gcc (package musl-tools) is not installed")
    where = tmp_path_factory.mktemp("headers")
    machine = f"{os.uname().machine}-linux-gnu"
    for name in ("linux", "asm-generic", f"{machine}/asm"):
        (where / Path(name).name).symlink_to(Path("/usr/include") / name)
    return ["musl-gcc", "-idirafter", str(where)]


@pytest.fixture(scope="module")
def emulated() -> tuple[list[str], list[str]]:
    """Return the words that compile for aarch64, and those that run what comes of it."""
    if shutil.which(AARCH64) is None:
        pytest.skip(f"{AARCH64} is not installed")
    if os.uname().machine == "aarch64":
        return [AARCH64], []
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("qemu-aarch64 (package qemu-user) is not installed")
    return [AARCH64, "-mno-outline-atomics"], [emulator, "-L", "/usr/aarch64-linux-gnu"]


def compiled(command: list[str], made: Path, *arguments: str) -> Path:
    """Compile without a warning."""
    done = subprocess.run([*command, *FLAGS, *arguments, "-o", str(made)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return made


def replayed(words: list[str], target: str, files: list[Path]) -> list[str]:
    """Run a target once over the files, and return what it said of each."""
    done = subprocess.run(
        [*words, *map(str, files)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), target
    return done.stdout.splitlines()


@pytest.fixture(scope="module", params=TARGETS)
def here(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[Path, str]]:
    """Return a target, and what it says of each file where it is built for this machine and its libc."""
    made = tmp_path_factory.mktemp("here") / "replay"
    compiled(["gcc"], made, "-DFUZZ_MAIN", str(FUZZ / f"fuzz_{request.param}.c"))
    files = sorted((FUZZ / "corpus" / request.param).iterdir())
    said = replayed([str(made)], request.param, files)
    assert files
    return request.param, dict(zip(files, said, strict=True))


def test_corpus_under_musl(musl: list[str], here: tuple[str, dict[Path, str]], tmp_path: Path) -> None:
    """Every file of the corpus is answered as with glibc, children and messages with descriptors too."""
    target, said = here
    made = compiled(musl, tmp_path / "musl", "-DFUZZ_MAIN", str(FUZZ / f"fuzz_{target}.c"))
    assert replayed([str(made)], target, list(said)) == list(said.values())


def test_corpus_on_the_other_machine(
    emulated: tuple[list[str], list[str]], here: tuple[str, dict[Path, str]], tmp_path: Path
) -> None:
    """Every file that needs no child of ours is answered as on this machine."""
    (compiler, runner), (target, said) = emulated, here
    if target == "native" and runner:
        said = {path: text for path, text in said.items() if not path.name.startswith(NOT_EMULATED)}
    made = compiled(compiler, tmp_path / "there", "-DFUZZ_MAIN", str(FUZZ / f"fuzz_{target}.c"))
    assert replayed([*runner, str(made)], target, list(said)) == list(said.values())


def test_core_compiles_for_musl_without_a_warning(musl: list[str]) -> None:
    """The strictest warnings find nothing: struct msghdr has members of another size and order there."""
    source = str(helpers.ROOT / "safespawn" / "_native.c")
    done = subprocess.run([*musl, *FLAGS, *STRICT, source], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_core_starts_programs_under_musl(musl: list[str], tmp_path: Path) -> None:
    """One thread shares memory, others fork; the lock sees every change but proves nothing, and says so.

    musl's dl_iterate_phdr(3) counts what was loaded by dlopen(3) only, so that the objects of other link namespaces
    cannot be told from none: the lock does not hold, and nothing shares memory beside a thread. musl's posix_spawn
    closes no descriptors from a number on: refused (ENOSYS).
    """
    if os.geteuid() != 0:
        pytest.skip("needs root: it changes its user to itself")
    library = compiled(
        musl, tmp_path / "core.so", "-fno-tree-loop-distribute-patterns", "-fvisibility=hidden", "-fPIC", "-shared",
        "-Wl,-z,now", "-Wl,-z,nodelete", f"-I{helpers.ROOT / 'safespawn'}", str(HOST / "core.c"),
    )  # fmt: skip
    program = compiled(musl, tmp_path / "host", str(HOST / "host.c"))
    done = subprocess.run([str(program), str(library)], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "alone 3",
        "posix_spawn -38",
        "fork 5",
        "arm 0",
        "armed 1 exported 1 captured 0 foreign 0 namespaces -2",
        "seen 1",
        "lock holds 0",
        "beside a changer: all told 1, some ran 1, otherwise 0",
        "by the lock refused 1",
        "alone beside a thread refused 1",
        "more changes 1",
    ]
