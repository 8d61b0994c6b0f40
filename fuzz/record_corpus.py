"""Makes fuzz/corpus/record anew: texts, spawns and ends that are told in C, at and beyond what has room.

    python fuzz/record_corpus.py

``SAID`` is what becomes of each: a text or its bytes in hex, a record that is whole, one with the names of
variables cut, or one that has no room and is left to Python.
"""

from __future__ import annotations

import struct
from pathlib import Path

import corpus_files

CORPUS = Path(__file__).parent / "corpus" / "record"


def text(data: bytes, number: int = 7, size: int = 1, small: int = 9) -> bytes:
    """Return an input of a text and a number of so many bytes."""
    return bytes([size]) + number.to_bytes(size, "big") + bytes([small]) + data


def strings(items: list[bytes], times: int = 1) -> bytes:
    """Return a list of strings, which comes so often."""
    return bytes([len(items), times - 1]) + b"".join(one + b"\0" for one in items)


def intent(argv: bytes, env: bytes, fds: bytes = b"\0\0\0") -> bytes:
    """Return an input of a spawn; of ``fds`` each byte is one, 255 for one that is closed."""
    return b"I" + argv + env + bytes([len(fds)]) + fds + struct.pack(">Q", 2**41 - 1)


def end(pid: int, code: int, status: int, duration: int, killed: int = 0) -> bytes:
    """Return an input of a child's end."""
    return b"E" + struct.pack(">iBiqBqq", pid, code, status, duration, killed, 1234, 5678)


_ONE, _FEW = strings([b"/bin/true"]), strings([b"PATH", b"HOME", b"LC_ALL"])

INPUTS: dict[str, tuple[bytes, str]] = {
    "text-empty": (text(b""), "text"),
    "text-plain": (text(b"plain, with a blank"), "text"),
    "text-escapes": (text(b'"\\\n\r\t\f\b'), "text"),
    "text-controls": (text(bytes(range(32)) + b"\x7f"), "text"),
    "text-separators": (text("\u2028\u2029\u0085\ufeff\u202e".encode()), "text"),
    "text-edges": (text("\u0080\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff".encode()), "text"),
    "text-emoji-long": (text(("x" * 7 + "\U0001f600").encode() * 9), "text"),
    "text-ascii-long": (text(b"abcdefgh" * 9), "text"),
    "text-number-largest": (text(b"", 2**64 - 1, 8), "text"),
    "text-number-lowest": (text(b"", 2**63, 8), "text"),
    "text-number-none": (text(b"", 0, 0), "text"),
    "text-in-pieces-of-one": (text(b"pieces\n" * 9, small=40), "text"),
    "hex-one-byte": (text(b"\xff"), "hex"),
    "hex-after-eight": (text(b"12345678\x80"), "hex"),
    "hex-surrogate": (text(b"\xed\xa0\x80"), "hex"),
    "hex-overlong": (text(b"\xc0\x80"), "hex"),
    "hex-overlong-three": (text(b"\xe0\x9f\xbf"), "hex"),
    "hex-overlong-four": (text(b"\xf0\x8f\xbf\xbf"), "hex"),
    "hex-beyond": (text(b"\xf4\x90\x80\x80"), "hex"),
    "hex-cut-two": (text(b"x\xc3"), "hex"),
    "hex-cut-three": (text(b"x\xe2\x80"), "hex"),
    "hex-cut-four": (text(b"x\xf0\x9f\x98"), "hex"),
    "hex-continuation-missing": (text(b"\xc3x"), "hex"),
    "intent-plain": (intent(_ONE, _FEW), "whole"),
    "intent-nothing": (intent(strings([]), strings([]), b""), "whole"),
    "intent-empty-strings": (intent(strings([b"", b"", b""]), strings([b""])), "whole"),
    "intent-bytes": (
        intent(strings([b"\xff\xfe", b"caf\xc3\xa9", b"\n"]), strings([b"\xe2\x80\xa8"])),
        "whole",
    ),
    "intent-argument-longest": (intent(strings([b"x" * 2597]), _FEW), "whole"),
    "intent-argument-too-long": (intent(strings([b"x" * 2598]), _FEW), "too long"),
    "intent-arguments-many": (intent(strings([b"abcd"] * 20, 12), _FEW), "whole"),
    "intent-arguments-too-many": (intent(strings([b"abcdefgh"] * 20, 12), _FEW), "too long"),
    "intent-argument-of-escapes": (intent(strings([b"\1" * 432]), _FEW), "whole"),
    "intent-argument-of-too-many-escapes": (intent(strings([b"\1" * 433]), _FEW), "too long"),
    "intent-names-just-so": (intent(_ONE, strings([b"x" * 996])), "whole"),
    "intent-names-one-more": (intent(_ONE, strings([b"x" * 997])), "names cut"),
    "intent-names-many": (intent(_ONE, strings([b"NAME", b"OTHER"], 12)), "whole"),
    "intent-names-too-many": (intent(_ONE, strings([b"A_LONGER_NAME"] * 10, 12)), "names cut"),
    "intent-names-of-bytes": (intent(_ONE, strings([b"\xff" * 9] * 9, 12)), "names cut"),
    "intent-both-long": (intent(strings([b"x" * 2597]), strings([b"y" * 99] * 9, 9)), "names cut"),
    "intent-descriptors": (intent(_ONE, _FEW, bytes(6)), "whole"),
    "intent-descriptors-many": (intent(_ONE, _FEW, bytes(15)), "too long"),
    "intent-descriptor-closed": (intent(_ONE, _FEW, b"\0\xff"), "too long"),
    "body-short": (b"B\0\0", "body"),
    "body-long": (b"B" + struct.pack(">H", 7600), "body"),
    "body-too-long": (b"B" + struct.pack(">H", 7950), "too long"),
    "body-far-too-long": (b"B" + struct.pack(">H", 15900), "too long"),
    "end-exited": (end(7, 1, 0, 10**9), "end"),
    "end-killed": (end(7, 2, 9, 10**9, 1), "end"),
    "end-core": (end(7, 3, 11, 0), "end"),
    "end-odd": (end(-1, 0, -(2**31), -(2**63)), "end"),
}

SAID = {name: said for name, (_, said) in INPUTS.items()}


def made() -> dict[str, bytes]:
    """Return all files by name."""
    return {name: data for name, (data, _) in INPUTS.items()}


if __name__ == "__main__":
    corpus_files.write(CORPUS, made())
