"""Fixtures and rules for all tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

import helpers

if helpers.CORE is not None:  # another build of the package is to be tested: tests/sanitize.sh
    sys.path.insert(0, helpers.CORE)

pytest.register_assert_rewrite("child_state", "ledger_check")  # they compare, and are to show what differs
import beyond_libc  # noqa: E402 - as below
import child_state  # noqa: E402 - after the place of the package is settled
import faulting  # noqa: E402 - as above
import starting_ways  # noqa: E402 - as above
from safespawn import _launcher  # noqa: E402 - as above

#: The keys of the machine that runs the tests are not ours to use up.
os.environ["SAFESPAWN_AUDIT_KEYS"] = ""
#: Commands of ours buffer their output as they do for a person; what is in a buffer can fail at the very end.
os.environ.pop("PYTHONUNBUFFERED", None)

#: How long an example takes is the machine's affair.
hypothesis.settings.register_profile("unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("unhurried")

#: With SAFESPAWN_MUST_RUN=1 (CI) a test that would skip fails: nothing goes untested unseen.
MUST_RUN = os.environ.get("SAFESPAWN_MUST_RUN") == "1"

#: The switched core that was built before. Suites that tests run, on sources with planted faults, build their own.
HOOKED_CORE = os.environ.pop("SAFESPAWN_HOOKED_CORE", None)

#: With SAFESPAWN_LONG=1 (`make check`) cases are run too that `make test` has no time for.
LONG = os.environ.get("SAFESPAWN_LONG") == "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:
    """Turn a skip into a failure where everything must run."""
    report = yield
    if MUST_RUN and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Turn the skip of a whole module into a failure as well."""
    report = yield
    if MUST_RUN and report.skipped:
        report.outcome = "failed"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[object]:
    """Have refused what libc cannot express: such a case of a suite must end in that refusal."""
    case = pyfuncitem.callspec.id if hasattr(pyfuncitem, "callspec") else ""
    option = beyond_libc.refused(pyfuncitem.originalname, case)
    try:
        result = yield
    except Exception as problem:
        if option is None or not beyond_libc.says_so(problem, option):
            raise
        return True
    assert option is None, f"{option} was not refused"
    return result


@pytest.fixture(scope="session", autouse=True)
def launcher_is_held() -> None:
    """Open the launcher's file now: its descriptor is kept as long as the process lives."""
    _launcher.hold()


@pytest.fixture(autouse=True)
def nothing_leaks(launcher_is_held: None) -> Iterator[None]:
    """After every test: the same descriptors as before, no child and no thread left."""
    helpers.wait_until_alone()
    before = helpers.open_fds()
    yield
    helpers.wait_until_alone()
    after = helpers.open_fds()
    assert after == before, f"descriptors leaked or lost: {before ^ after}"
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of executable scripts."""

    def make(text: str = "#!/bin/sh\nexit 0\n", name: str = "program", mode: int = 0o755) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return path

    return make


@pytest.fixture(scope="session")
def whole() -> str:
    """Build the probe that tells everything, and return its path: every user can run it."""
    path = helpers.PROBES / "whole"
    built = subprocess.run(
        ["gcc", "-static", "-O2", "-o", str(path), str(helpers.TESTS / "probes" / "whole.c")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    path.chmod(0o755)
    return str(path)


def _takes_what_no_helper_does(item: pytest.Item) -> bool:
    """Whether a test would have a helper make a PID namespace, which is refused (test_helper.py)."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    if params.get("probe") != "helper":
        return False
    makes = item.get_closest_marker("makes_pid_namespace") is not None
    return makes or params.get("name") in ("pid", "process-1") or params.get("drop") == "namespaces"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run tests over all strategies that can do what they are about, and the long forms where they are asked for."""
    items[:] = [item for item in items if not _takes_what_no_helper_does(item)]
    if not LONG:
        left = [item for item in items if item.get_closest_marker("long") is not None]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item.get_closest_marker("long") is None]


@pytest.fixture(params=child_state.STRATEGIES)
def probe(whole: str, request: pytest.FixtureRequest) -> Iterator[child_state.Probe]:
    """Return that probe, run by each strategy that can give a child other privileges than ours."""
    with starting_ways.ready({"strategy": request.param}):
        yield child_state.Probe(whole, request.param)


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library that has system calls fail, and return its path; see tests/faulting.py."""
    return faulting.build_library(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def mark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the program that makes the file that its last argument names, and return its path."""
    return faulting.build_mark(tmp_path_factory.mktemp("mark"))


@pytest.fixture
def public() -> Iterator[Path]:
    """Return a directory that every user can reach: pytest makes those above its own private again."""
    with tempfile.TemporaryDirectory(prefix="safespawn-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def jail(public: Path, whole: str) -> Path:
    """Return a directory that has nothing but the probe, as /bin/whole, and another directory."""
    where = public / "jail"
    (where / "bin").mkdir(parents=True)
    (where / "inside").mkdir()
    shutil.copy(whole, where / "bin" / "whole")
    for path in (where, where / "bin", where / "inside", where / "bin" / "whole"):
        path.chmod(0o755)
    (public / "outside").write_text("secret")
    return where


@pytest.fixture
def cgroup_v2() -> Iterator[Path]:
    """Return a control group of our own in the unified hierarchy."""
    yield from helpers.control_group(child_state.V2 / f"safespawn-test-{os.getpid()}")


@pytest.fixture(scope="session")
def hooks_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the test variant of the core (guards can be switched off) and return its place; `make test` has built it."""
    if HOOKED_CORE:
        return Path(HOOKED_CORE)
    where = tmp_path_factory.mktemp("hooks")
    built = subprocess.run(
        [sys.executable, str(helpers.TESTS / "build_variant.py"), "hooks", str(where)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return where


@pytest.fixture(scope="session")
def in_hooks(hooks_path: Path) -> Callable[..., dict[str, object]]:
    """Return a runner of a snippet in a fresh process with the test core.

    The snippet finds ``safespawn``, ``lib`` and ``hooks`` and fills the dict ``out``, which
    is returned; see :func:`helpers.run_snippet`.
    """

    def run(snippet: str, **values: object) -> dict[str, object]:
        return helpers.run_snippet(snippet, path=hooks_path, **values)

    return run
