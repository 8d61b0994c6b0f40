"""The layers of the package: who may import whom, read from the source of every module."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import helpers

PACKAGE = helpers.ROOT / "safespawn"

#: From the bottom up. A module imports only from lines above its own, never from its own.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "safespawn._descriptors",
        "safespawn._rebind",
        "safespawn._secret",
        "safespawn._surely",
        "safespawn.audit._expression",
    ),
    ("safespawn.audit._shapes", "safespawn.audit._tools"),
    (
        "safespawn._option_words",
        "safespawn._shell",
        "safespawn._tree",
        "safespawn._spec",
        "safespawn._values",
        "safespawn._privileges",
        "safespawn._mappings",
        "safespawn.audit._record",
        "safespawn.audit._lines",
        "safespawn.audit._segments",
        "safespawn.audit._slots",
        "safespawn.audit._fields",
        "safespawn.audit._page_assets",
        "safespawn._cli_progress",
        "safespawn.audit._first_look",
        "safespawn.audit._text_search",
        "safespawn.audit.mirrors._health",
        "safespawn.audit.mirrors._held",
        "safespawn.audit.mirrors._journal_entry",
        "safespawn.audit.mirrors._line",
        "safespawn.audit.mirrors._rfc5424",
    ),
    (
        "safespawn._errors",
        "safespawn._confine",
        "safespawn._environ",
        "safespawn._patterns",
        "safespawn.audit._repeats",
        "safespawn.audit._word_reader",
        "safespawn.audit.mirrors._audit_fields",
        "safespawn.audit.mirrors._audit_netlink",
        "safespawn.audit.mirrors._checked",
        "safespawn.audit.mirrors._datagrams",
        "safespawn.audit.mirrors._stream",
    ),
    ("safespawn.audit._redact",),
    ("safespawn.audit._redaction",),
    # What reads ledgers, which takes nothing of what writes them.
    ("safespawn.audit._tail", "safespawn.audit.spawns", "safespawn.audit.exporters._fields"),
    (
        "safespawn.audit.reader",
        "safespawn.audit.filters",
        "safespawn.audit._shown",
        "safespawn.audit._summary",
        "safespawn.audit.exporters._events",
        "safespawn.audit.exporters._joined",
    ),
    (
        "safespawn.audit._happened",
        "safespawn.audit._markup",
        "safespawn.audit._timeline",
        "safespawn.audit.exporters._ocsf_objects",
    ),
    (
        "safespawn.audit.table",
        "safespawn.audit._page_tables",
        "safespawn.audit.exporters.ocsf",
        "safespawn.audit.exporters.ecs",
        "safespawn.audit.exporters.otel",
    ),
    ("safespawn.audit.html_report", "safespawn.audit.exporters"),
    ("safespawn._checks", "safespawn._refusals", "safespawn.audit.mirrors._mirror"),
    (
        "safespawn.audit.mirrors._journald",
        "safespawn.audit.mirrors._linux_audit",
        "safespawn.audit.mirrors._link",
        "safespawn.audit.mirrors._logging",
        "safespawn.audit.mirrors._opentelemetry",
        "safespawn.audit.mirrors._syslog",
    ),
    ("safespawn.audit.mirrors._worker",),
    ("safespawn.audit.mirrors._runner",),
    ("safespawn.audit.mirrors",),
    ("safespawn._policy", "safespawn._policy_lines", "safespawn._native_ffi"),
    ("safespawn._binding", "safespawn._command"),
    ("safespawn._lock_words", "safespawn._launcher", "safespawn._prepare"),
    ("safespawn._lock",),
    ("safespawn._probe",),
    ("safespawn.audit._core",),
    ("safespawn._cgroup",),
    ("safespawn.audit._files", "safespawn.audit._bypass", "safespawn.audit._ids", "safespawn.audit._locks"),
    ("safespawn.audit._breakglass", "safespawn.audit.keys"),
    ("safespawn.audit._verify_findings", "safespawn.audit._verify_keys", "safespawn.audit._verify_segments"),
    ("safespawn.audit._verify_scan", "safespawn.audit._verify_state"),
    ("safespawn.audit._verify_descent", "safespawn.audit._verify_registry", "safespawn.audit._verify_witness"),
    ("safespawn.audit._verify_walk",),
    ("safespawn.audit._verify_done",),
    (
        "safespawn.audit._verify_births",
        "safespawn.audit._verify_repeats",
        "safespawn.audit._verify_retired",
        "safespawn.audit._verify_summary",
        "safespawn.audit._verify_tails",
    ),
    ("safespawn.audit._verify_witnessed",),
    ("safespawn.audit.verifier",),
    ("safespawn.audit._ledger",),
    ("safespawn.audit.retention",),
    ("safespawn.audit",),
    (
        "safespawn.guards",
        "safespawn._own_file",
        "safespawn._changes",
        "safespawn._child",
        "safespawn._streams",
        "safespawn._identity",
        "safespawn._landlock",
        "safespawn._helpers",
    ),
    (
        "safespawn._allow",
        "safespawn._features",
        "safespawn._executable",
        "safespawn._records",
        "safespawn._process",
        "safespawn._places",
        "safespawn._guard_config",
        "safespawn._policy_values",
    ),
    ("safespawn._spawn", "safespawn._policy_file", "safespawn._watched"),
    ("safespawn._run", "safespawn._many", "safespawn.helper", "safespawn._unguarded", "safespawn._waits", "safespawn.policy"),
    ("safespawn._seam",),
    ("safespawn._posix_calls", "safespawn._system", "safespawn.subprocess"),
    ("safespawn.aio", "safespawn.takeover"),
    ("safespawn",),
    ("safespawn.doctor", "safespawn.bench", "safespawn.bench.spread", "safespawn.bench.rounds", "safespawn.bench.tools", "safespawn.bench.pacer", "safespawn.bench.progress"),
    ("safespawn.bench.results", "safespawn.bench.machine", "safespawn.bench.ways", "safespawn.bench.cgroup"),
    ("safespawn.bench.worker", "safespawn.bench.plan", "safespawn.bench.window", "safespawn.bench.peers", "safespawn.bench.plots"),
    ("safespawn.bench.samples", "safespawn.bench.targets"),
    ("safespawn.bench.measure",),
    ("safespawn.bench.tables",),
    ("safespawn.bench.question",),
    ("safespawn.bench.page",),
    ("safespawn.bench.command",),
    ("safespawn._cli_types", "safespawn._cli_exit", "safespawn._cli_python", "safespawn.startup._safespawn_startup", "safespawn.startup.sitecustomize"),
    (
        "safespawn._cli_bench",
        "safespawn._cli_options",
        "safespawn._cli_keywords",
        "safespawn._cli_audit_keys",
        "safespawn._cli_audit_export",
        "safespawn._cli_audit_view",
        "safespawn._cli_audit_verify",
    ),
    ("safespawn._cli_audit", "safespawn._cli_exec"),
    ("safespawn.cli",),
    ("safespawn.__main__",),
    ("safespawn._native_build",),
    ("safespawn.bench.programs.children", "safespawn.bench.programs.holder"),
)
RANKS = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}

#: In the table, but no Python source: the compiled core.
EXTENSION = "safespawn._native_ffi"

#: Values only: these must work where neither the core nor /proc is to be had.
PURE = ("safespawn._secret", "safespawn._patterns", "safespawn._spec", "safespawn._values", "safespawn._privileges", "safespawn._confine", "safespawn._checks", "safespawn._environ", "safespawn._errors")
IMPURE = ("safespawn._probe", "safespawn._binding", EXTENSION, "prctl")

#: The command line. It is a caller like any other: beside its own parts it has the public names alone.
COMMAND_LINE = (
    "safespawn._option_words",
    "safespawn._cli_types",
    "safespawn._cli_options",
    "safespawn._cli_keywords",
    "safespawn._cli_progress",
    "safespawn._cli_exit",
    "safespawn._cli_python",
    "safespawn._cli_exec",
    "safespawn._cli_bench",
    "safespawn._cli_audit_keys",
    "safespawn._cli_audit_export",
    "safespawn._cli_audit_view",
    "safespawn._cli_audit",
    "safespawn._cli_audit_verify",
    "safespawn.cli",
)

#: What is not of the standard library: package, the one module that may import it.
#: OpenTelemetry's is for an extra, and imported when its mirror is made. So is tomli, for Python 3.10.
REQUIRED = {
    "prctl": "safespawn._probe",
    "_safespawn_startup": "safespawn.startup.sitecustomize",
    "cffi": "safespawn._native_build",
    "opentelemetry": "safespawn.audit.mirrors._opentelemetry",
    "tomli": "safespawn._policy_file",
    "matplotlib": "safespawn.bench.plots",
    "tqdm": "safespawn.bench.progress",
    "children": "safespawn.bench.worker",
}


def module_name(path: Path) -> str:
    """Return the dotted name of a source file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_sources() -> dict[str, str]:
    """Return the text of every module by its name."""
    return {module_name(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


SOURCES = read_sources()
#: A relative import of one dot means the package itself in these, its parent in the others.
PACKAGES = {module_name(path) for path in PACKAGE.rglob("__init__.py")}


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    base = module.split(".")
    up = node.level - (module in PACKAGES)
    parents = base[: len(base) - up]
    return ".".join([*parents, node.module] if node.module else parents)


def imports(module: str, text: str) -> Iterator[tuple[str, int]]:
    """Yield every module that ``module`` imports, wherever in its text, and the line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            for alias in node.names:
                below = f"{base}.{alias.name}"
                # A name that is no module is taken from the package itself.
                yield (below if below in RANKS or below in SOURCES else base), node.lineno


def violations(sources: dict[str, str]) -> list[str]:
    """Return every import that does not point downwards, and every module without a rank."""
    found = [f"{module} is missing from the table" for module in sources if module not in RANKS]
    for module, text in sources.items():
        for target, line in imports(module, text):
            if target.partition(".")[0] != "safespawn" or module not in RANKS:
                continue
            if target not in RANKS:
                found.append(f"{module}:{line} imports {target}, which is missing from the table")
            elif RANKS[target] >= RANKS[module]:
                found.append(f"{module}:{line} imports {target}, which is not below it")
    return found


def test_every_import_points_downwards() -> None:
    """No module imports from its own layer or one above it, not even for types or in a function."""
    assert violations(SOURCES) == []


def test_table_lists_every_module_and_no_other() -> None:
    """The table of layers and the source tree hold the same modules, each once."""
    listed = [module for layer in LAYERS for module in layer]
    assert len(listed) == len(set(listed))
    assert set(listed) - {EXTENSION} == set(SOURCES)


@pytest.mark.parametrize(
    ("module", "text", "complaint"),
    [
        ("safespawn._spec", "from ._spawn import spawn", "not below"),
        ("safespawn._spec", "from . import _spawn", "not below"),
        ("safespawn._spec", "import safespawn.cli", "not below"),
        ("safespawn._spec", "from safespawn import run", "imports safespawn, which is not below"),
        ("safespawn._spec", "def f():\n    from ._probe import look", ":2 imports safespawn._probe"),
        (
            "safespawn._spec",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ._errors import SpawnError",
            ":3 imports safespawn._errors",
        ),
        ("safespawn.guards", "from . import _child", "not below"),
        ("safespawn.audit._slots", "from .. import _probe", "not below"),
        ("safespawn.audit._slots", "from . import _record", "not below"),
        ("safespawn.audit", "from . import guards", "imports safespawn.audit, which is not below"),
        ("safespawn.audit", "from .. import guards", "imports safespawn.guards, which is not below"),
        ("safespawn._new", "import os", "safespawn._new is missing from the table"),
        ("safespawn.cli", "import safespawn._new", "which is missing from the table"),
    ],
)
def test_layer_check_reports_a_bad_import(module: str, text: str, complaint: str) -> None:
    """The check of the layers sees an import upwards or sideways in whatever form it is written."""
    assert complaint in "; ".join(violations({module: text}))


def test_no_module_is_imported_by_a_computed_name() -> None:
    """Nothing imports by a call, which the check of the layers could not read."""
    for module, text in SOURCES.items():
        for node in ast.walk(ast.parse(text)):
            name = getattr(node, "attr", None) or getattr(node, "id", None)
            assert name not in ("__import__", "import_module"), f"{module}:{node.lineno}"  # type: ignore[attr-defined]


def test_extension_has_one_importer() -> None:
    """Only _binding.py imports the compiled core."""
    importers = {
        module for module, text in SOURCES.items() for target, _ in imports(module, text) if target == EXTENSION
    }
    assert importers == {"safespawn._binding"}


def test_packages_of_others_have_one_importer() -> None:
    """Each package that is not of the standard library has one importer."""
    for module, text in SOURCES.items():
        for target, line in imports(module, text):
            top = target.partition(".")[0]
            if top in sys.stdlib_module_names or top == "safespawn":
                continue
            if top == "typing_extensions":
                assert _is_for_types_only(text, line), f"{module}:{line} needs {top} at run time"
            else:
                assert REQUIRED.get(top) == module, f"{module}:{line} imports {target}"


def _is_for_types_only(text: str, line: int) -> bool:
    for node in ast.parse(text).body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            if node.lineno < line <= max(part.end_lineno or 0 for part in node.body):
                return True
    return False


@pytest.mark.parametrize("module", PURE)
def test_pure_module_reaches_nothing_that_looks(module: str) -> None:
    """Values and their checks lead, over any number of imports, to no probe, core or prctl."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        for target, _ in imports(current := todo.pop(), SOURCES[current]):
            if target not in seen:
                seen.add(target)
                todo += [target] if target in SOURCES else []
    assert seen.isdisjoint(IMPURE)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_names(text: str) -> list[str]:
    """Return the private modules that a source imports and the private attributes that it touches."""
    own = {module.rpartition(".")[2] for module in COMMAND_LINE}
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        found += [f"{node.lineno}: {name}" for name in names if _is_private(name) and name not in own]  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("module", COMMAND_LINE)
def test_command_line_uses_public_names_only(module: str) -> None:
    """The command line imports no private module but its own parts, and touches no private attribute."""
    assert private_names(SOURCES[module]) == []


@pytest.mark.parametrize(
    "text",
    [
        "from . import _checks",
        "from ._checks import request",
        "from safespawn._spec import Request",
        "import safespawn._spawn",
        "from safespawn.audit import _ledger",
        "import safespawn\nsafespawn._spawn.start",
        "from ._cli_types import _limit",
    ],
)
def test_check_of_the_command_line_reports_a_private_name(text: str) -> None:
    """The check sees a private module or attribute in whatever form it is taken."""
    assert len(private_names(text)) == 1


@pytest.mark.parametrize("module", COMMAND_LINE)
def test_command_line_stays_within_what_is_exported(module: str) -> None:
    """What the command line takes from safespawn and its audit is in their ``__all__``."""
    import safespawn
    from safespawn import audit

    used: dict[str, set[str]] = {"safespawn": set(), "audit": set()}
    for node in ast.walk(ast.parse(SOURCES[module])):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in used:
            used[node.value.id].add(node.attr)
    assert used["safespawn"] or module != "safespawn.cli"
    assert used["safespawn"] <= set(safespawn.__all__)
    assert used["audit"] <= set(audit.__all__)


def _exported(node: ast.stmt) -> list[str] | None:
    if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
        names: list[str] = ast.literal_eval(node.value)
        return names
    return None


def test_package_module_has_imports_and_all_only() -> None:
    """``__init__.py`` is a docstring, imports and the ``__all__`` of just these names."""
    body = ast.parse(SOURCES["safespawn"]).body
    imported: list[str] = []
    exported: list[str] = []
    for node in body[1:]:
        if isinstance(node, ast.ImportFrom):
            imported += [alias.asname or alias.name for alias in node.names]
        else:
            names = _exported(node)
            assert names is not None, f"__init__.py:{node.lineno} is code: {ast.unparse(node)}"
            exported += names
    assert ast.get_docstring(ast.parse(SOURCES["safespawn"]))
    assert sorted(exported) == sorted(imported)
    assert len(exported) == len(set(exported))
