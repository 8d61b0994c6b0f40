"""The first look at a command line: whether a second one is worth its time. Pure."""

from __future__ import annotations

import functools

from ._expression import Expression
from ._tools import TOOLS

#: Lower case; what is neither a letter nor a digit becomes a blank.
FOLD = bytes(code if bytes((code,)).isalnum() else 32 for code in bytes(range(256)).lower())
#: Part of some word of every secret's name, or of a token, found at letters that are rare: in half the time
#: that the plain alternatives take.
RARE = Expression(rb"k(?:e[ny]|i[ae])|cre[td]|ss(?<=pass)|w(?:d|(?<=pw))|za(?<=iza)|j(?<=eyj)|sia(?<=asia)")
#: Whole words that a secret may have before or in it.
WORDS = frozenset(
    b"auth bearer otp totp psk pin pw pat sas sig signature connection connectionstring connectionstrings"
    b" slack identified ghp gho ghu ghs ghr github glpat sk rk npm pypi hvs hvb hvr sg ya29 hf dop"
    b" shpat shpca shppa shpss tskey sudo su kinit wg cryptsetup"
    b" xoxa xoxb xoxc xoxd xoxe xoxo xoxp xoxr xoxs".split()
)
#: Of user:secret@host, and of a URL.
_AT = Expression(rb":(?://|[^\s/@:\0]+@)")
_HTTPIE = Expression(rb"http(?!s?:)")


@functools.cache
def _any_word() -> frozenset[bytes]:
    """Return WORDS and the first words of the programs' names, as far as RARE does not find them.

    Those that begin every URL are looked for without a colon.
    """
    names = [name.translate(FOLD) for name, tools in TOOLS.items() if any(tool.hides for tool in tools)]
    return WORDS | {name.split()[0] for name in names if not RARE.search(name)} - {b"http", b"https"}


def may_have_secrets(joined: bytes) -> bool:
    """Return False for a command line in which nothing looks like a secret: the cheap answer for most."""
    folded = joined.translate(FOLD)
    return (
        RARE.search(folded) is not None
        or not _any_word().isdisjoint(folded.split())
        or (b"@" in joined and _AT.search(joined) is not None)
        or _HTTPIE.search(joined) is not None
    )


def may_tell_secrets(text: bytes) -> bool:
    """Return the same for a text alone, whatever program it is for."""
    folded = text.translate(FOLD)
    return (
        RARE.search(folded) is not None
        or not WORDS.isdisjoint(folded.split())
        or (b"@" in text and _AT.search(text) is not None)
    )
