"""Runs one module of the interpreter's own tests, in one mode, and writes what each test came to.

Runs on every interpreter that is compared, with nothing but its standard library: `compare.py` starts it as

    python worker.py MODE MODULE RESULTS LIMIT PATH [ID]...

RESULTS gets one JSON object a line, each written at once, so that what had ended is known of a process that hangs or
dies: the tests that will be run, each test as it starts and as it ends, what failed for a whole class, and the end. LIMIT is in seconds. PATH is what safespawn and its requirements are imported from, as in PYTHONPATH. With ids,
only these tests are run.
"""

import faulthandler
import json
import os
import sys
import traceback
import unittest

#: What `from subprocess import ...` gives to programs, and the tests of CPython call.
FUNCTIONS = ("Popen", "run", "call", "check_call", "check_output", "getoutput", "getstatusoutput")


def plain():
    """Change nothing."""


def installed():
    """Take over the whole process."""
    import safespawn

    safespawn.install()


def replaced():
    """Put our functions in place of those of `subprocess`, in its own namespace."""
    import subprocess

    import safespawn.subprocess

    for name in FUNCTIONS:
        setattr(subprocess, name, getattr(safespawn.subprocess, name))


class Counted:
    """Counts the programs that we start: a mode that does nothing has no tests that are worse."""

    def __init__(self):
        self.programs = 0

    def __call__(self, event, _):
        self.programs += event == "safespawn.spawn.intent"


MODES = {"plain": plain, "installed": installed, "replaced": replaced}


class Recorder(unittest.TestResult):
    """Writes what each test came to: the worst of what it, its subtests and its clean-up said."""

    RANK = ("passed", "expected failure", "skipped", "unexpected success", "failed", "error")

    def __init__(self, stream):
        super().__init__()
        self.lines = stream
        self.outcome, self.text = "passed", ""

    def write(self, **fields):
        self.lines.write(json.dumps(fields) + "\n")
        self.lines.flush()

    def startTest(self, test):
        super().startTest(test)
        self.outcome, self.text = "passed", ""
        self.write(id=test.id())

    def stopTest(self, test):
        super().stopTest(test)
        self.write(id=test.id(), outcome=self.outcome, text=self.text)

    def say(self, test, outcome, text=""):
        # What goes wrong in the set-up of a class or a module comes without a start and an end, and its tests do not.
        if not isinstance(test, unittest.TestCase) and not hasattr(test, "test_case"):
            self.write(fixture=f"{test.id()}: {outcome}\n{text}")
        elif self.RANK.index(outcome) >= self.RANK.index(self.outcome):
            self.outcome, self.text = outcome, text

    def addFailure(self, test, err):
        self.say(test, "failed", told(err))

    def addError(self, test, err):
        self.say(test, "error", told(err))

    def addSkip(self, test, reason):
        self.say(test, "skipped", reason)

    def addExpectedFailure(self, test, err):
        self.say(test, "expected failure")

    def addUnexpectedSuccess(self, test):
        self.say(test, "unexpected success")

    def addSubTest(self, test, subtest, err):
        if err is not None:
            failed = issubclass(err[0], test.failureException)
            self.say(test, "failed" if failed else "error", f"{subtest}\n{told(err)}")


def told(err):
    return "".join(traceback.format_exception(*err))


def tests_of(suite):
    """Yield the single tests of a suite and the suites in it."""
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from tests_of(item)
        else:
            yield item


def main(mode, module, results, limit, path, *ids):
    # A hang is ended with the stacks of all threads in the log.
    faulthandler.dump_traceback_later(float(limit), exit=True)
    sys.path[0:1] = []
    sys.path += path.split(os.pathsep)
    MODES[mode]()
    counted = Counted()
    if mode != "plain":
        sys.addaudithook(counted)

    from test import support

    # What regrtest allows when nothing is asked for: no network, no gui, no big files.
    support.use_resources = ["subprocess", "cpu"]
    support.verbose = False
    os.umask(0o022)
    suite = unittest.defaultTestLoader.loadTestsFromName("test." + module)
    if ids:
        suite = unittest.TestSuite(test for test in tests_of(suite) if test.id() in ids)
    with open(results, "a", encoding="utf-8") as stream:
        recorder = Recorder(stream)
        recorder.write(chosen=[test.id() for test in tests_of(suite)])
        suite.run(recorder)
        recorder.write(end=counted.programs)


if __name__ == "__main__":
    main(*sys.argv[1:])
