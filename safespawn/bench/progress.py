"""How far a run has come: a bar of tqdm where it is installed and somebody looks, else a line a step."""

from __future__ import annotations

import time
from typing import Any, TextIO


class Progress:
    """Tells how many of ``total`` steps are done, and what is going on. As a context manager."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total, self._done, self._stream = total, 0, stream
        self._begun = time.monotonic()
        self._said = ""
        self.bar: Any = _bar(total, stream) if stream.isatty() else None
        if self.bar is None and stream.isatty():
            self._line("tqdm is not installed (safespawn[bench]): a line for each step instead of a bar")

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def say(self, text: str) -> None:
        """Tell what is going on."""
        self._said = text
        if self.bar is not None:
            self.bar.set_description_str(text)

    def step(self) -> None:
        """Tell that a step is done."""
        self._done += 1
        if self.bar is not None:
            self.bar.update(1)
            return
        seconds = time.monotonic() - self._begun
        self._line(f"[{self._done:3}/{self._total}, {seconds:4.0f} s] {self._said}")

    def __enter__(self) -> Progress:
        """Return it."""
        return self

    def __exit__(self, *problem: object) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()


def _bar(total: int, stream: TextIO) -> Any:
    try:
        import tqdm  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    tqdm.tqdm.monitor_interval = 0  # a thread of its own, for bars that are seldom updated
    # What is left is not told: places differ too much.
    form = "{n_fmt}/{total_fmt} |{bar:20}| {elapsed} {desc}"
    return tqdm.tqdm(total=total, file=stream, leave=False, bar_format=form)
