"""Makes fuzz/corpus/encode anew: arguments, and what of them a record may show.

    python fuzz/encode_corpus.py

``SAID`` is what a record has: the arguments whole, cut with a digest, or redacted; of what is no input of the
target that it is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import corpus_files

CORPUS = Path(__file__).parent / "corpus" / "encode"
_MARK = "\u2026".encode()

INPUTS: dict[str, tuple[list[bytes], dict[str, Any], str]] = {
    "plain-nothing": ([], {}, "whole"),
    "plain-empty": ([b""], {}, "whole"),
    "plain-usual": ([b"/bin/true", b"-x", b"caf\xc3\xa9"], {}, "whole"),
    "plain-bytes": ([b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80"], {}, "whole"),
    "plain-escapes": ([b'"\\\n\r\t\f\b\x01\x7f', "\u2028\U0001f600".encode()], {}, "whole"),
    "plain-mark": ([_MARK, b"a" + _MARK], {}, "whole"),
    "plain-longest": ([b"x" * 2597], {}, "whole"),
    "plain-too-long": ([b"x" * 2598], {}, "cut"),
    "plain-many": ([b"abc"] * 900, {}, "cut"),
    "plain-path-long": ([b"a"], {"path": b"/" + b"y" * 500}, "whole"),
    "plain-path-bytes": ([b"a"], {"path": b"/\xff" * 300}, "whole"),
    "plain-tags-long": ([b"x" * 2500], {"tags": {str(i): "\u2026" * 1000 for i in range(9)}}, "whole"),
    "plain-nothing-known": ([b"--password=hunter22"], {"known": False}, "whole"),
    "secret-known": ([b"--password=hunter22", b"hunter22", b"xhunter22x"], {}, "redacted"),
    "secret-next": ([b"curl", b"-u", b"user:secret99", b"https://user:secret99@host/"], {}, "redacted"),
    "secret-header": ([b"curl", b"-H", b"Authorization: Bearer abcdefghijkl"], {}, "redacted"),
    "secret-key": ([b"AKIAIOSFODNN7EXAMPLE"], {}, "redacted"),
    "secret-declared": ([b"a", b"KEY=abcdefgh", b"abcdefgh"], {"secrets": {1: [(4, 12)]}}, "redacted"),
    "secret-declared-short": ([b"abc", b"xabcx"], {"secrets": {0: [(0, 3)]}}, "redacted"),
    "secret-declared-twice": ([b"abcdefgh-abcdefgh"], {"secrets": {0: [(0, 8)]}, "known": False}, "redacted"),
    "secret-declared-bytes": ([b"\xff\xfe\xfd\xfc\xfb\xfa\xf9"], {"secrets": {0: [(1, 7)]}}, "redacted"),
    "secret-declared-in-a-long-one": (
        [b"x" * 3000 + b"secretsecret"],
        {"secrets": {0: [(3000, 3012)]}},
        "redacted",
    ),
    "secret-behind-what-has-room": ([b"y" * 2590, b"--password=hunter22"], {}, "redacted"),
    "secret-many": ([b"--password=hunter22"] * 70, {}, "redacted"),
    "pattern": ([b"card=1234"], {"patterns": [b"[0-9]"]}, "redacted"),
    "pattern-of-nothing": ([b"card=1234"], {"patterns": [b"^"]}, "whole"),
}

BAD = {
    "none-no-literal": b"(",
    "none-index": b"([b'a'], {'secrets': {5: [(0, 1)]}})",
    "none-nul": b"([b'a\\0'], {})",
    "none-depth": b"(" * 2000,
}

SAID = {**{name: said for name, (_, _, said) in INPUTS.items()}, **dict.fromkeys(BAD, "no input")}


def made() -> dict[str, bytes]:
    """Return all files by name."""
    return {**{name: repr((argv, options)).encode() for name, (argv, options, _) in INPUTS.items()}, **BAD}


if __name__ == "__main__":
    corpus_files.write(CORPUS, made())
