"""What posix_spawn(3) cannot express, of what the suites try by every strategy.

Nothing of it is skipped: each of these is tried by ``posix_spawn`` too, and must be refused, by the
name of the option, before anything is started; see conftest.py.
"""

from __future__ import annotations

import re

#: Test, and the id of its case without that of the way; "" for all. The first option that is refused.
REFUSED: dict[tuple[str, str], str] = {
    ("test_controlling_terminal", ""): "controlling_terminal",
    ("test_umask", ""): "umask",
    ("test_nice_is_absolute", ""): "nice",
    ("test_cpu_affinity", ""): "cpu_affinity",
    ("test_rlimits", ""): "rlimits",
    ("test_rlimits_can_be_infinite", ""): "rlimits",
    ("test_pdeathsig_is_set", ""): "pdeathsig",
    ("test_pdeathsig_is_delivered", ""): "pdeathsig",
    ("test_no_new_privs", ""): "no_new_privs",
    ("test_all_options_at_once", ""): "controlling_terminal",
    ("test_option_that_fails_names_its_stage", "options3-affinity-22"): "cpu_affinity",
    ("test_option_that_fails_names_its_stage", "options4-rlimits-1"): "rlimits",
    ("test_option_that_fails_names_its_stage", "options5-rlimits-1"): "rlimits",
    ("test_option_that_fails_names_its_stage", "options6-terminal-25"): "controlling_terminal",
    ("test_targets_that_safespawn_uses_itself", "True"): "pin",
    ("test_script_that_is_pinned_keeps_one_descriptor_more", ""): "pin",
    ("test_pinned_script_at_the_limit_of_open_files", ""): "pin",
    ("test_descriptor_that_is_closed_is_named", "{'start_new_session': True, 'controlling_terminal': 9999}"): (
        "controlling_terminal"
    ),
}

WAY = "posix_spawn"


def refused(test: str, case: str) -> str | None:
    """Return the option for which this case is refused, None where it must work."""
    if case != WAY and not case.startswith(f"{WAY}-"):
        return None
    return REFUSED.get((test, "")) or REFUSED.get((test, case.removeprefix(f"{WAY}-")))


def says_so(problem: BaseException, option: str) -> bool:
    """Return whether that was the refusal, here or in a process made for the test."""
    wanted = rf"strategy='posix_spawn' and {option}=.*: posix_spawn\(3\) cannot express that"
    return re.search(f"ValueError: {wanted}", f"{type(problem).__name__}: {problem}") is not None
