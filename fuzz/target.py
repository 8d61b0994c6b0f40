"""What the targets in Python share: how each is run, and inputs that are written as Python literals.

python fuzz/fuzz_NAME.py FILE...                  each file once
python fuzz/fuzz_NAME.py hypothesis SECONDS       examples that hypothesis draws
python fuzz/fuzz_NAME.py atheris [OPTIONS] DIR    coverage-guided, with libFuzzer's options
python fuzz/fuzz_NAME.py lines SOURCE,... DIR     which lines of functions there a corpus reaches
"""

from __future__ import annotations

import ast
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

#: Takes the bytes of an input; returns what became of it, or raises.
Check = Callable[[bytes], str]


def instrumented() -> AbstractContextManager[Any]:
    """Return what the modules under test are imported in, so that Atheris sees where they go."""
    if sys.argv[1:2] != ["atheris"]:
        return nullcontext()
    import atheris  # type: ignore[import-not-found]  # noqa: PLC0415 - needed here only

    return atheris.instrument_imports(include=["safespawn"])  # type: ignore[no-any-return]


def literal(data: bytes) -> tuple[Any, dict[str, Any]] | None:
    """Return the arguments and options of an input, None if it is no such literal.

    It is ``(argv, options)`` in Python's own words, so that it can be read, and dictionaries have them.
    """
    try:
        value = ast.literal_eval(data.decode("latin-1"))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    if type(value) is tuple and len(value) == 2 and type(value[1]) is dict:
        return (value[0], value[1]) if all(type(name) is str for name in value[1]) else None
    return None


def replay(check: Check, paths: list[str]) -> None:
    """Run each file once, and say what became of it."""
    for path in paths:
        sys.stdout.write(f"{path}: {check(Path(path).read_bytes())}\n")


def examples(
    inputs: st.SearchStrategy[Any], run: Callable[[Any], object], *, most: int, seconds: float
) -> int:
    """Run examples for that long, and return their number. Raises what the first that fails raises."""
    end = time.monotonic() + seconds
    done = 0

    @settings(database=None, deadline=None, max_examples=most, suppress_health_check=list(HealthCheck))
    @given(inputs)
    def prop(value: Any) -> None:
        nonlocal done
        if time.monotonic() < end:
            run(value)
            done += 1

    while time.monotonic() < end:
        prop()
    return done


def _one_input(
    check: Check, inputs: st.SearchStrategy[Any], run: Callable[[Any], object]
) -> Callable[[bytes], None]:
    """Return what takes an input as it is, or else as the choices of hypothesis."""
    prop = settings(database=None, deadline=None)(given(inputs)(lambda value: run(value) and None))

    def one_input(data: bytes) -> None:
        if check(data) == "no input":
            prop.hypothesis.fuzz_one_input(data)

    return one_input


def guided(one_input: Callable[[bytes], None]) -> None:
    """Run Atheris."""
    import atheris  # noqa: PLC0415 - needed here only

    atheris.Setup([sys.argv[0], *sys.argv[2:]], one_input)
    atheris.Fuzz()


def _lines_of_functions(code: CodeType) -> Iterator[int]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from (line for _, _, line in inner.co_lines() if line and line != inner.co_firstlineno)
            yield from _lines_of_functions(inner)


def lines(one_input: Callable[[bytes], None], sources: list[str], paths: Iterable[Path]) -> tuple[int, int]:
    """Return how many lines of functions in those files the inputs reach, and how many there are."""
    whole = {
        (source, line)
        for source in sources
        for line in _lines_of_functions(compile(Path(source).read_text(encoding="utf-8"), source, "exec"))
    }
    reached: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in sources:
            return None
        if event == "line":
            reached.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    for path in paths:
        sys.settrace(trace)  # anew: one that was deep in the stack has ended it
        try:
            one_input(path.read_bytes())
        finally:
            sys.settrace(None)
    return len(reached & whole), len(whole)


def main(check: Check, inputs: st.SearchStrategy[Any], run: Callable[[Any], object]) -> None:
    """Do what the command line says."""
    mode = sys.argv[1:2]
    if mode == ["atheris"]:
        guided(_one_input(check, inputs, run))
    elif mode == ["hypothesis"]:
        done = examples(inputs, run, most=200, seconds=float(sys.argv[2]))
        sys.stdout.write(f"Done {done} runs\n")
    elif mode == ["lines"]:
        files = sorted(Path(sys.argv[3]).iterdir())
        reached, whole = lines(_one_input(check, inputs, run), sys.argv[2].split(","), files)
        sys.stdout.write(f"lines {reached} of {whole}\n")
    else:
        replay(check, sys.argv[1:])
