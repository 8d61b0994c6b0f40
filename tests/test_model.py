"""The model of the credential lock, its small forms: what it says holds, and no step of it can be spared."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

import helpers

sys.path.append(str(helpers.TESTS / "model"))
import runner  # noqa: E402  # they are no package
import steps  # noqa: E402

SOURCES = helpers.ROOT / "safespawn"


def _chosen(request: pytest.FixtureRequest) -> Iterator[tuple[str, runner.Check, str | None]]:
    for item in request.session.items:
        params = item.callspec.params if item.path.name == "test_model.py" and hasattr(item, "callspec") else {}
        if "check" in params:
            yield item.name, steps.CHECKS[params["check"]], None
        elif "step" in params:
            yield item.name, steps.CHECKS[steps.STEPS[params["step"]].fails], params["step"]


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest) -> dict[str, Future[runner.Answer]]:
    """Return what came of all that the chosen tests need, run side by side."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {
            name: pool.submit(runner.run, check, without=without)
            for name, check, without in _chosen(request)
        }


@pytest.mark.parametrize("check", steps.CHECKS)
def test_check_holds(request, answers, check):
    """Every state of a small form was looked at, and nothing is wrong in any."""
    answer = answers[request.node.name].result()
    assert answer.error is None
    assert answer.states > 100


@pytest.mark.parametrize(
    "step", [pytest.param(one, marks=pytest.mark.long if number % 3 else ()) for number, one in enumerate(steps.STEPS)]
)
def test_step_cannot_be_spared(request, answers, step):
    """Without the step the check that the table names fails."""
    assert answers[request.node.name].result().error is not None


def test_table_has_every_switch():
    """What can be taken out of the model is what the table has."""
    assert set(re.findall(r"\bWITHOUT_([A-Z_]+)\b", runner.MODEL.read_text())) == set(steps.STEPS)


def _defined() -> set[str]:
    text = "\n".join(path.read_text() for path in SOURCES.glob("*.c"))
    return set(re.findall(r"^(ss_\w+)\([^;]*?\)\n\{", text, re.MULTILINE))


def test_functions_are_in_the_sources():
    """Every C function that the model or its table names is defined, so that a change of name shows here."""
    in_table = {name for step in steps.STEPS.values() for name in step.functions.split()}
    in_model = set(re.findall(r"\bss_\w+", runner.MODEL.read_text()))
    assert not (in_table | in_model) - _defined()
    assert not in_table - in_model, "the model tells at which step it is"


def test_big_form_is_as_big_as_promised():
    """Three spawners, two changers and one that forks, whichever way each spawner starts its program."""
    big = [check.switches for name, check in steps.LONG.items() if name.startswith("3 spawners")]
    assert len(big) == 10
    assert all({"SPAWNERS=3", "CHANGERS=2", "FORKERS=1"} <= set(switches) for switches in big)
