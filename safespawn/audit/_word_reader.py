"""What is secret in a command line for where it stands: behind an option, or as a program's third word. Pure.

An argument with blanks in it is a text: it is searched as a whole, and its words are read by a reader of
their own, because it may be a command line for a shell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from . import _shapes
from ._expression import Expression
from ._first_look import may_tell_secrets
from ._shapes import Kind
from ._text_search import Span, secrets_in
from ._tools import BEFORE_PROGRAM, COMMON, STARTERS, TOOLS, Tool

#: How deep texts within texts are read: a shell, in a shell, at the end of ssh, in a shell.
DEPTH = 4
_SCRIPT_OPTION = Expression(rb"-[A-Za-z]*c")
_BLANK = Expression(rb"\s")
_NAME = Expression(rb"--[\w.\-]+|-[\w.\-]{2,}")
#: Words behind which NAME VALUE follows.
_SETTERS = (b"set", b"config", b"--arg")
_OPTION = Expression(rb"--.*|-[A-Za-z]", re.DOTALL)
_BREAKS = Expression(rb"[;|&(`]")
_BREAKS_IN_TEXT = Expression(rb"[;|&(`=]")
_FAMILY = Expression(rb"(.*?[a-z])(?:[\-_.]?\d[\d.]*)?(?:\.(?:exe|com|cmd|bat|py|sh))?")
#: No program has a longer name.
NAME_MAX = 255
#: Ends a command in a text.
_END = Expression(rb"\|\|?|&&?|;|.*;", re.DOTALL)


class Reader:
    """Reads the words of one command line in their order."""

    def __init__(self, *, depth: int = 0, tools: Iterable[Tool] = ()) -> None:
        """Start with the rules that hold already. ``depth`` is above 0 inside a text."""
        self._depth = depth
        self._wanted: bytes | None = None
        self._kind: Kind = "strong"
        self._tools = list(tools)
        self._counts = [0] * len(self._tools)  # of words for each of them, -1 before it begins
        self._before = b""
        self._skip = False
        self._started = False  # a program was named that starts others
        self._setting = False

    @property
    def expects(self) -> bool:
        """Whether what comes next may be a secret for what came before."""
        return self._wanted is not None or bool(self._tools)

    def read(self, word: bytes, *, search: bool = True) -> list[Span]:
        """Return the secret parts of the next word, in no order; they may overlap.

        Without ``search`` the word is not looked into, only judged by its place.
        """
        found = list(self._placed(word))
        if search and found != [(0, len(word))]:
            if b"@" in word and (at := _shapes.AT_HOST.fullmatch(word)):
                found.append(at.span(1))
            if self._depth == 0 and may_tell_secrets(word):
                script = _SCRIPT_OPTION.fullmatch(self._before) is not None
                plain = frozenset[bytes]().union(*(tool.plain for tool in self._tools))
                found += secrets_in(word, script=script, plain=plain)
            if self._depth < DEPTH and _BLANK.search(word):
                inherited = [tool for tool in self._begun() if not tool.from_word]
                found += _in_words(word, self._depth + 1, inherited)
        self._before = word
        if self._depth > 0 and _END.fullmatch(word):
            self._tools, self._counts = [], []
        return found

    def _placed(self, word: bytes) -> Iterator[Span]:
        """Yield what is secret for where it stands."""
        if self._wanted is not None and word == b"=":
            return
        wanted, self._wanted = self._wanted, None
        if wanted is not None and not self._is_other(word):
            if self._kind == "pair" and b":" in word:
                self._kind = "strong"  # what is behind a user is no way to authenticate, whatever it says
            yield from self._part(word, 0, b"" if self._kind == "pair" else wanted)
        elif self._skip:
            self._skip = False
        else:
            self._kind = "strong"
            yield from self._joined(word)
            yield from self._option(word) if word[:1] == b"-" and len(word) > 1 else self._word(word)
            # An option may come in between: "config set --secret NAME VALUE".
            sets = word == b"put" or word.lower() in _SETTERS  # but PUT is a method of HTTP
            self._setting = sets or (self._setting and word[:1] == b"-")

    def _joined(self, word: bytes) -> Iterator[Span]:
        """Yield the secret that an option is joined to: -pSECRET."""
        for tool in self._begun():
            for option in tool.joined:
                if word.startswith(option) and len(word) > len(option) and word[:2] != b"--":
                    yield from self._part(word, len(option), tool.next.get(option, b""))

    def _begun(self) -> list[Tool]:
        return [tool for tool, count in zip(self._tools, self._counts, strict=True) if count >= 0]

    def _is_other(self, word: bytes) -> bool:
        """Whether a word that could be a value is the next option, or ends the command."""
        return _OPTION.fullmatch(word) is not None or (self._depth > 0 and word[:1] in b"<>|&;")

    def _part(self, word: bytes, start: int, separator: bytes) -> Iterator[Span]:
        """Yield the secret part of a value that begins at ``start``."""
        value = word[start:]
        first, last = 0, len(value)
        if separator:
            found = value.find(separator)
            if found < 0:
                return
            first = found + len(separator)
            if separator == b":" and first == last:  # the name is the key: curl -u KEY:
                first, last = 0, found
            if separator == b"/" and b"@" in value[first:]:  # user/secret@database
                last = value.index(b"@", first)
        if first < last and not self._harmless(value) and not self._harmless(value[first:last]):
            yield start + first, start + last

    def _harmless(self, value: bytes) -> bool:
        if _shapes.REFERENCE.fullmatch(value) and any(tool.refers for tool in self._begun()):
            return True
        return _shapes.is_harmless(value, self._kind, expanded=self._depth > 0)

    # --------------------------------------------------------------------- options

    def _option(self, word: bytes) -> Iterator[Span]:
        name, equals, _ = word.partition(b"=")
        for tool in self._begun():
            self._skip = self._skip or word in tool.skips
            if self._announced(tool, word):
                return
            if equals and name in tool.next:
                yield from self._part(word, len(name) + 1, tool.next[name])
        armed = self._arm(word)
        if not armed and not equals and not any(name in tool.plain for tool in self._tools):
            self._named(word)

    def _announced(self, tool: Tool, word: bytes) -> bool:
        """Note that the next word is a secret, for an option or the last letter of several: -su."""
        part = tool.next.get(word)
        if part is None and tool.grouped and word[1:].isalpha():
            part = tool.next.get(b"-" + word[-1:])
        if part is not None:
            self._wanted = part
        return part is not None

    def _named(self, option: bytes) -> None:
        """Note the same for what the name of the option says."""
        if not _NAME.fullmatch(option) or _shapes.SWITCH.match(option.lower()):
            return
        kind = _shapes.kind_of(option)
        if kind is not None:
            self._wanted, self._kind = b":" if kind in ("pair", "login") else b"", kind

    # ----------------------------------------------------------------- other words

    def _word(self, word: bytes) -> Iterator[Span]:
        if self._names_setting(word) or (self._depth == 0 and word.lower() == b"bearer"):
            self._wanted = b""
            return
        for number, tool in enumerate(self._tools):
            if self._counts[number] < 0:
                continue
            if (part := tool.next.get(word)) is not None:
                self._wanted = part
                return
            if tool.from_word:
                self._counts[number] += 1
                if self._counts[number] >= tool.from_word:
                    yield from self._part(word, 0, tool.separator)
        if not self._arm(word):
            self._begin(word)

    def _names_setting(self, word: bytes) -> bool:
        """Whether it is the NAME of "set NAME VALUE", or the end of it: app/password."""
        name = word.rpartition(b"/")[2]
        return self._setting and _shapes.kind_of(name) == "strong" and not _shapes.VERB.match(name)

    def _arm(self, word: bytes) -> bool:
        """Let the rules begin that need this word before them."""
        armed = False
        for number, tool in enumerate(self._tools):
            if self._counts[number] < 0 and tool.after is not None and tool.after.fullmatch(word):
                self._counts[number], armed = 0, True
        return armed

    def _begin(self, word: bytes) -> None:
        """Add the rules of the program that the word names, if it names one: sudo -u http mysql -pSECRET."""
        *broken, last = (_BREAKS_IN_TEXT if self._depth > 0 else _BREAKS).split(word)
        place, _, name = last.strip(b"\"'").lower().rpartition(b"/")
        name = _family(name)
        first = bool(broken) or BEFORE_PROGRAM.fullmatch(self._before) is not None
        if first or (place.endswith(b"bin") if place else name not in COMMON or self._started):
            self._started = self._started or name in STARTERS
            tools = [tool for tool in TOOLS.get(name, ()) if tool not in self._tools]
            self._tools += tools
            self._counts += [-1 if tool.after else 0 for tool in tools]


def _in_words(text: bytes, depth: int, tools: Iterable[Tool]) -> Iterator[Span]:
    """Read the words of a text as a command line, or as one of those that the program has of its own."""
    reader = Reader(depth=depth, tools=tools)
    for found in _shapes.SHELL_WORD.finditer(text):
        word, start = found.group(), found.start()
        if word[:1] in (b'"', b"'"):
            word, start = word[1:].removesuffix(word[:1]), start + 1
        for first, last in reader.read(word):
            yield start + first, start + last


def _family(name: bytes) -> bytes:
    """Return the name of a program without its version and the end of its file: mysql8.0, curl.exe."""
    if name in TOOLS or name in STARTERS or len(name) > NAME_MAX:
        return name
    found = _FAMILY.fullmatch(name)
    return found.group(1) if found else name
