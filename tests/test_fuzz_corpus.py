"""The fuzz targets as ordinary tests: corpus replayed, seeded mutations, seeded examples."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings

import helpers
from safespawn import _spec

FUZZ = helpers.ROOT / "fuzz"
CORPUS = FUZZ / "corpus" / "native"

sys.path.insert(0, str(FUZZ))
try:
    import fuzz_spec
finally:
    sys.path.remove(str(FUZZ))

#: -fno-ipa-pure-const: else the compiler sees that the child's main never returns, and
#: ASan warns that it does not know the stack on which that happens.
FLAGS = [
    "-std=gnu11",
    "-g",
    "-O1",
    "-fno-ipa-pure-const",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unused-function",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
]
SEED = 20240607

#: Each of these makes a process or opens files: enough of them, but fewer than the others.
SLOW = ("spawn-", "lookup-")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the native target with the mutation driver under ASan and UBSan."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    made = tmp_path_factory.mktemp("fuzz") / "driver"
    sources = [str(FUZZ / "fuzz_native.c"), str(FUZZ / "driver.c")]
    built = subprocess.run(
        [compiler, *FLAGS, *sources, "-o", str(made)], capture_output=True, text=True, check=False
    )
    if "cannot find -lasan" in built.stderr or "cannot find -lubsan" in built.stderr:
        pytest.skip("the runtime libraries of gcc's sanitizers are not installed")
    assert built.returncode == 0, built.stderr
    return made


def run_driver(driver: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it where a crashing input may be left, with sanitizers that say what they find."""
    return subprocess.run(
        [str(driver), *arguments],
        cwd=driver.parent,
        env={**os.environ, "ASAN_OPTIONS": "", "UBSAN_OPTIONS": "print_stacktrace=1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def corpus(*, slow: bool) -> list[Path]:
    """Return the files of the corpus, those of whole spawns and lookups apart."""
    return sorted(path for path in CORPUS.iterdir() if path.name.startswith(SLOW) == slow)


@pytest.mark.parametrize("path", [*corpus(slow=False), *corpus(slow=True)], ids=lambda path: path.name)
def test_native_corpus_file_is_handled(driver: Path, path: Path) -> None:
    """The core handles this input rightly and within its memory."""
    done = run_driver(driver, str(path))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("slow", "runs"), [(False, 20000), (True, 600)], ids=["parts", "whole"])
def test_native_mutations_are_handled(driver: Path, slow: bool, runs: int) -> None:
    """The core handles thousands of mutations of the corpus, the same ones every time."""
    files = [str(path) for path in corpus(slow=slow)]
    done = run_driver(driver, f"-runs={runs}", f"-seed={SEED}", *files)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{len(files)} files, {runs} runs\n"


def test_native_target_can_fail(tmp_path: Path) -> None:
    """An error planted in the core is found from the corpus, and the input that shows it is kept."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    shutil.copytree(helpers.ROOT / "safespawn", tmp_path / "safespawn", ignore=shutil.ignore_patterns("*.so", "*.py"))
    shutil.copytree(FUZZ, tmp_path / "fuzz", ignore=shutil.ignore_patterns("__pycache__"))
    core = tmp_path / "safespawn" / "_native.c"
    text = core.read_text(encoding="utf-8")
    assert text.count("strings[count] = NULL;") == 1
    core.write_text(text.replace("strings[count] = NULL;", "strings[count + 2] = NULL;"), encoding="utf-8")
    made = tmp_path / "driver"
    sources = [str(tmp_path / "fuzz" / name) for name in ("fuzz_native.c", "driver.c")]
    subprocess.run([compiler, *FLAGS, *sources, "-o", str(made)], check=True)
    done = run_driver(made, str(CORPUS / "strings-none"))
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
    assert (tmp_path / "crash-input").read_bytes() == (CORPUS / "strings-none").read_bytes()


@settings(
    database=None,
    deadline=None,
    derandomize=True,
    max_examples=800,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(argv=fuzz_spec.ARGV, options=fuzz_spec.GIVEN, more=fuzz_spec.UNKNOWN)
@example(argv=["true"], options={"deadline": 10**400}, more={})
@example(argv=["true"], options={"umask": 10**5000}, more={})
@example(argv=["true"], options={"rlimits": {7: (10**5000, 0)}}, more={})
@example(argv=["true"], options={"nice": "\ud800"}, more={})
@example(argv=["\ud800"], options={}, more={})
@example(argv=["true"], options={"user": "\ud800"}, more={})
@example(argv=["true"], options={}, more={"": 1})
@example(argv=["true"], options={"scheduler": (0, "")}, more={})
@example(argv=["true"], options={"caps": ["\ud800", 10**5000]}, more={})
@example(argv=["true"], options={"namespaces": [["user"]]}, more={})
@example(argv=["true"], options={"namespaces": {"user": {"users": [(0, 0, 2**32 - 1), (1, 1, 1)]}}}, more={})
@example(argv=["true"], options={"landlock": {"abi": 10**5000}}, more={})
def test_request_is_checked_or_refused(argv: object, options: dict[str, Any], more: dict[str, Any]) -> None:
    """Whatever the options are, they make a checked request or raise one of three exceptions."""
    fuzz_spec.check(argv, {**more, **options})


def test_spec_target_reaches_both_answers() -> None:
    """The target tells a request that is taken from one that is refused."""
    assert fuzz_spec.check(["true"], {"nice": 5}) is not None
    assert fuzz_spec.check(["true"], {"nice": 50}) is None
    assert fuzz_spec.check(["true"], {"namespaces": {"user": {"users": [(0, 5, 2), (2, 3, 2)]}}}) is not None
    assert fuzz_spec.check(["true"], {"namespaces": {"user": {"users": [(0, 5, 2), (2, 4, 2)]}}}) is None


def test_spec_target_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that lets a bad value through, or raises something else, fails the target."""
    monkeypatch.setitem(fuzz_spec._checks._OPTIONS, "nice", (lambda name, value: value, True))
    with pytest.raises(AssertionError):
        fuzz_spec.check(["true"], {"nice": 50})
    monkeypatch.setitem(fuzz_spec._checks._OPTIONS, "nice", (lambda name, value: {}[value], True))
    with pytest.raises(KeyError):
        fuzz_spec.check(["true"], {"nice": 50})


@pytest.mark.parametrize(
    ("option", "made"),
    [
        ("caps", 2**64),
        ("securebits", 1 << 4),
        ("scheduler", (1, 0)),
        ("namespaces", (("net", "pid"), None, None)),
        ("namespaces", (("net",), ((0, 0, 1),), None)),
        ("namespaces", (("user",), ((0, 0, 2), (5, 1, 1)), None)),
        ("namespaces", (("user",), None, ((0, 1, 2**32 - 1),))),
        ("landlock", _spec.Landlock(9, (), (), ())),
        ("landlock", _spec.Landlock(3, (b"a\0b",), (), ())),
        ("seccomp", bytes(9)),
        ("root", ""),
        ("cgroup", -1),
    ],
    ids=str,
)
def test_spec_target_sees_what_is_not_checked(option: str, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of an option that confines the child fails the target when no check has stopped it."""
    monkeypatch.setitem(fuzz_spec._checks._OPTIONS, option, (lambda name, value: made, True))
    with pytest.raises(AssertionError):
        fuzz_spec.check(["true"], {option: "anything"})
