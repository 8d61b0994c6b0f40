"""The table of docs/migrating.md: what a preexec_fn does, and the option for it, give the same child."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest

import helpers
import pages

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: children become other users")

ROWS = [
    tuple(pages.codes(cell)[0] for cell in row)
    for table in pages.tables(pages.text_of("migrating.md"))
    if table.head[0].startswith("you wrote")
    for row in table.rows
]

#: Both ways, in one process whose signals are not as usual: what is reset must show.
_BOTH = """
import prctl, resource, subprocess, warnings
import child_state

warnings.simplefilter("ignore")
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])

def said(run, argv, **options):
    done = run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=True, **options)
    state = child_state._comparable(child_state._flat(json.loads(done.stdout)))
    # libc's posix_spawn leaves these ignored in what it starts (make, for one), and only we put them back.
    state["ignored"] &= ~(3 << 31)
    return state

def both(then, options):
    argv = ["/bin/whole" if "jail" in options else whole]
    old = said(subprocess.run, argv, preexec_fn=lambda: exec(then, globals()))
    new = said(safespawn.run, argv, **eval(f"dict({options})", globals()))
    plain = said(safespawn.run, [whole])
    return {
        "differ": {name: (old.get(name), new.get(name)) for name in old.keys() | new.keys() if old.get(name) != new.get(name)},
        "changes": [name for name in plain if plain[name] != new.get(name)],
    }

out["rows"] = [both(*row) for row in rows]
"""


@pytest.fixture(scope="module")
def told(whole: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return of each row what differs between the two children, and what the option changed at all."""
    jail = tmp_path_factory.mktemp("jail")
    (jail / "bin").mkdir()
    shutil.copy(whole, jail / "bin" / "whole")
    rows: list[dict[str, Any]] = helpers.run_snippet(_BOTH, rows=ROWS, whole=whole, jail=str(jail))["rows"]
    return rows


def test_all_rows_are_found() -> None:
    """Every use of preexec_fn that programs have is in the table."""
    assert len(ROWS) == 18
    used = " ".join(then for then, _ in ROWS)
    for call in (
        "setsid", "setpgid", "umask", "setrlimit", "nice", "setuid", "setgid", "initgroups", "pdeathsig", "affinity",
        "signal.signal", "sigmask", "chdir",
    ):  # fmt: skip
        assert call in used


@pytest.mark.parametrize("place", range(len(ROWS)), ids=[then[:60] for then, _ in ROWS])
def test_row(place: int, told: list[dict[str, Any]]) -> None:
    """The two children are alike, and not like one that was given nothing."""
    assert told[place]["differ"] == {}
    assert told[place]["changes"]
