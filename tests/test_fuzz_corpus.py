"""The fuzz targets as ordinary tests: corpora replayed, seeded mutations, seeded examples, planted errors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings

import fuzzing
from fuzzing import FUZZ, SEED
from safespawn import _binding, _policy_file, _policy_lines, _policy_values, _spec
from safespawn.audit import _record, _redact

sys.path.insert(0, str(FUZZ))
try:
    import encode_corpus
    import fuzz_encode
    import fuzz_marshal
    import fuzz_spec
    import fuzz_toml
    import marshal_corpus
    import message_corpus
    import objects_corpus
    import plan_corpus
    import policy_corpus
    import record_corpus
    import all_targets as fuzz_run
    import spec_corpus
    import toml_corpus
    import verify_corpus
finally:
    sys.path.remove(str(FUZZ))

#: What the parser of plans must make of a file, by the beginning of its name.
VERDICTS = {"real": "taken", "good": "taken", "evil": "refused"}
#: What each target in C has to say of the files of its corpus; of others it must only say something.
SAID: dict[str, dict[str, str]] = {
    "native": {path.name: "ok" for path in fuzzing.files("native")},
    "plan": {
        path.name: VERDICTS[kind]
        for path in fuzzing.files("plan")
        if (kind := path.name.partition("-")[0]) in VERDICTS
    },
    "policy": policy_corpus.SAID,
    "message": message_corpus.SAID,
    "objects": objects_corpus.SAID,
    "record": record_corpus.SAID,
    "verify": verify_corpus.SAID,
}
#: Mutations of each corpus, as many as take a second or two; how long one may be. Those of whole spawns and
#: lookups make a process or open files each.
RUNS = {
    "native": (20000, 4096), "plan": (30000, 40000), "policy": (40000, 3000), "message": (4000, 4096),
    "objects": (4000, 8192), "record": (8000, 4096), "verify": (3000, 20000),
}  # fmt: skip
SLOW, SLOW_RUNS = ("spawn-", "lookup-"), 600
THREATS = {"plan": "T-29", "policy": "T-37", "message": "T-38", "objects": "T-24", "record": "T-20"}
IN_C = [
    pytest.param(name, marks=pytest.mark.threat(THREATS[name]) if name in THREATS else ()) for name in SAID
]
IN_PYTHON = {
    "spec": (fuzz_spec.one, spec_corpus.SAID),
    "marshal": (fuzz_marshal.check, marshal_corpus.SAID),
    "encode": (fuzz_encode.check, encode_corpus.SAID),
    "toml": (fuzz_toml.check, toml_corpus.SAID),
}
MADE: dict[str, Callable[[], dict[str, bytes]]] = {
    "plan": plan_corpus.made, "policy": policy_corpus.made, "message": message_corpus.made,
    "objects": objects_corpus.made, "record": record_corpus.made, "verify": verify_corpus.made,
    "spec": spec_corpus.made, "marshal": marshal_corpus.made, "encode": encode_corpus.made, "toml": toml_corpus.made,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def stand_in_is_built() -> None:
    """Have the program that tells plans in place before any test counts descriptors."""
    if shutil.which("gcc") is not None:
        plan_corpus.stand_in_fd()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return what builds a target, to replay files or with the mutation driver; each once."""
    made: dict[tuple[str, str], Path] = {}

    def build(name: str, how: str) -> Path:
        if (name, how) not in made:
            words = ["driver.c"] if how == "driver" else ["-DFUZZ_MAIN"]
            where = tmp_path_factory.mktemp(f"fuzz-{name}")
            made[name, how] = fuzzing.build(where / how, f"fuzz_{name}.c", *words)
        return made[name, how]

    return build


@pytest.mark.parametrize("name", IN_C)
def test_corpus_is_judged_rightly(built: Any, name: str) -> None:
    """Each file of a corpus is handled within its memory, and the target says of it what it is."""
    files = fuzzing.files(name)
    done = fuzzing.run(built(name, "replay"), *map(str, files))
    told = dict(line.rsplit("/", 1)[1].split(": ", 1) for line in done.stdout.splitlines())
    handled = [path.name for path in files if path.name in told]
    assert (done.returncode, done.stderr, handled) == (0, "", [path.name for path in files])
    assert {file: told[file] for file in SAID[name]} == SAID[name]


@pytest.mark.parametrize("name", IN_C)
def test_mutations_are_judged_rightly(built: Any, name: str) -> None:
    """Core and model agree on thousands of mutations of a corpus, the same ones every time."""
    runs, longest = RUNS[name]
    files = [str(path) for path in fuzzing.files(name) if name != "native" or not path.name.startswith(SLOW)]
    options = [f"-runs={runs}", f"-max_len={longest}", f"-seed={SEED}", f"-dict={FUZZ / name}.dict"]
    done = fuzzing.run(built(name, "driver"), *options, *files)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{len(files)} files, {runs} runs\n"


def test_mutations_of_whole_spawns_are_handled(built: Any) -> None:
    """So it is with whole spawns and lookups, of which there are fewer."""
    files = [str(path) for path in fuzzing.files("native") if path.name.startswith(SLOW)]
    done = fuzzing.run(built("native", "driver"), f"-runs={SLOW_RUNS}", f"-seed={SEED}", *files)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{len(files)} files, {SLOW_RUNS} runs\n"


@pytest.mark.parametrize("name", MADE)
def test_corpus_is_of_this_layout(name: str) -> None:
    """The files are what today's core makes: else ``python fuzz/NAME_corpus.py`` makes them anew."""
    files = {path.name: path.read_bytes() for path in fuzzing.files(name)}
    files = {file: data for file, data in files.items() if not file.startswith(("found-", "real-"))}
    assert files == MADE[name]()


def test_plans_of_real_spawns_are_of_this_layout() -> None:
    """Plans that spawns make are those of the corpus, in all that is the same on every machine."""
    if os.geteuid() != 0 or shutil.which("gcc") is None:
        pytest.skip("plans of real spawns need root, and gcc for the stand-in")
    files = {path.name: path.read_bytes() for path in fuzzing.files("plan")}
    assert {name: data for name, data in files.items() if name.startswith("real-")} == plan_corpus.real()


# ------------------------------------------------------------------ targets in Python


@pytest.mark.parametrize("name", IN_PYTHON)
def test_python_corpus_is_judged_rightly(name: str) -> None:
    """Each file of a corpus comes to what it is said to, and to nothing else."""
    check, said = IN_PYTHON[name]
    files = [path for path in fuzzing.files(name) if os.geteuid() == 0 or not path.name.startswith("root-")]
    told = {path.name: check(path.read_bytes()) for path in files}
    assert told == {path.name: said.get(path.name, told[path.name]) for path in files}


SEEDED = settings(
    database=None,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


@settings(SEEDED, max_examples=100)
@given(fuzz_toml.INPUTS)
def test_policy_file_is_a_policy_or_says_where_it_is_wrong(data: bytes) -> None:
    """Whatever a file has, it is a policy, or a PolicyError with its line and key."""
    fuzz_toml.check(data)


@settings(SEEDED, max_examples=150)
@given(fuzz_encode.INPUTS)
def test_record_is_encoded_without_loss_and_without_secrets(value: Any) -> None:
    """Whatever the arguments are, a record tells them all but what is to be hidden."""
    fuzz_encode.run(value)


@settings(SEEDED, max_examples=50)
@given(fuzz_marshal.INPUTS)
def test_plan_says_what_was_asked(value: Any) -> None:
    """Whatever is asked for, the plan says that, and nothing else."""
    fuzz_marshal.run(value)


def found(name: str) -> bool:
    """Return whether a corpus in Python shows that something is wrong."""
    try:
        test_python_corpus_is_judged_rightly(name)
    except Exception:  # noqa: BLE001 - whatever it is, it was found
        return True
    return False


def _first_line(text: str, parse: Any, is_wrong: Any) -> int:
    del text, parse, is_wrong
    return 1


def _sorted_strings(items: Any) -> tuple[bytes, int]:
    return b"".join(one + b"\0" for one in sorted(items)), len(items)


#: Errors in what targets in Python look at: a target, an object, its attribute and what is there instead.
IN_PYTHON_PLANTED: dict[str, tuple[str, Any, str, Any]] = {
    "toml-any-exception": ("toml", _policy_values, "_octal", None),
    "toml-line-of-the-first": ("toml", _policy_lines, "of_fault", _first_line),
    "toml-line-of-a-value-that-grew": ("toml", _policy_file, "_complaint", lambda problem: (problem.key, problem.why)),
    "toml-line-of-syntax": ("toml", _policy_lines, "of_syntax", lambda text, message: 10**6),
    "encode-lossy": ("encode", _record, "text", lambda value: value.decode("utf-8", "replace")),
    "encode-secret-shown": ("encode", _redact, "_without", lambda argument, spans: argument),
    "encode-secret-shown-again": ("encode", _redact._Redaction, "_repeated", lambda self: None),
    "encode-mac-of-the-first": ("encode", _redact.RedactionKey, "mac", lambda self, strings: "hk1:" + 64 * "0"),
    "encode-no-limit": ("encode", _record, "_shortened", lambda fields: dict(fields)),
    "marshal-arguments-in-order": ("marshal", _binding, "strings", _sorted_strings),
    "marshal-lists-lost": ("marshal", _binding, "_put_lists", lambda r, plan: []),
    "marshal-processors": ("marshal", _binding, "cpu_mask", lambda cpus: b"\1" + bytes(7)),
}


@pytest.mark.parametrize("error", IN_PYTHON_PLANTED)
def test_target_in_python_finds_an_error(monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    """An error planted in what a target looks at is found by replaying its corpus."""
    name, where, attribute, instead = IN_PYTHON_PLANTED[error]
    assert not found(name)
    if instead is None:  # a reader of a value that knows no wrong ones
        monkeypatch.setitem(_policy_values.KEYS["spawn"], "umask", lambda key, value: {}[value])
    else:
        monkeypatch.setattr(where, attribute, instead)
    assert found(name)


# ------------------------------------------------------------------ planted errors


def test_native_target_can_fail(tmp_path: Path) -> None:
    """An error planted in the core is found from the corpus, and the input that shows it is kept."""
    fuzz = fuzzing.copy_with(tmp_path, "_native.c", "strings[count] = NULL;", "strings[count + 2] = NULL;")
    made = fuzzing.build(tmp_path / "driver", "fuzz_native.c", "driver.c", fuzz=fuzz, flags=fuzzing.QUICK_SANITIZED)
    shown = fuzzing.CORPORA / "native" / "strings-none"
    done = fuzzing.run(made, str(shown))
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
    assert (tmp_path / "crash-input").read_bytes() == shown.read_bytes()


#: Errors of the core, each as a text of a file and what it becomes, by that file.
PLANS = {
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
    "places-negative": ("if (places[i] < 0)", "if (0)"),
    "first-place-not-looked-at": ("for (i = 0; i < count && !*error; i++)\n		if (places", "for (i = 1; i < count && !*error; i++)\n		if (places"),
    "last-place-not-looked-at": ("for (i = 0; i < count && !*error; i++)\n		if (places", "for (i = 0; i + 1 < count && !*error; i++)\n		if (places"),
    "places-of-any-number": ("SS_PART_PLACES].bytes ? wire->want.nfds : 0", "SS_PART_PLACES].bytes / 4"),
    "places-lost": ("return *error ? NULL : places;", "return NULL;"),
    "too-many-inherited": ("want->ninherited <= want->nrlimits &&", "1 &&"),
    "error-forgotten": ("	return error;\n}\n\n/* Where a helper's", "	return 0;\n}\n\n/* Where a helper's"),
}
ALLOWING = {
    "short-bytes-are-read": ("return bytes >= sizeof(*p) && bytes <=", "return bytes <="),
    "any-magic": ("p->magic == SS_POLICY_MAGIC &&", "1 &&"),
    "any-version": ("p->version == SS_HELPER_VERSION && ", ""),
    "any-head": ("p->head_bytes == sizeof(*p) && ", ""),
    "any-total": ("p->total == bytes &&", "1 &&"),
    "too-many-users": ("p->nusers <= SS_POLICY_LIST_MAX && ", ""),
    "too-many-groups": ("p->ngroups <= SS_GROUPS_MAX && ", ""),
    "too-many-programs": ("p->nprograms <= SS_POLICY_LIST_MAX &&", "1 &&"),
    "too-many-variables": ("p->nvariables <= SS_POLICY_LIST_MAX && ", ""),
    "too-large-a-pool": (" && p->pool <= SS_POOL_MAX", ""),
    "lengths-may-wrap": ("p->program_bytes <= SS_POLICY_BYTES_MAX && p->variable_bytes <= SS_POLICY_BYTES_MAX &&", "1 &&"),
    "flags-not-known": ("!(p->flags & ~(uint32_t)(SS_POLICY_FLAGS_END - 1)) && ", ""),
    "options-not-known": (" && !(p->options & ~(uint64_t)(SS_OPTIONS_END - 1))", ""),
    "options-in-32-bits": ("~(uint64_t)(SS_OPTIONS_END - 1)", "~(uint32_t)(SS_OPTIONS_END - 1)"),
    "any-program-and-some": ("!((p->flags & SS_ANY_PROGRAM) && p->nprograms) && ", ""),
    "any-user-and-some": (" && !((p->flags & SS_ANY_USER) && p->nusers)", ""),
    "any-variable-and-some": ("!((p->flags & SS_ANY_VARIABLE) && p->nvariables)", "1"),
    "end-not-checked": ("	    count)\n		return EPROTO;", "	    count)\n		(void)0;"),
    "groups-not-counted": ("p->ngroups * sizeof(uint32_t) + p->program_bytes +", "p->program_bytes +"),
    "empty-strings": ("!at || !text[at - 1] || !count", "!count"),
    "empty-string-first": ("!at || !text[at - 1] ||", "(at && !text[at - 1]) ||"),
    "strings-without-nul": ("!count && (!bytes || !text[bytes - 1])", "!count"),
    "strings-less": ("return !count && ", "return "),
    "user-groups-behind": ("l->users[i].first_group > l->policy->ngroups ||", "0 ||"),
    "user-groups-over-the-end": ("l->users[i].ngroups > l->policy->ngroups - l->users[i].first_group", "0"),
    "user-groups-by-a-sum-that-wraps": ("l->users[i].ngroups > l->policy->ngroups - l->users[i].first_group",
                                        "l->users[i].first_group + l->users[i].ngroups > l->policy->ngroups"),
    "users-not-checked": ("return ss_policy_are_users(l) && ", "return "),
    "programs-not-checked": ("ss_policy_are_strings(l->programs, p->program_bytes, p->nprograms) &&", "1 &&"),
    "variables-not-checked": ("ss_policy_are_strings(l->variables, p->variable_bytes, p->nvariables)", "1"),
    "groups-where-users-are": ("at += p->nusers * sizeof(*l->users);", ""),
    "cwd-by-name": ("want->cwd_fd >= 0 || want->cwd,", "want->cwd_fd >= 0,"),
    "namespace-at-birth": ("{(want->unshared | want->born_in) != 0,", "{want->unshared != 0,"),
    "standard-descriptors-closed": ("want->nfds != 3 ||", "want->nfds > 3 ||"),
    "another-descriptor": ("|| want->fds[2].target != 2", ""),
    "options-in-part": ("~l->policy->options ? EACCES", "!l->policy->options ? EACCES"),
    **{f"option-{name}-forgotten": (f"SS_OPTION_{name.upper()}}}", "0}") for name in (
        "cwd", "fds", "session", "group", "terminal", "umask", "nice", "scheduler", "affinity", "rlimits",
        "cgroup", "root", "caps", "securebits", "namespaces", "seccomp", "subreaper", "landlock", "pdeathsig")},
    "uid-not-compared": ("user->uid != want->uid || ", ""),
    "gid-not-compared": ("user->gid != want->gid || ", ""),
    "number-of-groups-not-compared": (" || user->ngroups != want->ngroups", ""),
    "groups-not-compared": ("if (l->groups[user->first_group + i] != want->groups[i])", "if (0)"),
    "groups-of-the-first": ("l->groups[user->first_group + i]", "l->groups[i]"),
    "user-in-part": ("(asked && asked != SS_CHANGES_IDS) || ", ""),
    "user-in-a-namespace": (" || ((want->unshared | want->born_in) & SS_CLONE_NEWUSER)", ""),
    "user-born-in-a-namespace": ("((want->unshared | want->born_in) & SS_CLONE_NEWUSER)", "(want->unshared & SS_CLONE_NEWUSER)"),
    "own-user-not-asked": ("user->uid == l->policy->expected.euid", "1"),
    "first-user-only": ("i < l->policy->nusers; i++) {", "i < l->policy->nusers && !i; i++) {"),
    "name-that-starts-like-one": (": *text == end || !*text", ": 1"),
    "name-at-the-end-of-the-text": (": *text == end || !*text", ": *text == end"),
    "star-within": ("!pattern[1] :", "1 :"),
    "first-variable-only": ("for (at = plan->envp; *at; at++)\n		if", "for (at = plan->envp; *at && at == plan->envp; at++)\n		if"),
    "relative-path": ("if (*path != '/')\n		return 0;\n	while", "while"),
    "path-with-empty-parts": ("path == part || ", ""),
    "path-with-a-dot": ("path == part + 1 || ", ""),
    "path-with-dots": (" || (part[1] == '.' && path == part + 2)", ""),
    "path-with-more-dots": ("path == part + 1 || (part[1] == '.' && path == part + 2)", "1"),
    "beginning-of-an-entry": ("	if (*entry)\n		return 0;\n", ""),
    "path-that-goes-on": ("	if (entry[-1] != '/')\n		return 0;\n	while", "	while"),
    "below-the-directory": ("return !*path;", "return 1;"),
    "path-not-plain": ("!ss_path_is_plain(plan->want.path) || ", ""),
    "another-file": (" || !ss_program_is_file(&plan->want)", ""),
    "file-of-any-number": ("named.st_ino == held.st_ino", "1"),
    "script-by-its-number": ("if (want->exec_fd < 0 || !(want->flags & SS_EXEC_TARGET))", "if (1)"),
    "script-that-is-no-target": ("return -1; /* nothing", "return want->fds[0].source; /* nothing"),
    "another-root": ("plan->want.root_fd >= 0 || ", ""),
    "first-program-only": ("i < l->policy->nprograms; i++", "i < l->policy->nprograms && !i; i++"),
}  # fmt: skip
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
OBJECTS = {
    "room-of-any-rights": ("(h->p_flags & rights) == rights && ", ""),
    "room-of-any-header": ("h->p_type == PT_LOAD && (h->p_flags & rights)", "(h->p_flags & rights)"),
    "room-up-to-the-last-segment": ("return h->p_memsz - offset;", "return o->high - at;"),
    "places-not-aligned": ("at % alignment == 0 && ", ""),
    "text-without-end": ("room && memchr((const char *)at, 0, room) ?", "room ?"),
    "buckets-not-checked": ("	if (!ss_object_has(o, at, buckets * sizeof(*bucket), sizeof(*bucket)))\n		return 0;\n", ""),
    "chain-without-end": ("i < left && !(chain[i] & 1)", "!(chain[i] & 1)"),
    "dynamic-of-any-length": ("(bytes < room ? bytes : room)", "bytes"),
    "symbols-not-checked": (" || !ss_object_has(o, d->symbols, count * sizeof(Elf64_Sym), sizeof(uint64_t))", ""),
    "tables-not-checked": (" || !ss_object_has(o, d->tables[i], d->bytes[i], sizeof(uint64_t))", ""),
    "calls-without-addends": ("(i == 1 && !d->is_rela) ||", ""),
    "relro-of-a-neighbour": (" || to > end", ""),
    "slot-anywhere": ("return ss_object_room(o, at, PF_W) >= sizeof(uintptr_t) ? at : 0;", "return at;"),
    "slot-read-only": ("ss_object_room(o, at, PF_W)", "ss_object_room(o, at, PF_R)"),
    "slot-over-the-end": (">= sizeof(uintptr_t) ? at", ">= 1 ? at"),
    "slot-of-any-type": ("	if (type != SS_R_SLOT && type != SS_R_DATA && type != SS_R_WORD)\n		return 0;\n", "	(void)type;\n"),
}  # fmt: skip
REWRITING = {
    "slot-not-aligned": ("if (at % sizeof(held)) {", "if (0) {"),
    "symbol-of-any-type": ("!is_function || ", ""),
    "symbol-of-others": ("symbol->st_shndx == SHN_UNDEF || ", ""),
    "relro-left-open-for-others": ("if ((error = ss_protect(o->relro, o->relro_end, PROT_READ | PROT_WRITE)))", "if ((error = 0))"),
}  # fmt: skip
ASKED = {
    "nfds-not-compared": (" || m->ask.nfds != m->nfds", ""),
    "any-magic": ("m->ask.magic != SS_HELPER_MAGIC ||", "0 ||"),
    "magic-of-what-was-cut": ("		m->ask.magic = 0; /* no request", "		(void)0; /* no request"),
    "sender-not-told": ("m->pid = who->pid;", "m->pid = 0;"),
    "open-across-an-exec": ("MSG_CMSG_CLOEXEC | MSG_DONTWAIT", "MSG_DONTWAIT"),
    "end-at-any-empty-one": ("if (!bytes && !header.msg_controllen)", "if (!bytes)"),
    "not-closed": ("(void)ss_sys1(SYS_close, m->fds[--m->nfds]);", "m->nfds--;"),
    "place-of-the-report": ("*fd <= SS_AT_REPORT ||", "*fd < SS_AT_REPORT ||"),
    "place-behind": ("(uint32_t)*fd >= m->nfds", "(uint32_t)*fd > m->nfds"),
    "own-place-forgotten": ("	    &want->landlock_fd,\n", ""),
    "target-without-a-source": ("fds[i].source < 0 || ", ""),
    "targets-without-places": ("	if (want->nfds && !plan->places)\n		return EPROTO;\n", ""),
    "program-that-is-a-target": ("want->flags & SS_EXEC_TARGET ? NULL : &want->exec_fd", "&want->exec_fd"),
}  # fmt: skip
TEXTS = {
    "control-character": ("code >= 0x20 && code < 0x7f", "code >= 0x10 && code < 0x7f"),
    "delete-character": ("code >= 0x20 && code < 0x7f", "code >= 0x20 && code < 0x80"),
    "quote-as-it-is": (" && code != '\"'", ""),
    "surrogates": (" || (code >= 0xd800 && code < 0xe000)", ""),
    "overlong": ("code < least[bytes] || ", ""),
    "beyond-unicode": (" || code > 0x10ffff", ""),
    "half-of-a-pair": ("0xd800 + (code - 0x10000) / 0x400", "0xd800 + code / 0x400"),
    "fullness-not-told": ("			text->full = 1;\n			return;", "			return;"),
    "cut-character": ("bytes == 0 || bytes > left", "bytes == 0"),
}  # fmt: skip
TELLING = {
    "value-told": ('return strcspn(pair, "=");', "return strlen(pair);"),
    "arguments-without-limit": ("ss_limit_since(text, from, SS_ARGV_ROOM);", "(void)from;"),
    "names-without-limit": ("text->full || bytes > room", "text->full"),
    "nuls-counted": ("argv->bytes - argv->count", "argv->bytes"),
    "digest-of-a-part": ("ss_sha256_add(&hash, some, (size_t)(whole.at - some));", ""),
    "signal-for-a-code": ('exit->code == CLD_EXITED ? ",\\"code\\":"', '0 ? ",\\"code\\":"'),
}  # fmt: skip
LINES = {
    "mac-over-less": ("(size_t)(text.at - text.start), NULL, 0, ret_mac", "(size_t)(text.at - text.start) - 1, NULL, 0, ret_mac"),
    "line-without-limit": ("ledger->line + SS_LINE_BYTES - SS_MAC_ROOM, 0, NULL", "ledger->line + 2 * SS_LINE_BYTES, 0, NULL"),
}  # fmt: skip
ANSWERS = {"answer-that-was-cut": ("|| (header.msg_flags & MSG_TRUNC) ||", "||")}

#: Which target looks at which file.
PLANTED = {
    ("plan", "_wire.c"): PLANS,
    ("policy", "_allowed.c"): ALLOWING,
    ("verify", "_verify.c"): UNSAFE,
    ("objects", "_objects.c"): OBJECTS,
    ("objects", "_rewrite.c"): REWRITING,
    ("message", "_asked.c"): ASKED,
    ("record", "_text.c"): TEXTS,
    ("record", "_telling.c"): TELLING,
    ("record", "_ledger.c"): LINES,
    ("native", "_ask.c"): ANSWERS,
}


#: One of so many is planted by `make test`, the others by `make check`: each is a compilation.
ONE_IN = 4


@pytest.mark.parametrize(
    ("name", "file", "error"),
    [
        pytest.param(name, file, error, id=f"{name}-{error}", marks=pytest.mark.long if number % ONE_IN else ())
        for (name, file), errors in PLANTED.items()
        for number, error in enumerate(errors)
    ],
)
def test_target_finds_an_error(tmp_path: Path, name: str, file: str, error: str) -> None:
    """An error planted in the core is found by replaying the corpus of its target."""
    assert fuzzing.finds(tmp_path, name, file, PLANTED[name, file][error], said=SAID[name]), "not found"


# ------------------------------------------------------------------ the runner of all


def test_runner_knows_every_target() -> None:
    """Every target has a row, a corpus and a dictionary, and files under test that are there."""
    names = {path.stem.removeprefix("fuzz_") for path in [*FUZZ.glob("fuzz_*.c"), *FUZZ.glob("fuzz_*.py")]}
    assert {target.name for target in fuzz_run.TARGETS} == names == {*SAID, *IN_PYTHON}
    for target in fuzz_run.TARGETS:
        assert fuzzing.files(target.name)
        assert (FUZZ / f"{target.name}.dict").is_file()
        assert all((FUZZ.parent / "safespawn" / source).is_file() for source in target.sources)


def test_documentation_has_every_target() -> None:
    """fuzz/README.md has a row for each target."""
    rows = re.findall(r"^\| `fuzz_([a-z]+)\.(?:c|py)` \|", (FUZZ / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted({*SAID, *IN_PYTHON})


def test_runner_tells_what_a_fuzzer_says() -> None:
    """Runs and edges are those that libFuzzer tells, the last ones."""
    text = "INFO: Loaded 1 modules   (447 inline 8-bit counters)\n#2 INITED cov: 12 ft: 1\n#9 DONE cov: 231 ft: 9\n"
    assert fuzz_run.parse(f"{text}stat::number_of_executed_units: 69468\n") == (69468, (231, 447))
    assert fuzz_run.parse("Done 38 runs in 5 second(s)\n") == (38, None)


def test_runner_fails_and_keeps_what_shows_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that finds something makes the whole run fail, and the last line has the input that was kept."""
    program = tmp_path / "fuzz_fails.py"
    program.write_text(
        "import sys\n"
        "prefix = next(word for word in sys.argv if word.startswith('-artifact_prefix=')).split('=')[1]\n"
        "open(prefix + 'crash-1', 'w').write('x')\n"
        "sys.exit(77)\n"
    )
    (tmp_path / "corpus" / "fails").mkdir(parents=True)
    monkeypatch.setattr(fuzz_run, "FUZZ", tmp_path)
    monkeypatch.setattr(fuzz_run, "FOUND", tmp_path / "found")
    monkeypatch.setattr(fuzz_run, "_has_atheris", lambda: True)
    outcome = fuzz_run.run(fuzz_run.Target("fails", ("_checks.py",)), 1)
    assert outcome.failed
    assert outcome.found == (tmp_path / "found" / "fails-crash-1",)
    assert str(outcome.found[0]) in fuzz_run.report([outcome], 1)
    assert "found something" in fuzz_run.report([outcome], 1)


def test_mutation_driver_says_how_it_is_used(built: Any) -> None:
    """Without files there is nothing to mutate."""
    done = subprocess.run([str(built("plan", "driver"))], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


# ------------------------------------------------------------------ requests


@settings(SEEDED, max_examples=300)
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
