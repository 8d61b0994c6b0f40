"""A pytest plugin that writes what each test came to, at once: a line as it starts, and one as it ends.

To the file named by CLIENT_OUTCOMES. It is `no:junitxml` for some clients, and a file of XML is written at the end,
which a run that hangs does not reach.
"""

import json
import os

WHERE = os.environ["CLIENT_OUTCOMES"]
#: The worst of set-up, call and teardown counts.
RANK = ("passed", "xpassed", "xfailed", "skipped", "failed")
worst: dict[str, str] = {}


def write(**fields: str) -> None:
    with open(WHERE, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(fields) + "\n")


def pytest_runtest_logstart(nodeid):
    worst[nodeid] = "passed"
    write(id=nodeid)


def pytest_runtest_logreport(report):
    outcome = report.outcome
    if hasattr(report, "wasxfail"):
        outcome = "xfailed" if report.skipped else "xpassed"
    if RANK.index(outcome) >= RANK.index(worst.get(report.nodeid, "passed")):
        worst[report.nodeid] = outcome


def pytest_runtest_logfinish(nodeid):
    write(id=nodeid, outcome=worst[nodeid])


def pytest_collectreport(report):
    if report.failed:
        write(id=report.nodeid, outcome="failed")


def pytest_sessionfinish():
    write(end="")
