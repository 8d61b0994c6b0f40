"""The tool that makes mutants (tests/mutation): what it changes, and that what is written about survivors is of today."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import helpers

TOOL = helpers.TESTS / "mutation"
sys.path.insert(0, str(TOOL))
import c_operators  # noqa: E402 - from the directory above
import mutate  # noqa: E402 - as above
import python_operators  # noqa: E402 - as above
import survivors  # noqa: E402 - as above
from mutant import applied, named  # noqa: E402 - as above
from targets import TARGETS  # noqa: E402 - as above

sys.path.remove(str(TOOL))

C = '''\
#define N 1
static int
ss_it(const int *a, int b)
{
	/* if (b == 0) return 1; */
	if (!a || b < 2)
		return -1;
	ss_note("b == 0", b);
	return *a + b;
}
'''

PYTHON = '''\
"""A text with == in it."""
LIMIT = 1


def it(a: int, b: int) -> str:
    """Say 1."""
    if a is None or (b) == 2:
        raise ValueError(f"{a} == {b}")
    note(b)
    return "deny"
'''


def changes(text: str, operators: object) -> set[tuple[str, str, str]]:
    """Return what is changed into what, and by which operator."""
    return {(edit.operator, text[edit.start : edit.end], edit.new) for edit in operators.edits(text)}  # type: ignore[attr-defined]


def test_changes_of_c() -> None:
    """Conditions, comparisons, numbers, answers and statements are changed; comments, texts and macros are not."""
    assert changes(C, c_operators) == {
        ("not", "!", ""), ("logic", "||", "&&"), ("comparison", "<", "<="), ("number", "2", "3"), ("number", "1", "0"),
        ("condition", "!a || b < 2", "0"), ("condition", "!a || b < 2", "1"), ("answer", "-1", "0"), ("answer", "-1", "1"),
        ("statement", 'ss_note("b == 0", b);', ";"), ("sum", "+", "-"), ("answer", "*a + b", "0"), ("answer", "*a + b", "1"),
    }  # fmt: skip


def test_changes_of_python() -> None:
    """The same of Python, inside functions; words for people stay, and those that decide are turned round."""
    test = "a is None or (b) == 2"
    assert changes(PYTHON, python_operators) == {
        ("logic", test, "((a is None) and ((b) == 2))"), ("operand", test, "(((b) == 2))"), ("operand", test, "((a is None))"),
        ("comparison", "is", "is not"), ("comparison", "==", "!="), ("number", "2", "3"),
        ("condition", test, "False"), ("condition", test, "True"), ("word", '"deny"', "'allow'"), ("answer", '"deny"', "None"),
        ("statement", "note(b)", "pass"), ("statement", 'raise ValueError(f"{a} == {b}")', "pass"),
    }  # fmt: skip


@pytest.mark.parametrize("group", TARGETS)
def test_mutants_of_a_group(group: str) -> None:
    """Each has a name of its own and changes its file; those of Python compile; each file has some."""
    mutants = mutate.all_mutants(group)
    files = {file: (mutate.PACKAGE / file).read_text(encoding="utf-8") for file in TARGETS[group].files}

    assert len({mutant.id for mutant in mutants}) == len(mutants)
    assert {mutant.file for mutant in mutants} == set(files)
    assert all(TARGETS[group].near_to(mutant.function) for mutant in mutants)
    for mutant in mutants[:: 1 + len(mutants) // 100]:
        made = applied(files[mutant.file], mutant.edit)
        assert made != files[mutant.file]
        assert mutant.file.endswith(".c") or compile(made, mutant.file, "exec")


def test_name_outlives_what_is_around() -> None:
    """The name of a mutant stays when lines come in front of it, and two that look alike have two."""
    before = named("x.c", C, c_operators.edits(C))
    text = "int ss_more;\n\n" + C
    assert {mutant.id for mutant in named("x.c", text, c_operators.edits(text))} == {mutant.id for mutant in before}


@pytest.mark.parametrize("group", TARGETS)
def test_tests_that_are_to_notice_are_there(group: str) -> None:
    """Every file that is named in the table of tests exists."""
    target = TARGETS[group]
    runs = [*target.wide, *(one for _, near in target.near for one in near)]
    for name in (word for line in runs for word in line if word.endswith(".py")):
        assert (helpers.TESTS / name).is_file()


def test_page_is_made_of_the_results(tmp_path: Path) -> None:
    """results.md says what results.json has, and every explanation is of a survivor."""
    results = json.loads((TOOL / "results.json").read_text(encoding="utf-8"))
    known = survivors.explanations()

    assert set(known) <= {key for key, one in results.items() if one["verdict"] == "survived"}
    listed = (TOOL / "results.md").read_text(encoding="utf-8").partition("## Survivors")[2]
    assert listed == survivors.page(results, known).partition("## Survivors")[2]
