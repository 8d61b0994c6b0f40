"""The tests of CPython that come out otherwise with us, each with the reason why that is right.

An entry that is not needed fails the comparison, as does a difference without an entry.
"""

from __future__ import annotations

from typing import NamedTuple

VERSIONS = ("3.10", "3.11", "3.13", "3.14")


class Expected(NamedTuple):
    """Tests that are worse with us in a mode, on the versions that have them."""

    tests: tuple[str, ...]
    reason: str
    modes: tuple[str, ...] = ("replaced",)
    versions: tuple[str, ...] = VERSIONS


SUBPROCESS = "test.test_subprocess"

EXPECTED = (
    Expected(
        (
            f"{SUBPROCESS}.POSIXProcessTestCase.test_exception_errpipe_bad_data",
            f"{SUBPROCESS}.POSIXProcessTestCase.test_exception_errpipe_normal",
            f"{SUBPROCESS}.POSIXProcessTestCase.test__use_vfork",
            f"{SUBPROCESS}.ProcessTestCase.test__use_vfork",
            f"{SUBPROCESS}.ProcessTestCaseNoPoll.test__use_vfork",
        ),
        "puts a false `fork_exec` into the standard module; our Popen does not start programs by it",
    ),
    Expected(
        (f"{SUBPROCESS}.POSIXProcessTestCase.test_stopped",),
        "puts a false `os.waitpid` into the standard module; our Popen waits by a pidfd",
    ),
    Expected(
        (
            f"{SUBPROCESS}.MiscTests.test_call_keyboardinterrupt_no_kill",
            f"{SUBPROCESS}.MiscTests.test_run_keyboardinterrupt_no_kill",
        ),
        "puts a Popen of its own into the standard module; our call() and run() use the one beside them",
    ),
)
