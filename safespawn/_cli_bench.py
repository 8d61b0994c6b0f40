"""`safespawn bench`: its options, and what they ask of the measurements."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import Any

from ._cli_exit import BY_SIGNAL, OURS, say, show
from .bench import AXES


def add(commands: Any) -> None:
    """Add the command."""
    bench = commands.add_parser(
        "bench",
        help="measure our ways to start a program beside those of others",
        description="Measure our ways to start a program beside those of others, here, in one run.",
    )
    bench.add_argument("--quick", action="store_true", help="a few small places only: to see that it works")
    bench.add_argument("--axis", action="append", choices=tuple(AXES), help="only this one; may be repeated")
    bench.add_argument(
        "--size", action="append", type=int, metavar="MIB", help="only this size; may be repeated"
    )
    bench.add_argument("--seconds", type=float, metavar="S", help="for one measure in one place (2)")
    bench.add_argument("--rounds", type=int, metavar="N", help="at most so many rounds of a measure (400)")
    bench.add_argument("--json", type=Path, metavar="FILE", help="keep all samples")
    bench.add_argument(
        "--from", dest="kept", type=Path, metavar="FILE", help="measure nothing: take what was kept"
    )
    bench.add_argument("--plots", type=Path, metavar="DIR", help="draw PNG and SVG; needs safespawn[bench]")
    bench.add_argument("--page", type=Path, metavar="FILE", help="put the tables between the marks of a page")
    bench.add_argument(
        "--list", action="store_true", help="show the axes, and which ways can be measured here"
    )
    bench.set_defaults(call=_bench)


def _bench(given: argparse.Namespace) -> int:
    from .bench import command  # noqa: PLC0415 - other commands do without it

    try:
        if given.list:
            for line in command.listing():
                show(line)
            return 0
        if given.kept:
            results = command.load(given.kept)
        else:
            asked = command.options(
                quick=given.quick,
                axes=given.axis,
                sizes=given.size,
                seconds=given.seconds,
                rounds=given.rounds,
            )
            results = command.run(asked)
        if given.json:
            command.save(results, given.json)
        show(command.report(results))
        if given.page:
            command.fill(results, given.page)
        if given.plots:
            for path in command.draw(results, given.plots):
                show(str(path))
    except (OSError, ValueError, ImportError) as problem:
        say(f"safespawn: bench: {problem}")
        return OURS
    except KeyboardInterrupt:
        say("safespawn: bench: interrupted")
        return BY_SIGNAL + signal.SIGINT
    return 0
