"""Code that starts programs, run in one process under `install()`: what the ledger got of each piece."""

from __future__ import annotations

import helpers

#: Runs `before`, then `install()`, then each of `codes`; fills `out` with what was recorded of each.
_DRIVER = """
import tempfile, warnings
from safespawn import audit

warnings.simplefilter("ignore")  # of other packages
path = os.path.join(tempfile.mkdtemp(), "ledger")
ledger = audit.open(path)
read = open(path)

def told():
    lines, argv = [], {}
    for record in map(json.loads, read):
        if record["ev"] == "spawn.intent":
            argv[record["sid"]] = " ".join(map(str, record["what"]["argv"]))
        elif record["ev"] == "spawn.started":
            lines.append("started: " + argv[record["sid"]])
        elif record["ev"] == "spawn.bypass":
            lines.append("bypass: " + record["bypass"]["event"])
    return lines

names = {"__name__": "__main__"}
exec(before, names)
safespawn.install()
told()
out["told"] = []
for place, code in enumerate(codes):
    exec(compile(code, f"row {place}", "exec"), names)
    out["told"].append(told())
safespawn.uninstall()
read.close()
ledger.close()
shutil.rmtree(os.path.dirname(path))
"""


def told(codes: list[str], before: str) -> list[list[str]]:
    """Return what was recorded of each piece of code: `started: ARGV`, `bypass: EVENT`."""
    told: list[list[str]] = helpers.run_snippet("import shutil\n" + _DRIVER, codes=codes, before=before)["told"]
    return told
