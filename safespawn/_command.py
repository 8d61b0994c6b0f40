"""One command of several, checked when it is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

from . import _checks, _policy, _values
from ._spec import Request, Word

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._spec import SpawnOptions

#: Options whose values may be files, which have another number tomorrow, or none.
_STREAMS = ("stdin", "stdout", "stderr")


def _kept(value: object) -> object:
    """Return what later changes of the caller's own containers do not reach, and what can be read twice."""
    if value is None or isinstance(value, str | bytes | int | tuple) or hasattr(value, "fileno"):
        return value
    if isinstance(value, Mapping):
        return MappingProxyType({key: _kept(item) for key, item in value.items()})
    if isinstance(value, list | Iterator):
        return tuple(value)
    return frozenset(value) if isinstance(value, set) else value


@final
class Command:
    """A program with its arguments and the options of :func:`safespawn.spawn`, to be started later.

    It is checked here and does not change: raises what ``spawn`` raises for a malformed request. A file that
    is given as a stream must be open when the command is started, and so must the descriptors that numbers
    stand for. Can be started any number of times.
    """

    __slots__ = ("_argv", "_has_files", "_merged", "_options", "_request")

    def __init__(self, argv: Iterable[Word], **options: Unpack[SpawnOptions]) -> None:
        """Check all of it."""
        self._argv = tuple(_values.iterable("argv", argv))
        kept = {name: _kept(one) for name, one in options.items()}
        self._options: Mapping[str, Any] = MappingProxyType(kept)
        self._has_files = any(hasattr(options.get(name), "fileno") for name in _STREAMS)
        self._merged = _policy.options(self._options)
        self._request = _checks.request(self._argv, self._merged)

    @property
    def argv(self) -> tuple[Word, ...]:
        """The arguments; the first one names the program."""
        return self._argv

    @property
    def options(self) -> Mapping[str, Any]:
        """The options that were given."""
        return self._options

    def _to_start(self) -> Request:
        """Return what is to be started now: under the policy that holds, with the numbers that files have."""
        merged = _policy.options(self._options)
        if self._has_files or (merged is not self._merged and merged != self._merged):
            return _checks.request(self._argv, merged)
        return self._request

    def __repr__(self) -> str:
        """Show the arguments and the names of the options: their values may be secret."""
        names = "".join(f", {name}=…" for name in self._options)
        return f"Command({list(self._request.words)!r}{names})"


def to_start(index: int, given: Command | Iterable[Word]) -> Request:
    """Return what the command at that place of a list is to start; what is wrong is raised with the place."""
    try:
        command = given if isinstance(given, Command) else Command(given)
        return command._to_start()  # noqa: SLF001 - it is in this file
    except (TypeError, ValueError) as problem:
        raise type(problem)(f"commands[{index}]: {problem}") from problem
