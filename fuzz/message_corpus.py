"""Makes fuzz/corpus/message anew: what a helper may be sent, and what it makes of it.

    python fuzz/message_corpus.py

A file is what fuzz_message.c takes apart: descriptors sent, how many fewer find room, how, a length and so
many bytes of a message, then the places of a plan.
"""

from __future__ import annotations

import struct
from pathlib import Path

import corpus_files

CORPUS = Path(__file__).parent / "corpus" / "message"

WITH_CREDS, IN_TWO, NOTHING, CLOSED = 1, 2, 4, 8
SIZE = 48
NONE, FAR = b"\xfe", b"\xff"
NOT_ASKED = NONE * 7
_WHOLE, _NO_PLACES = "taken, places", "taken, no places"


def ask(nfds: int, *, magic: bytes = b"sasshelp", op: int = 1, size: int = SIZE) -> bytes:
    """Return a struct ss_ask, or the beginning of one, or more."""
    return (magic + struct.pack("<IIIIQ", op, nfds, 0, 0, 7) + bytes(range(16))).ljust(size, b"x")[:size]


def one(
    message: bytes,
    sent: int = 0,
    *,
    missing: int = 0,
    how: int = WITH_CREDS,
    plan: bytes = b"\0" + NOT_ASKED + b"\0",
) -> bytes:
    """Return an input."""
    return bytes((sent, missing, how, len(message))) + message + plan


def places(*targets: bytes, flags: int = 0, own: bytes = NOT_ASKED) -> bytes:
    """Return the places of a plan: those with a name, and those of its targets."""
    return bytes([flags]) + own + bytes([len(targets)]) + b"".join(targets)


def _byte(*values: int) -> list[bytes]:
    return [bytes([value]) for value in values]


def _far(value: int) -> bytes:
    return FAR + struct.pack(">i", value)


INPUTS: dict[str, tuple[bytes, str]] = {
    "good-plain": (one(ask(5), 5, plan=places(*_byte(2, 3, 4))), _WHOLE),
    "good-without-sender": (one(ask(2), 2, how=0), _WHOLE),
    "good-most": (one(ask(253), 253, plan=places(*_byte(2, 252))), _WHOLE),
    "good-in-two": (one(ask(9), 9, how=IN_TWO, plan=places(*_byte(8, 7))), _WHOLE),
    "good-none": (one(ask(0)), _WHOLE),
    "good-room-just-so": (one(ask(9), 9, missing=244), _WHOLE),
    "good-own-places": (one(ask(9), 9, plan=places(own=bytes(range(2, 9)))), _WHOLE),
    "good-same-place-twice": (one(ask(3), 3, plan=places(*_byte(2, 2, 2), own=b"\2" * 7)), _WHOLE),
    "good-exec-is-a-target": (
        one(ask(3), 3, plan=places(*_byte(2), flags=1, own=b"\x63" + NONE * 6)),
        _WHOLE,
    ),
    "good-negative": (one(ask(3), 3, plan=places(own=_far(-9) + NONE * 6)), _WHOLE),
    "evil-empty": (one(b"", 0), "refused"),
    "evil-empty-with-descriptors": (one(b"", 3), "refused"),
    "evil-empty-and-no-room": (one(b"", 9, missing=253, how=0), "end"),
    "evil-end": (one(b"", how=0), "end"),
    "evil-nothing": (one(ask(0), how=NOTHING), "refused"),
    "evil-closed": (one(ask(0), how=NOTHING | CLOSED), "end"),
    "evil-short": (one(ask(1, size=SIZE - 1), 1), "refused"),
    "evil-long": (one(ask(1, size=SIZE + 1), 1), "refused"),
    "evil-magic": (one(ask(1, magic=b"sasspoly"), 1), "refused"),
    "evil-fewer-than-said": (one(ask(4), 3), "refused"),
    "evil-more-than-said": (one(ask(2), 3), "refused"),
    "evil-none-of-those-said": (one(ask(2**32 - 1), 0), "refused"),
    "evil-no-room": (one(ask(9), 9, missing=245), "refused"),
    "evil-no-room-at-all": (one(ask(9), 9, missing=253), "refused"),
    "evil-place-behind": (one(ask(3), 3, plan=places(*_byte(3))), _NO_PLACES),
    "evil-place-of-the-plan": (one(ask(3), 3, plan=places(*_byte(0))), _NO_PLACES),
    "evil-place-of-the-report": (one(ask(3), 3, plan=places(*_byte(1))), _NO_PLACES),
    "evil-place-none": (one(ask(3), 3, plan=places(NONE)), _NO_PLACES),
    "evil-place-negative": (one(ask(3), 3, plan=places(_far(-(2**31)))), _NO_PLACES),
    "evil-place-largest": (one(ask(3), 3, plan=places(_far(2**31 - 1))), _NO_PLACES),
    "evil-last-place": (one(ask(3), 3, plan=places(*_byte(2, 2, 99))), _NO_PLACES),
    "evil-targets-without-places": (one(ask(3), 3, plan=places(*_byte(2), flags=2)), _NO_PLACES),
    "good-no-targets-no-places": (one(ask(3), 3, plan=places(flags=2)), _WHOLE),
    **{
        f"evil-own-place-{number}": (
            one(ask(3), 3, plan=places(own=NONE * number + b"\3" + NONE * (6 - number))),
            _NO_PLACES,
        )
        for number in range(7)
    },
    **{
        f"evil-own-place-{number}-is-the-report": (
            one(ask(3), 3, plan=places(own=NONE * number + b"\1" + NONE * (6 - number))),
            _NO_PLACES,
        )
        for number in range(7)
    },
}

SAID = {name: said for name, (_, said) in INPUTS.items()}


def made() -> dict[str, bytes]:
    """Return all files by name."""
    return {name: data for name, (data, _) in INPUTS.items()}


if __name__ == "__main__":
    corpus_files.write(CORPUS, made())
