"""What the C core is made of: the child's section, the shipped extension, the style limits.

Code that may run in a child sharing our memory must refer to nothing but itself and
constants (child-raw-only). Its section is read from objects compiled for the purpose, and
each check is shown to fail on a source that breaks the rule.
"""

from __future__ import annotations

import hashlib
import os
import re
import runpy
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import helpers
from safespawn import _binding, _helpers, _launcher

SOURCES = helpers.ROOT / "safespawn"
CORE = SOURCES / "_native.c"
HOOKS = helpers.TESTS / "hooks"
_BUILD = runpy.run_path(str(SOURCES / "_native_build.py"))
PRODUCT: list[str] = _BUILD["COMPILE_ARGS"]
#: The programs beside the core, by name, and the source of each.
PROGRAMS = {name: SOURCES / f"_{name}.c" for name in _BUILD["PROGRAMS"].values()}

SECTION = ".text.ss_child"
STRICT = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wvla", "-Werror", "-Wno-unused-function"]
#: Alone, the core uses none of its functions, so the compiler would drop them all.
#: Each variable gets a section of its own, so that a reference says which one is meant.
KEEP = ["-fkeep-static-functions", "-fdata-sections"]
WITH_HOOKS = ["-DSS_TEST_HOOKS", f"-I{HOOKS}"]

#: As setup.py has it: CFLAGS of whoever builds come first, the product's arguments last.
BEFORE: dict[str, list[str]] = {
    "product": [],
    "hardened": ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"],
    "all-canaries": ["-fstack-protector-all", "-fstack-clash-protection"],
    "coverage": ["--coverage"],
    "asan": ["-fsanitize=address"],
    "ubsan": ["-fsanitize=undefined"],
    "tsan": ["-fsanitize=thread"],
}
AFTER: dict[str, list[str]] = {"unoptimised": ["-O0"], "optimised-more": ["-O3"], "small": ["-Os"]}
#: The same child code in the programs, which have no libc to call.
WITHOUT_LIBC = [f"{name}{hooks}" for name in PROGRAMS for hooks in ("", "-hooks")]
#: Here `make test` has the one that differs most from the product's, and is soon compiled.
LONG = ("hardened", "all-canaries", "coverage", "asan", "ubsan", "tsan", "optimised-more", "small", "cffi")
VARIANTS = [
    pytest.param(one, marks=pytest.mark.long) if one in LONG else one
    for one in (*BEFORE, *AFTER, "hooks", "cffi", *WITHOUT_LIBC)
]


def is_hooked(variant: object) -> bool:
    """Return whether it is one of the test build."""
    return isinstance(variant, str) and variant.endswith("hooks")


def program_flags(machine: str) -> list[str]:
    """Return what a program is compiled with, without what only the linker understands."""
    flags = [*_BUILD["PROGRAM_ARGS"], *_BUILD["PROGRAM_MACHINE_ARGS"][machine]]
    return [one for one in flags if not one.startswith(("-Wl,", "-static", "-nostdlib"))]


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _output(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stderr}"
    return done.stdout


# ------------------------------------------------------------- reading an object file


@dataclass(frozen=True)
class Symbol:
    """One line of a symbol table."""

    name: str
    section: str
    kind: str


@dataclass(frozen=True)
class Object:
    """A compiled object and the prefix of the tools that read it."""

    path: Path
    prefix: str = ""

    def symbols(self) -> list[Symbol]:
        """Return its symbol table."""
        text = _output(_tool(f"{self.prefix}objdump"), "-t", self.path)
        # value, seven flag characters, section, tab, size, name (after ".hidden", perhaps)
        lines = re.findall(r"^[0-9a-f]+ (.{7}) (\S+)\t[0-9a-f]+\s+(?:\.\w+ )?(\S+)$", text, re.MULTILINE)
        return [Symbol(name, section, flags[6]) for flags, section, name in lines]

    def references(self) -> set[str]:
        """Return what the child's section refers to: sections, or names where there is none.

        A writable section stands for the objects in it.
        """
        text = _output(_tool(f"{self.prefix}objdump"), "-r", "-j", SECTION, self.path)
        targets = re.findall(r"^[0-9a-f]+ R_\w+\s+(\S+?)(?:[+-]0x[0-9a-f]+)?$", text, re.MULTILINE)
        symbols = self.symbols()
        sections = {symbol.name: symbol.section for symbol in symbols}
        found: set[str] = set()
        for target in targets:
            section = sections.get(target, target)
            place = target if section == "*UND*" else section
            objects = {s.name for s in symbols if s.section == place and s.kind == "O"}
            found |= objects if place.startswith((".bss", ".data")) and objects else {place}
        return found

    def functions(self, *, in_section: bool) -> set[str]:
        """Return the functions that are in the child's section, or those that are not."""
        return {s.name for s in self.symbols() if s.kind == "F" and (s.section == SECTION) is in_section}

    def thread_local(self) -> list[str]:
        """Return the instructions of the section that touch thread-local storage."""
        text = _output(_tool(f"{self.prefix}objdump"), "-d", "--no-show-raw-insn", "-j", SECTION, self.path)
        lines = text.splitlines()
        assert len(lines) > 100, "the section is all but empty"
        return [line for line in lines if re.search(r"%[fg]s\b|tpidr", line)]


def forbidden(references: set[str]) -> set[str]:
    """Return those that child code may not have."""
    return {name for name in references if name != SECTION and not name.startswith(".rodata")}


def misplaced(made: Object) -> set[str]:
    """Return child functions outside the section, and other functions in it."""
    inside, outside = made.functions(in_section=True), made.functions(in_section=False)
    return {name for name in inside if not name.startswith("ss_child_")} | {
        name for name in outside if name.startswith("ss_child_")
    }


# ----------------------------------------------------------------- compiling the core


def compile_core(
    where: Path, *arguments: str, source: Path = CORE, compiler: str = "gcc", prefix: str = ""
) -> Object:
    """Compile ``source`` alone and return the object."""
    made = where / "core.o"
    _output(_tool(compiler), *arguments, f"-I{SOURCES}", "-c", source, "-o", made)
    return Object(made, prefix)


def _cffi_source(where: Path) -> Path:
    source = where / "_native_ffi.c"
    _BUILD["ffibuilder"]().emit_c_code(str(source))
    return source


def _compile_variant(variant: str, where: Path) -> Object:
    if variant == "cffi":  # the very text that the extension is compiled from
        include = sysconfig.get_path("include")
        if not Path(include, "Python.h").is_file():
            pytest.skip("Python.h is not installed")
        return compile_core(where, *PRODUCT, "-fPIC", f"-I{include}", source=_cffi_source(where))
    if variant in WITHOUT_LIBC:
        name, _, hooks = variant.partition("-")
        flags = [*program_flags(os.uname().machine), *KEEP, *(WITH_HOOKS if hooks else [])]
        return compile_core(where, *flags, source=PROGRAMS[name])
    if variant == "hooks":
        return compile_core(where, *PRODUCT, *KEEP, *STRICT, *WITH_HOOKS)
    if variant == "product":
        return compile_core(where, *PRODUCT, *KEEP, *STRICT)
    return compile_core(where, *BEFORE.get(variant, []), *PRODUCT, *AFTER.get(variant, []), *KEEP)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Object]:
    """Return a maker of objects by variant, each compiled once."""
    made: dict[str, Object] = {}

    def make(variant: str) -> Object:
        if variant not in made:
            made[variant] = _compile_variant(variant, tmp_path_factory.mktemp(variant))
        return made[variant]

    return make


@pytest.fixture
def broken(tmp_path: Path) -> Callable[..., Object]:
    """Return a compiler of the core with something added at its end, as variant `unoptimised`."""

    def make(addition: str, *arguments: str) -> Object:
        source = tmp_path / "broken.c"
        source.write_text(CORE.read_text(encoding="utf-8") + addition, encoding="utf-8")
        return compile_core(tmp_path, *arguments, *PRODUCT, *AFTER["unoptimised"], *KEEP, source=source)

    return make


@pytest.mark.parametrize("variant", ["product", "hooks"])
def test_core_compiles_alone_without_a_warning(compiled: Callable[[str], Object], variant: str) -> None:
    """The core needs no Python.h, and the strict warnings, with which these two are compiled, find nothing in it."""
    assert compiled(variant).functions(in_section=True)


# ---------------------------------------------------------------- the child's section


@pytest.mark.threat("T-07")
@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if not is_hooked(variant)])
def test_child_code_refers_to_itself_and_constants_only(
    compiled: Callable[[str], Object], variant: str
) -> None:
    """However it is compiled, child code calls nothing and touches no variable outside its section."""
    references = compiled(variant).references()
    assert any(name.startswith(".rodata") for name in references), "nothing was read"
    assert forbidden(references) == set()


@pytest.mark.threat("T-07")
@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if is_hooked(variant)])
def test_hooks_add_nothing_but_their_switches_to_child_code(
    compiled: Callable[[str], Object], variant: str
) -> None:
    """The test build's child code refers to its switches beside what the product's refers to."""
    assert forbidden(compiled(variant).references()) == {"ss_hooks"}


CHILD_FUNCTION = "\nstatic SS_CHILD void\nss_child_bad(char *to, const char *from, size_t size)\n{{\n\t{}\n}}\n"


@pytest.mark.threat("T-07")
@pytest.mark.parametrize(
    ("statement", "reported"),
    [
        ("*(char **)(void *)to = strdup(from); (void)size;", "strdup"),
        ("memcpy(to, from, size);", "memcpy"),
        pytest.param("memset(to, *from, size);", "memset", marks=pytest.mark.long),
        pytest.param("to[strlen(from)] = (char)size;", "strlen", marks=pytest.mark.long),
        ("to[size] = (char)errno; (void)from;", "__errno_location"),
        pytest.param("to[size] = (char)getpid(); (void)from;", "getpid", marks=pytest.mark.long),
        ("static char state; state++; to[size] = state; (void)from;", "state"),
        pytest.param("static char told = 1; told++; to[size] = told; (void)from;", "told", marks=pytest.mark.long),
        ("int64_t (*volatile now)(void) = ss_now; to[size] = (char)now(); (void)from;", ".text"),
        ("to[size] = environ[0][0]; (void)from;", "environ"),
    ],
)
def test_reference_check_reports_a_forbidden_one(
    broken: Callable[..., Object], statement: str, reported: str
) -> None:
    """A child function that calls libc or the parent's code, or keeps state, is found out."""
    names = forbidden(broken(CHILD_FUNCTION.format(statement)).references())
    # A static in a function is called name.0 by the compiler.
    assert {re.sub(r"(?<=.)\.[0-9]+$", "", name) for name in names} == {reported}


UNGUARDED = """
__attribute__((section(".text.ss_child"), noinline)) static void
ss_child_bad(char *to)
{
	char copy[64];

	for (unsigned i = 0; i < sizeof(copy); i++)
		((volatile char *)copy)[i] = to[i];
	to[0] = ((volatile char *)copy)[63];
}
"""


@pytest.mark.threat("T-07")
def test_checks_report_a_canary(broken: Callable[..., Object]) -> None:
    """Child code with a stack canary, which aborts through the parent's libc, is found out."""
    made = broken(UNGUARDED, "-fstack-protector-all")
    assert "__stack_chk_fail" in forbidden(made.references())


@pytest.mark.threat("T-07")
@pytest.mark.parametrize("variant", VARIANTS)
def test_section_holds_the_child_functions_and_no_other(
    compiled: Callable[[str], Object], variant: str
) -> None:
    """Every ``ss_child_`` function is in the child's section, and nothing else is."""
    made = compiled(variant)
    inside, outside = ("ss_child_spawn", "ss_window_run")
    if variant in WITHOUT_LIBC:
        inside, outside = ("ss_child_become", f"ss_{variant.partition('-')[0]}_main")
    assert inside in made.functions(in_section=True)
    assert outside in made.functions(in_section=False) or variant == "cffi"
    assert misplaced(made) == set()


@pytest.mark.threat("T-07")
@pytest.mark.parametrize(
    ("addition", "name"),
    [
        ("\nstatic int\nss_child_stray(void)\n{\n\treturn 0;\n}\n", "ss_child_stray"),
        ("\nstatic SS_CHILD int\nss_intruder(void)\n{\n\treturn 0;\n}\n", "ss_intruder"),
    ],
)
def test_section_check_reports_a_misplaced_function(
    broken: Callable[..., Object], addition: str, name: str
) -> None:
    """A child function outside the section is found out, and a stranger inside it."""
    assert misplaced(broken(addition)) == {name}


@pytest.mark.threat("T-07")
@pytest.mark.parametrize("variant", VARIANTS)
def test_child_code_touches_no_thread_local_storage(
    compiled: Callable[[str], Object], variant: str
) -> None:
    """No instruction of child code uses the thread pointer: no errno, no canary, no variable."""
    assert compiled(variant).thread_local() == []


@pytest.mark.threat("T-07")
@pytest.mark.parametrize(
    ("addition", "arguments"),
    [
        ("\n__thread int mine;\n" + CHILD_FUNCTION.format("to[size] = (char)mine++; (void)from;"), []),
        (UNGUARDED, ["-fstack-protector-all"]),
    ],
    ids=["variable", "canary"],
)
def test_thread_local_check_reports_a_use(
    broken: Callable[..., Object], addition: str, arguments: list[str]
) -> None:
    """A thread-local variable or a canary in child code is found out."""
    made = broken(addition, *arguments)
    # On aarch64 the canary is global: there the check of the references reports it.
    assert made.thread_local() or "__stack_chk_guard" in made.references()


# ------------------------------------------------------------------------- aarch64

CROSS = "aarch64-linux-gnu-"
CROSS_PRODUCT = [
    *(one for one in PRODUCT if one != "-fcf-protection"),
    "-mbranch-protection=standard",
    "-mno-outline-atomics",
]


@pytest.mark.threat("T-07")
@pytest.mark.parametrize("arguments", [[], ["-O0"], pytest.param(["-O3"], marks=pytest.mark.long)], ids=["O2", "O0", "O3"])
def test_child_code_is_as_bare_on_aarch64(tmp_path: Path, arguments: list[str]) -> None:
    """On aarch64 too child code compiles cleanly, stays in its section and refers to constants only."""
    made = compile_core(
        tmp_path, *CROSS_PRODUCT, *arguments, *KEEP, *STRICT, compiler=f"{CROSS}gcc", prefix=CROSS
    )
    assert forbidden(made.references()) == set()
    assert misplaced(made) == set()
    assert made.thread_local() == []


@pytest.mark.threat("T-07")
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("arguments", [[], ["-O0"], pytest.param(["-O3"], marks=pytest.mark.long)], ids=["O2", "O0", "O3"])
def test_child_code_of_a_program_is_as_bare_on_aarch64(tmp_path: Path, name: str, arguments: list[str]) -> None:
    """Its child code keeps the same rules there: no call of its own memcpy either."""
    flags = [*program_flags("aarch64"), *arguments, *KEEP]
    made = compile_core(tmp_path, *flags, source=PROGRAMS[name], compiler=f"{CROSS}gcc", prefix=CROSS)
    assert "ss_child_become" in made.functions(in_section=True)
    assert forbidden(made.references()) == set()
    assert misplaced(made) == set()
    assert made.thread_local() == []


# ------------------------------------------------------------- launcher and helper as programs

#: Command, and the prefix of the tools that read what it makes, by machine.
MACHINES = {"aarch64": (f"{CROSS}gcc", CROSS)}
MACHINES[os.uname().machine] = ("gcc", "")

#: What marks code whose indirect branches are checked, as the linker notes it.
BRANCHES = {"x86_64": "x86 feature: IBT, SHSTK", "aarch64": "AArch64 feature: BTI, PAC"}


@dataclass(frozen=True)
class Program:
    """A linked program, and the prefix of the tools that read it."""

    path: Path
    prefix: str = ""

    def read(self, *options: str) -> str:
        """Return what readelf says of it."""
        return _output(_tool(f"{self.prefix}readelf"), "-W", *options, self.path)

    def segments(self) -> dict[str, list[str]]:
        """Return the flags of its segments by their type."""
        found: dict[str, list[str]] = {}
        for kind, flags in re.findall(r"^\s+([A-Z_]+)(?:\s+0x[0-9a-f]+){5}\s+([RWE ]+?)\s+0x", self.read("-l"), re.MULTILINE):
            found.setdefault(kind, []).append(flags.replace(" ", ""))
        return found

    def undefined(self) -> list[str]:
        """Return the symbols that somebody else would have to define."""
        return _output(_tool(f"{self.prefix}nm"), "-u", self.path).split()


def faults(made: Program) -> set[str]:
    """Return what in a program needs a loader, or weakens it: nothing of it may be in one of ours."""
    segments, dynamic = made.segments(), made.read("-d")
    assert segments["LOAD"]
    found = {
        "relocations": "There are no relocations in this file." not in made.read("-r"),
        "undefined symbols": made.undefined() != [],
        "an interpreter": "INTERP" in segments,
        "libraries": "(NEEDED)" in dynamic,
        "a fixed place": "DYN (Position-Independent Executable file)" not in made.read("-h"),
        "no word on its stack": "GNU_STACK" not in segments,
        "an executable stack": "RWE" in segments.get("GNU_STACK", []),
        "writable code": any({"W", "E"} <= set(flags) for flags in segments["LOAD"]),
        "text relocations": "TEXTREL" in dynamic,
        "thread-local storage": "TLS" in segments,
        "hooks": b"ss_hooks" in made.path.read_bytes(),
    }
    return {what for what, is_there in found.items() if is_there}


def link(name: str, machine: str, where: Path, *arguments: str, source: Path = SOURCES) -> Program:
    """Build a program of ours for a machine, from a copy of the sources if one is given."""
    command, prefix = MACHINES[machine]
    where.mkdir(exist_ok=True)
    build = runpy.run_path(str(source / "_native_build.py"))["build_program"]
    build(name, where, *arguments, command=[_tool(command)], machine=machine)
    return Program(where / name, prefix)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_builds_without_a_warning(tmp_path: Path, name: str, machine: str) -> None:
    """The strict warnings find nothing in it, not even a function that it does not need."""
    strict = [one for one in STRICT if one != "-Wno-unused-function"]
    assert link(name, machine, tmp_path, *strict).path.is_file()


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_needs_no_loader(tmp_path: Path, name: str, machine: str) -> None:
    """Nothing in it is found, bound or relocated when it starts; no code of it can be written."""
    made = link(name, machine, tmp_path)
    assert faults(made) == set()
    assert BRANCHES[machine] in made.read("-n")


#: The programs as shipped: where each is found, and the digest by which the core knows it.
SHIPPED = {
    "launcher": (_launcher.PATH, _binding.launcher_digest),
    "helper": (_helpers.PATH, _binding.helper_digest),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_as_shipped_needs_no_loader(name: str) -> None:
    """The same of the one that lies beside the core, which knows it by its digest."""
    path, digest = SHIPPED[name]
    assert faults(Program(Path(path))) == set()
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest()


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_is_the_same_whenever_it_is_built(tmp_path: Path, name: str, machine: str) -> None:
    """The digest is that of the sources and the compiler: no path, no time."""
    first, second = (link(name, machine, tmp_path / where) for where in ("first", "second"))
    assert first.path.read_bytes() == second.path.read_bytes()
    assert str(helpers.ROOT).encode() not in first.path.read_bytes()


POINTERS = """
static int ss_bad_first(void) { return 1; }
static int ss_bad_second(void) { return 2; }
int (*const volatile ss_bad_table[])(void) __attribute__((used)) = {ss_bad_first, ss_bad_second};
"""
PER_THREAD = "__thread int ss_bad_word __attribute__((used)) = 1;\n"
ELSEWHERE = "extern int ss_elsewhere(void);\nint ss_bad(void) { return ss_elsewhere(); }\n"


@pytest.mark.parametrize(
    "machine", [pytest.param(one, marks=() if one == os.uname().machine else pytest.mark.long) for one in MACHINES]
)
@pytest.mark.parametrize("name", ["launcher", pytest.param("helper", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("addition", "arguments", "fault"),
    [
        (POINTERS, [], "relocations"),
        (PER_THREAD, [], "thread-local storage"),
        (ELSEWHERE, ["-shared"], "undefined symbols"),
        ("", ["-shared", "-Wl,--no-as-needed", "-lc"], "libraries"),
        ("", ["-Wl,-z,execstack"], "an executable stack"),
        ("", ["-Wl,--omagic"], "writable code"),
        ("", ["-no-pie", "-static"], "a fixed place"),
        ("", ["-Wl,-dynamic-linker,/lib/ld.so"], "an interpreter"),
        ("", ["-DSS_TEST_HOOKS", f"-I{HOOKS}"], "hooks"),
    ],
    ids=["table", "thread", "undefined", "library", "stack", "writable", "fixed", "loader", "hooks"],
)  # fmt: skip
def test_program_checks_report_a_fault(
    tmp_path: Path, name: str, machine: str, addition: str, arguments: list[str], fault: str
) -> None:
    """A program that needs a loader, or has what it must not have, is found out."""
    copy = tmp_path / "safespawn"
    shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    with (copy / PROGRAMS[name].name).open("a", encoding="utf-8") as source:
        source.write(addition)
    assert fault in faults(link(name, machine, tmp_path / "made", *arguments, source=copy))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_that_calls_libc_is_not_even_linked(tmp_path: Path, name: str, machine: str) -> None:
    """Nobody defines libc's functions for it."""
    command, _ = MACHINES[machine]
    source = tmp_path / "bad.c"
    source.write_text(PROGRAMS[name].read_text(encoding="utf-8") + "\nint ss_bad(void) { return rand(); }\n", encoding="utf-8")
    flags = [*_BUILD["PROGRAM_ARGS"], *_BUILD["PROGRAM_MACHINE_ARGS"][machine], "-Wno-implicit-function-declaration"]
    done = subprocess.run(
        [_tool(command), *flags, f"-I{SOURCES}", str(source), "-o", str(tmp_path / "bad")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "undefined reference to `rand'" in done.stderr


# ------------------------------------------------------------- the extension as shipped


def _extension() -> Path:
    return Path(str(_binding._native_ffi.__file__))


def test_extension_has_no_hooks() -> None:
    """The product has no switch that turns a guard off: no symbol, no attribute, no text."""
    assert not hasattr(_binding.lib, "ss_hooks")
    assert b"ss_hooks" not in _extension().read_bytes()
    assert "ss_hooks" not in _output(_tool("nm"), "-D", _extension())


def test_hooks_check_reports_a_test_build(hooks_path: Path) -> None:
    """A test build, taken for the product, would be found out."""
    (built,) = (hooks_path / "safespawn").glob("_native_ffi*.so")
    assert b"ss_hooks" in built.read_bytes()


def test_extension_exports_its_init_function_only() -> None:
    """Nobody can link to the core or override a part of it."""
    lines = _output(_tool("nm"), "-D", "--defined-only", _extension()).splitlines()
    assert [line.split()[-1].partition("@")[0] for line in lines] == ["PyInit__native_ffi"]


def test_extension_has_no_executable_stack() -> None:
    """The loader is not asked to make stacks executable, which would hold for the whole process."""
    headers = _output(_tool("readelf"), "-lW", _extension())
    assert re.findall(r"GNU_STACK(?:\s+0x[0-9a-f]+){5}\s+(\S+)", headers) == ["RW"]


def test_extension_has_no_writable_code() -> None:
    """No segment is writable and executable."""
    headers = _output(_tool("readelf"), "-lW", _extension())
    flags = re.findall(r"^\s+LOAD(?:\s+0x[0-9a-f]+){5}\s+([RWE ]+?)\s+0x", headers, re.MULTILINE)
    assert flags
    assert [one for one in flags if "W" in one and "E" in one] == []


def test_extension_binds_nothing_lazily() -> None:
    """All symbols are resolved when it is loaded, so none is looked up in the window."""
    dynamic = _output(_tool("readelf"), "-dW", _extension())
    assert re.search(r"\(FLAGS\).*BIND_NOW", dynamic) or re.search(r"\(FLAGS_1\).*NOW", dynamic)


# -------------------------------------------------------------------- style of the C code

FUNCTION_LINES = 60
COMMENT_SHARE = 0.10
C_FILES = sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")])
C_FILES = [path for path in C_FILES if path.name != "_native_ffi.c"]  # cffi writes that one


def functions(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every function: name, and its lines from the one with the name to the last brace."""
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if re.match(r"ss_\w+\(", line)]
    for start in starts:
        end = next((i for i in range(start, len(lines)) if lines[i].startswith("}")), len(lines))
        yield lines[start].partition("(")[0], lines[start : end + 1]


def backward_jumps(lines: list[str]) -> list[str]:
    """Return the gotos of a function whose label does not come later."""
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"\s*(\w+):(?!:)", line))}
    jumps = [(i, m[1]) for i, line in enumerate(lines) for m in re.finditer(r"\bgoto (\w+);", line)]
    return [label for i, label in jumps if labels.get(label, -1) <= i]


def comment_share(text: str) -> float:
    """Return the share of the lines with something in them that a comment is on."""
    lines = [line for line in text.splitlines() if line.strip()]
    comments, inside = 0, False
    for line in lines:
        comments += inside or "/*" in line or "//" in line
        inside = line.rfind("/*") > line.rfind("*/") or (inside and "*/" not in line)
    return comments / len(lines)


@pytest.mark.parametrize("path", C_FILES, ids=lambda path: path.name)
def test_c_functions_are_short(path: Path) -> None:
    """No function of the core is longer than a screen."""
    found = {name: len(lines) for name, lines in functions(path.read_text(encoding="utf-8"))}
    assert found or path.suffix == ".h"
    assert {name: length for name, length in found.items() if length > FUNCTION_LINES} == {}


@pytest.mark.parametrize("path", C_FILES, ids=lambda path: path.name)
def test_c_jumps_go_forward(path: Path) -> None:
    """A goto leads downwards only."""
    found = {name: backward_jumps(lines) for name, lines in functions(path.read_text(encoding="utf-8"))}
    assert {name: labels for name, labels in found.items() if labels} == {}


@pytest.mark.parametrize("path", C_FILES, ids=lambda path: path.name)
def test_c_files_say_why(path: Path) -> None:
    """A tenth of the lines at least has a comment."""
    assert comment_share(path.read_text(encoding="utf-8")) >= COMMENT_SHARE


def test_style_checks_see_every_function(compiled: Callable[[str], Object]) -> None:
    """What the style checks read as functions are all that the compiler made of the core."""
    texts = [path.read_text(encoding="utf-8") for path in C_FILES]
    read = {name for text in texts for name, _ in functions(text)}
    read |= {f"ss_wrap_{name}" for text in texts for name in re.findall(r"^SS_WRAP\d\(\w+, (\w+)", text, re.MULTILINE)}
    read |= {"ss_wrap_syscall", "ss_wrap_vfork"}  # the gates, in assembler
    compiled_names = {name for one in ("product", *PROGRAMS) for inside in (True, False)
                      for name in compiled(one).functions(in_section=inside)}  # fmt: skip
    compiled_names -= {"_start", "memcpy", "memset"}  # of the programs: assembler, and what compilers call
    assert {name.partition(".")[0] for name in compiled_names} <= read  # ".part.0": the compiler split it


def test_style_checks_report_what_breaks_them() -> None:
    """A long function, a jump backwards and a text without comments are found out."""
    text = "static int\nss_bad(void)\n{\nagain:\n" + "\twork();\n" * 60 + "\tgoto again;\n}\n"
    ((name, lines),) = functions(text)
    assert (name, len(lines) > FUNCTION_LINES, backward_jumps(lines)) == ("ss_bad", True, ["again"])
    assert comment_share(text) == 0
    assert comment_share("/* a\n * b\n */\nint c;\n") == 0.75
