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
PLANS = FUZZ / "corpus" / "plan"
LEDGERS = FUZZ / "corpus" / "verify"

sys.path.insert(0, str(FUZZ))
try:
    import fuzz_spec
    import plan_corpus
    import verify_corpus
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


def build(made: Path, *sources: str | Path, fuzz: Path = FUZZ) -> Path:
    """Compile a target under ASan and UBSan; ``sources`` are files of the directory and flags."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    words = [str(word) if str(word).startswith("-") else str(fuzz / word) for word in sources]
    built = subprocess.run(
        [compiler, *FLAGS, *words, "-o", str(made)], capture_output=True, text=True, check=False
    )
    if "cannot find -lasan" in built.stderr or "cannot find -lubsan" in built.stderr:
        pytest.skip("the runtime libraries of gcc's sanitizers are not installed")
    assert built.returncode == 0, built.stderr
    return made


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the native target with the mutation driver."""
    return build(tmp_path_factory.mktemp("fuzz") / "driver", "fuzz_native.c", "driver.c")


@pytest.fixture(scope="module")
def plan_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the target for plans with the mutation driver."""
    return build(tmp_path_factory.mktemp("fuzz-plan") / "driver", "fuzz_plan.c", "driver.c")


@pytest.fixture(scope="module")
def plan_replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the target for plans alone, which says of each file what became of it."""
    return build(tmp_path_factory.mktemp("fuzz-plan") / "replay", "-DFUZZ_MAIN", "fuzz_plan.c")


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


def copy_with(where: Path, name: str, old: str, new: str) -> Path:
    """Copy core and targets, with an error planted in a file of the core; return the targets' place."""
    shutil.copytree(helpers.ROOT / "safespawn", where / "safespawn", ignore=shutil.ignore_patterns("*.so", "*.py"))
    shutil.copytree(FUZZ, where / "fuzz", ignore=shutil.ignore_patterns("__pycache__", "corpus"))
    core = where / "safespawn" / name
    text = core.read_text(encoding="utf-8")
    assert text.count(old) == 1
    core.write_text(text.replace(old, new), encoding="utf-8")
    return where / "fuzz"


def test_native_target_can_fail(tmp_path: Path) -> None:
    """An error planted in the core is found from the corpus, and the input that shows it is kept."""
    fuzz = copy_with(tmp_path, "_native.c", "strings[count] = NULL;", "strings[count + 2] = NULL;")
    done = run_driver(build(tmp_path / "driver", "fuzz_native.c", "driver.c", fuzz=fuzz), str(CORPUS / "strings-none"))
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
    assert (tmp_path / "crash-input").read_bytes() == (CORPUS / "strings-none").read_bytes()


# ------------------------------------------------------------------ plans of the launcher

#: What the parser must make of a file, by the beginning of its name.
VERDICTS = {"real": "taken", "good": "taken", "evil": "refused"}


@pytest.mark.threat("T-29")
@pytest.mark.parametrize("path", sorted(PLANS.iterdir()), ids=lambda path: path.name)
def test_plan_corpus_file_is_judged_rightly(plan_replay: Path, path: Path) -> None:
    """The launcher's parser takes what is a plan and refuses what is none, within its memory."""
    done = run_driver(plan_replay, str(path))
    assert (done.returncode, done.stderr) == (0, "")
    verdict = VERDICTS.get(path.name.partition("-")[0])
    if verdict is not None:  # a script, or a finding
        assert done.stdout == f"{path}: {verdict}\n"


@pytest.mark.threat("T-29")
def test_plan_mutations_are_judged_rightly(plan_driver: Path) -> None:
    """Parser and model agree on thousands of mutations of the corpus, the same ones every time."""
    done = run_driver(plan_driver, "-runs=30000", "-max_len=40000", f"-seed={SEED}", str(PLANS))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{len(list(PLANS.iterdir()))} files, 30000 runs\n"


def test_plan_corpus_is_of_this_layout() -> None:
    """The files are what today's core makes: else ``python fuzz/plan_corpus.py`` makes them anew."""
    files = {path.name: path.read_bytes() for path in PLANS.iterdir()}
    made = plan_corpus.made()
    assert {name: files[name] for name in files.keys() & made.keys()} == made
    if os.geteuid() != 0 or shutil.which("gcc") is None:
        pytest.skip("plans of real spawns need root, and gcc for the stand-in")
    real = plan_corpus.real()
    assert {name: data for name, data in files.items() if name.startswith("real-")} == real


#: Errors of the parser, each as a text of _wire.c and what it becomes.
PLANTED = {
    "end-not-checked": ("part->bytes > wire->total - part->at ||", "part->bytes > wire->total ||"),
    "end-by-a-sum-that-wraps": ("part->bytes > wire->total - part->at", "part->at + part->bytes > wire->total"),
    "place-not-checked": ("part->at > wire->total || ", ""),
    "head-not-kept-out": ("part->at < sizeof(*wire) || ", ""),
    "place-not-aligned": ("part->at % 16", "0"),
    "length-not-checked": ("if (wire->parts[index].bytes != count * each) {", "if (0) {"),
    "length-may-be-more": ("bytes != count * each", "bytes < count * each"),
    "text-without-nul": ("|| text[bytes - 1])", ")"),
    "text-with-two": ("i < bytes - 1; i++)", "i < 0; i++)"),
    "strings-over-the-end": ("while (at < bytes && text[at])", "while (text[at])"),
    "strings-not-to-the-end": ("	if (at != bytes)", "	if (at > bytes)"),
    "targets-twice": ("targets[i] <= targets[i - 1]", "targets[i] < targets[i - 1]"),
    "targets-in-any-order": ("(i && targets[i] <= targets[i - 1])", "0"),
    "targets-negative": ("targets[i] < 0 || ", ""),
    "no-argument": ("return want->argc && ", "return "),
    "too-many-descriptors": (" && want->nfds <= SS_FDS_MAX", ""),
    "too-many-groups": ("want->ngroups <= SS_GROUPS_MAX && ", ""),
    "too-many-limits": ("want->nrlimits <= SS_RLIMITS_MAX", "1"),
    "too-many-processors": ("want->cpus_bytes <= SS_CPUS_MAX && ", ""),
    "too-long-a-filter": (" && want->nfilter <= SS_FILTER_MAX_LEN", ""),
    "any-magic": ("wire->magic == SS_WIRE_MAGIC && ", ""),
    "any-version": ("wire->version == SS_WIRE_VERSION", "1"),
    "any-head": ("wire->head_bytes == sizeof(*wire) && ", ""),
    "any-size": ("wire->total == bytes &&", "wire->total &&"),
    "any-flag": ("!(wire->want.flags & ~(uint64_t)(SS_FLAGS_END - 1))", "1"),
    "flags-in-32-bits": ("~(uint64_t)(SS_FLAGS_END - 1)", "~(uint32_t)(SS_FLAGS_END - 1)"),
    "short-bytes-are-read": ("count >= sizeof(*wire) && ", ""),
    "room-without-a-null": ("(want->argc + 1ull + want->envc + 1)", "(want->argc + 1ull + want->envc)"),
    "room-without-a-listing": (" + SS_LISTING_BYTES;", ";"),
    "tables-overlap": ("strings += wire->want.argc + 1ull;", "strings += wire->want.argc;"),
    "pointer-of-the-parent": ("plan->want.argv = plan->want.env = plan->want.map_users", "plan->want.map_users"),
    "error-forgotten": ("	return error;\n}\n\n/* The counts", "	return 0;\n}\n\n/* The counts"),
}


@pytest.mark.parametrize("error", PLANTED)
def test_plan_target_finds_an_error(tmp_path: Path, error: str) -> None:
    """An error planted in the parser is found by replaying the corpus."""
    fuzz = copy_with(tmp_path, "_wire.c", *PLANTED[error])
    made = build(tmp_path / "replay", "-DFUZZ_MAIN", "-Wno-error", "fuzz_plan.c", fuzz=fuzz)
    done = run_driver(made, *map(str, sorted(PLANS.iterdir())))
    assert done.returncode != 0, "not found"


# ------------------------------------------------------------------ ledgers of the verifier

@pytest.fixture(scope="module")
def verify_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the target for ledgers with the mutation driver."""
    return build(tmp_path_factory.mktemp("fuzz-verify") / "driver", "fuzz_verify.c", "driver.c")


@pytest.fixture(scope="module")
def verify_replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the target for ledgers alone, which says of each file what became of it."""
    return build(tmp_path_factory.mktemp("fuzz-verify") / "replay", "-DFUZZ_MAIN", "fuzz_verify.c")


@pytest.mark.parametrize("path", sorted(LEDGERS.iterdir()), ids=lambda path: path.name)
def test_verify_corpus_file_is_judged_rightly(verify_replay: Path, path: Path) -> None:
    """The verifier's core says of each piece what it is, within its memory."""
    done = run_driver(verify_replay, str(path))
    assert (done.returncode, done.stderr) == (0, "")
    said = verify_corpus.SAID.get(path.name)
    assert done.stdout == f"{path}: {said}\n" or path.name.startswith("found-")


def test_verify_mutations_are_judged_rightly(verify_driver: Path) -> None:
    """The core holds what the target demands over thousands of mutations, the same ones every time."""
    done = run_driver(verify_driver, "-runs=20000", "-max_len=20000", f"-seed={SEED}", str(LEDGERS))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{len(list(LEDGERS.iterdir()))} files, 20000 runs\n"


def test_verify_corpus_is_of_this_form() -> None:
    """The files are those that ``python fuzz/verify_corpus.py`` makes, beside what was found."""
    files = {path.name: path.read_bytes() for path in LEDGERS.iterdir()}
    made = verify_corpus.made()
    assert {name: data for name, data in files.items() if not name.startswith("found-")} == made


#: Errors of the verifier's core, each as a text of _verify.c and what it becomes.
UNSAFE = {
    "end-not-asked": ("if (c->at == c->end) {", "if (c->at > c->end) {"),
    "mac-before-the-line": ("if (bytes < SS_MAC_BYTES)", "if (0)"),
    "mac-not-compared": ("return !memcmp(mac, p->mac, sizeof(mac));", "return 1;"),
    "mac-over-too-much": ("p->bytes - SS_MAC_BYTES, \"\", 0, mac)", "p->bytes - SS_MAC_BYTES + 1, \"\", 0, mac)"),
    "hash-not-compared": ("memcmp(p->envelope.previous, chain->hash, SS_DIGEST_BYTES) ?", "0 ?"),
    "number-not-compared": ("if (p->envelope.n != chain->next)", "if (p->envelope.n < chain->next)"),
    "keys-not-stepped": ("	if (is_keyed)\n		ss_step_keys(p);", ""),
    "records-overfull": ("count < room && ", ""),
    "start-over-the-end": ("is_last || bytes >= SS_LINE_MAX + SS_START_BYTES ?", "1 ?"),
    "torn-not-split": ("(p->bytes = ss_next_start(p->data, whole, left)) < whole", "0"),
    "torn-is-anything": ("return ss_judge_beginning(p);\n	p->has_mac", "return SS_FITS;\n	p->has_mac"),
    "json-not-scanned": ("	if (rest < 0)\n		return ss_is_struck(p) ? ss_judge_beginning(p) : SS_GARBAGE;", ""),
    "escape-unchecked": ("else if (!byte || !strchr(", "else if (0 && !strchr("),
    "keys-not-wiped": ("explicit_bzero(v->chains, v->room * sizeof(*v->chains));\n	memset", "memset"),
    "struck-is-garbage": ("ss_is_struck(p) ?", "0 ?"),
    "line-not-counted": ("v->line += (uint64_t)is_line;", "v->line++;"),
}


@pytest.mark.parametrize("error", UNSAFE)
def test_verify_target_finds_an_error(tmp_path: Path, error: str) -> None:
    """An error planted in the verifier's core is found by replaying the corpus."""
    fuzz = copy_with(tmp_path, "_verify.c", *UNSAFE[error])
    made = build(tmp_path / "replay", "-DFUZZ_MAIN", "-Wno-error", "fuzz_verify.c", fuzz=fuzz)
    done = run_driver(made, *map(str, sorted(LEDGERS.iterdir())))
    said = dict(line.removeprefix(f"{LEDGERS}/").split(": ") for line in done.stdout.splitlines())
    assert done.returncode != 0 or {**said, **verify_corpus.SAID} != said, "not found"


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
