"""The first look at a command line: whether a second one is worth its time. Pure."""

from __future__ import annotations

import functools

from ._expression import Expression
from ._tools import TOOLS

#: Lower case; what is no letter becomes a blank: a program's name may have its version behind it.
FOLD = bytes(code if bytes((code,)).isalpha() else 32 for code in bytes(range(256)).lower())
#: Part of some word of every secret's name, or of a token, found at letters that are rare: in half the time
#: that the plain alternatives take.
RARE = Expression(rb"k(?:e[ny]|i[ae])|cre[td]|ss(?<=pass)|w(?:d|(?<=pw))|za(?<=iza)|j(?<=eyj)|sia(?<=asia)")
#: Whole words that a secret may have before or in it.
WORDS = frozenset(
    b"auth login logon basic bearer otp totp psk pin pw pat sas sig signature connection connectionstring"
    b" connectionstrings securestring identified bot webhook webhooks webhookb slack ghp gho ghu ghs ghr"
    b" github glpat gldt glrt glft glptt glsoat glcbt glimt glagent glsa sk rk npm pypi hvs hvb hvr sg ya hf"
    b" dop doo dor dapi xapp whsec lin figd sntrys sntryu rubygems pmak nrak atatt"
    b" shpat shpca shppa shpss tskey sudo su kinit wg cryptsetup"
    b" xoxa xoxb xoxc xoxd xoxe xoxo xoxp xoxr xoxs".split()
)
#: Of user:secret@host, and of a URL.
_AT = Expression(rb":(?://|[^\s/@:\0]+@)")
_HTTPIE = Expression(rb"http(?!s?:)")


@functools.cache
def _any_word() -> frozenset[bytes]:
    """Return WORDS and the first words of the programs' names, as far as RARE does not find them.

    Those that begin every URL are looked for without a colon, and what is no word with its number.
    """
    names = [name.translate(FOLD) for name, tools in TOOLS.items() if any(tool.hides for tool in tools)]
    words = {name.split()[0] for name in names if not RARE.search(name)}
    return WORDS | words - {b"http", b"https", b"z"}


def may_have_secrets(joined: bytes) -> bool:
    """Return False for a command line in which nothing looks like a secret: the cheap answer for most."""
    folded = joined.translate(FOLD)
    return (
        RARE.search(folded) is not None
        or not _any_word().isdisjoint(folded.split())
        or (b"@" in joined and _AT.search(joined) is not None)
        or _HTTPIE.search(joined) is not None
        or b"7z" in joined
    )


def may_tell_secrets(text: bytes) -> bool:
    """Return the same for a text alone, whatever program it is for."""
    folded = text.translate(FOLD)
    return (
        RARE.search(folded) is not None
        or not WORDS.isdisjoint(folded.split())
        or (b"@" in text and _AT.search(text) is not None)
    )
