"""The clients whose own tests are run without us and with us, and how."""

from __future__ import annotations

from typing import NamedTuple


class Client(NamedTuple):
    """One client: the pin of its sdist on PyPI, which has the tests in it, and how they are run."""

    name: str
    version: str
    #: For pytest, in the directory of the sdist.
    arguments: tuple[str, ...]
    #: What the tests need beyond the client.
    requires: tuple[str, ...] = ()
    #: Whether its tests want a terminal.
    tty: bool = False
    #: Variables for the run.
    variables: dict[str, str] = {}
    #: Files and node ids that are run neither way, each with its reason.
    left_out: dict[str, str] = {}


CLIENTS = (
    # Its settings for pytest, which pytest 8 does not read, switch off reports that pytest 9 needs.
    Client(
        "psutil",
        "7.2.2",
        ("tests",),
        ("pytest<9", "pytest-subtests", "setuptools", "psleak"),
        variables={"PYTHONPATH": "."},
        left_out={
            "tests/test_scripts.py::TestExampleScripts::test_who": "wants somebody to be logged in",
            "tests/test_system.py::TestMiscAPIs::test_users": "wants somebody to be logged in",
            "tests/test_scripts.py::TestInternalScripts::test_import_all": "wants the tools of psutil's developers",
            "tests/test_scripts.py::TestSetupScript::test_invocation": "is about setup.py",
        },
    ),
    Client(
        "plumbum",
        "2.0.2",
        ("tests",),
        # Its conftest uses what pytest 9.2 warns of.
        ("pytest<9.1", "psutil", "pytest-asyncio", "pytest-cov", "pytest-mock", "pytest-timeout"),
    ),
    Client("sh", "2.4.0", ("tests",), ("pytest",)),
    # Its tests read the real standard input.
    Client("invoke", "3.0.3", ("tests", "-s"), ("pytest-relaxed>=2", "icecream", "pytest", "pytest-mock"), tty=True),
    Client(
        "pexpect",
        "4.9.0",
        ("tests",),
        ("pytest",),
        left_out={
            "tests/test_replwrap.py::REPLWrapTestCase::test_zsh": "wants zsh",
            "tests/test_replwrap.py::REPLWrapTestCase::test_existing_spawn": "wants an older bash",
        },
    ),
    Client(
        "trio",
        "0.35.0",
        ("src/trio",),
        ("pytest", "trustme", "pyOpenSSL", "async_generator"),
        left_out={
            "src/trio/_tests/tools": "check trio's own sources and tools",
            "src/trio/_tests/test_exports.py": "checks trio's own names, by pylint, jedi and mypy",
        },
    ),
    Client(
        "anyio",
        "4.16.0",
        ("tests",),
        (
            "blockbuster",
            "coverage",
            "hypothesis",
            "psutil",
            "pytest",
            "pytest-mock",
            "pytest-timeout",
            "trustme",
            "truststore",
            "uvloop",
            "trio",
        ),
        left_out={
            "tests/test_sockets.py": "wants an IPv6 address for localhost, and starts no program",
            "tests/test_lazyimport.py::test_sourceless_install": "installs packages from the network",
        },
    ),
    Client("supervisor", "4.3.0", ("supervisor/tests",), ("pytest", "setuptools")),
    Client("execnet", "2.1.2", ("testing",), ("pytest", "pytest-timeout")),
    Client(
        "loky",
        "3.7.0",
        ("tests",),
        ("packaging", "pytest", "psutil"),
        left_out={
            "tests/test_loky_module.py::test_cpu_count_cgroup_limit": "wants docker",
            "tests/test_process_executor_forkserver.py": "test_process_executor_loky.py again, by multiprocessing",
            "tests/test_process_executor_spawn.py": "test_process_executor_loky.py again, by multiprocessing",
        },
    ),
)
