"""Makes fuzz/corpus/objects anew: small ELF objects as a linker makes them, and such with one thing wrong.

    python fuzz/objects_corpus.py

``SAID`` is what the interposer finds in each: its symbols, whether one is called "real", its name, how many
slots it has and how many of them are rewritten, and how many symbols of its export table are.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import corpus_files

CORPUS = Path(__file__).parent / "corpus" / "objects"

#: Where fuzz_objects.c has the object and what passes for the real functions, relative to it.
ARENA, REAL = 0x510000001000, 0xF000
LOAD, DYNAMIC, RELRO = 1, 2, 0x6474E552
R, W, X = 4, 2, 1
NULL, PLTRELSZ, HASH, STRTAB, SYMTAB, RELA, RELASZ, SONAME, PLTREL, JMPREL = 0, 2, 4, 5, 6, 7, 8, 14, 20, 23
GNU_HASH = 0x6FFFFEF5
GLOB_DAT, JUMP_SLOT, WORD, RELATIVE = 6, 7, 1, 8

HEAD, DATA = 0x300, 0x2000  # bytes of the first segment, place of the second
STRINGS = b"\0real\0other\0libx.so.1\0"
NAMES = {"": 0, "real": 1, "other": 6, "libx.so.1": 12}


def symbol(name: str, value: int, *, kind: int = 2, section: int = 1) -> bytes:
    """Return an Elf64_Sym, a function by default."""
    return struct.pack("<IBBHQQ", NAMES[name], 0x10 | kind, 0, section, value, 0)


def relocation(at: int, kind: int) -> bytes:
    """Return an Elf64_Rela."""
    return struct.pack("<QQq", at, kind, 0)


def gnu_hash(buckets: list[int], first: int, chain: list[int], bloom: int = 1) -> bytes:
    """Return a table of DT_GNU_HASH."""
    words = [len(buckets), first, bloom, 0, *[0] * (2 * bloom), *buckets, *chain]
    return struct.pack(f"<{len(words)}I", *words)


@dataclass
class Object:
    """An object of two segments: tables in a readable one, dynamic section and slots in a writable one."""

    symbols: list[bytes] = field(
        default_factory=lambda: [
            symbol("", 0, kind=0, section=0),
            symbol("other", 0x100),
            symbol("real", REAL),
            symbol("other", REAL, section=0),
            symbol("other", REAL + 16, kind=1),
        ]
    )
    hash: bytes = field(default_factory=lambda: gnu_hash([1], 1, [0, 0, 0, 1]))
    strings: bytes = STRINGS
    data: list[bytes] = field(
        default_factory=lambda: [
            relocation(DATA + 0x100, GLOB_DAT),
            relocation(DATA + 0x108, WORD),
            relocation(DATA + 0x110, RELATIVE),
        ]
    )
    calls: list[bytes] = field(default_factory=lambda: [relocation(DATA + 0x118, JUMP_SLOT)])
    slots: list[int] = field(
        default_factory=lambda: [ARENA + REAL, 5, ARENA + REAL, ARENA + REAL + 32, *[0] * 12]
    )
    #: What the dynamic section says in place of what is so, by tag; None: nothing.
    says: dict[int, int | None] = field(default_factory=dict)
    more: list[tuple[int, int]] = field(default_factory=list)
    ends: bool = True
    relocated: bool = True
    dynamic: tuple[int, int] = (DATA, 0x100)
    relro: tuple[int, int] | None = (DATA, 0x1000)
    flags: tuple[int, int] = (R | X, R | W)
    tail: bytes = b""  # with which the first segment ends

    def bytes(self) -> bytes:
        """Return it as a file."""
        tables: dict[int, int] = {}
        body = b"\0" * (64 + 56 * (4 if self.relro else 3))
        parts = {GNU_HASH: self.hash, SYMTAB: b"".join(self.symbols), STRTAB: self.strings}
        parts |= {RELA: b"".join(self.data), JMPREL: b"".join(self.calls)}
        for tag, part in parts.items():
            body += b"\0" * (-len(body) % 8)
            tables[tag] = len(body)
            body += part
        tables |= {
            SONAME: NAMES["libx.so.1"],
            RELASZ: len(parts[RELA]),
            PLTRELSZ: len(parts[JMPREL]),
            PLTREL: RELA,
        }
        said = [*{**tables, **self.says}.items(), *self.more, *([(NULL, 0)] if self.ends else [])]
        dynamic = b"".join(struct.pack("<QQ", *pair) for pair in said if pair[1] is not None)
        writable = dynamic.ljust(0x100, b"\0") + struct.pack(f"<{len(self.slots)}Q", *self.slots)
        size = max(HEAD, len(body))
        body = self._head() + self._headers(size, len(writable)) + body[64 + 56 * (4 if self.relro else 3) :]
        return body.ljust(size - len(self.tail), b"\0") + self.tail + writable

    def _head(self) -> bytes:
        ident = b"\x7fELF\2\1\1\0\0" + bytes([self.relocated]) + b"\0" * 6
        count = 4 if self.relro else 3
        return ident + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)

    def _headers(self, first: int, second: int) -> bytes:
        rows = [
            (LOAD, self.flags[0], 0, 0, first, first),
            (LOAD, self.flags[1], first, DATA, second, second),
            (DYNAMIC, R | W, first, self.dynamic[0], self.dynamic[1], self.dynamic[1]),
        ]
        rows += [(RELRO, R, first, self.relro[0], 0, self.relro[1])] if self.relro else []
        return b"".join(
            struct.pack("<IIQQQQQQ", kind, flags, offset, at, at, filesz, memsz, 1)
            for kind, flags, offset, at, filesz, memsz in rows
        )


def _calls(*pairs: tuple[int, int]) -> list[bytes]:
    return [relocation(at, kind) for at, kind in pairs]


_FAR = 2**64 - 16
#: The address of a real function across two words.
_ACROSS = [ARENA + REAL, 5, 0, 0, (ARENA + REAL) % 2**32 << 32, (ARENA + REAL) >> 32, *[0] * 10]
_USUAL = "5 symbols, real, libx.so.1, 2 of 3 slots, 1 exports"
_NO_SYMBOLS = "0 symbols, no real, libx.so.1, 2 of 3 slots, 0 exports"
_NO_DATA = "5 symbols, real, libx.so.1, 1 of 1 slots, 1 exports"
_NO_CALLS = "5 symbols, real, libx.so.1, 1 of 2 slots, 1 exports"
_NO_NAME = "5 symbols, real, no name, 2 of 3 slots, 1 exports"
_NOTHING = "0 symbols, no real, no name, 0 of 0 slots, 0 exports"
_ALONE = "5 symbols, real, libx.so.1, 1 of 2 slots, 1 exports"

#: Name, object, and what is found in it.
OBJECTS: dict[str, tuple[Object, str]] = {
    "good-usual": (Object(), _USUAL),
    "good-not-relocated": (Object(relocated=False), _USUAL),
    "good-without-relro": (Object(relro=None), _USUAL),
    "good-sysv-hash": (
        Object(says={GNU_HASH: None, HASH: 0x120}, hash=struct.pack("<6I", 1, 5, 0, 0, 0, 0)),
        _USUAL,
    ),
    "good-nothing-hashed": (Object(hash=gnu_hash([0], 5, [])), _USUAL),
    "good-no-tables": (Object(says=dict.fromkeys((RELA, JMPREL, SYMTAB, STRTAB, GNU_HASH))), _NOTHING),
    "good-symbols-in-data": (Object(flags=(R | W, R | W)), _USUAL),
    "evil-dynamic-without-end": (Object(ends=False, more=[(30, 1)] * 7), _USUAL),
    "evil-dynamic-to-the-end-of-its-segment": (Object(ends=False, dynamic=(DATA, 0x10000)), _USUAL),
    "evil-dynamic-behind-its-segment": (Object(dynamic=(DATA + 0x180, 0x100)), _NOTHING),
    "evil-dynamic-in-a-hole": (Object(dynamic=(0x1000, 0x100)), _NOTHING),
    "evil-dynamic-not-aligned": (Object(dynamic=(DATA + 4, 0x100)), _NOTHING),
    "evil-dynamic-wraps": (Object(dynamic=(_FAR, 0x100)), _NOTHING),
    "evil-symbols-in-a-hole": (Object(says={SYMTAB: 0x1000}), _NO_SYMBOLS),
    "evil-symbols-over-the-end": (Object(says={SYMTAB: HEAD - 0x20}), _NO_SYMBOLS),
    "evil-symbols-not-aligned": (Object(says={SYMTAB: 0x141}), _NO_SYMBOLS),
    "evil-symbols-far": (Object(says={SYMTAB: _FAR}), _NO_SYMBOLS),
    "evil-names-in-a-hole": (
        Object(says={STRTAB: 0x1000}),
        "5 symbols, no real, no name, 2 of 3 slots, 1 exports",
    ),
    "evil-name-over-the-end": (
        Object(says={STRTAB: HEAD - 4, SONAME: 1}, tail=b"real"),
        "5 symbols, no real, no name, 2 of 3 slots, 1 exports",
    ),
    "evil-soname-before": (Object(says={SONAME: _FAR}), "5 symbols, real, a name, 2 of 3 slots, 1 exports"),
    "evil-soname-far": (Object(says={SONAME: 2**64 - 0x4000}), _NO_NAME),
    "evil-soname-in-a-hole": (Object(says={SONAME: 0x1000}), _NO_NAME),
    "evil-hash-in-a-hole": (Object(says={GNU_HASH: 0x1000}), _NO_SYMBOLS),
    "evil-hash-at-the-end": (Object(says={GNU_HASH: HEAD - 8}), _NO_SYMBOLS),
    "evil-hash-not-aligned": (Object(says={GNU_HASH: 0x121}), _NO_SYMBOLS),
    "evil-buckets-many": (Object(hash=struct.pack("<8I", 2**32 - 1, 1, 1, 0, 0, 0, 1, 1)), _NO_SYMBOLS),
    "evil-bloom-many": (Object(hash=struct.pack("<8I", 1, 1, 2**32 - 1, 0, 0, 0, 1, 1)), _NO_SYMBOLS),
    "evil-bucket-far": (Object(hash=gnu_hash([2**32 - 1], 1, [])), _NO_SYMBOLS),
    "evil-chain-without-end": (Object(hash=gnu_hash([1], 1, [2] * 4 + [0] * 200)), _NO_SYMBOLS),
    "evil-first-symbol-far": (Object(hash=gnu_hash([1], 2**32 - 1, [1])), _NO_SYMBOLS),
    "evil-sysv-count-far": (
        Object(says={GNU_HASH: None, HASH: 0x120}, hash=struct.pack("<2I", 1, 2**32 - 1)),
        _NO_SYMBOLS,
    ),
    "evil-data-in-a-hole": (Object(says={RELA: 0x1000}), _NO_DATA),
    "evil-data-over-the-end": (Object(says={RELASZ: 0x1000}), _NO_DATA),
    "evil-data-of-most-bytes": (Object(says={RELASZ: 2**64 - 1}), _NO_DATA),
    "evil-data-not-aligned": (Object(says={RELA: 0x1F9}), _NO_DATA),
    "evil-calls-in-a-hole": (Object(says={JMPREL: 0x1000}), _NO_CALLS),
    "evil-calls-without-addends": (Object(says={PLTREL: 17}), _NO_CALLS),
    "evil-slot-in-a-hole": (Object(calls=_calls((0x1000, JUMP_SLOT))), _ALONE),
    "evil-slot-read-only": (Object(calls=_calls((0x40, JUMP_SLOT))), _ALONE),
    "evil-slot-over-the-end": (Object(calls=_calls((DATA + 0x17C, JUMP_SLOT))), _ALONE),
    "evil-slot-wraps": (Object(calls=_calls((2**64 - ARENA - 4, JUMP_SLOT))), _ALONE),
    "evil-slot-of-a-neighbour": (Object(calls=_calls((0x4000, JUMP_SLOT))), _ALONE),
    "evil-slot-not-aligned": (
        Object(calls=_calls((DATA + 0x124, JUMP_SLOT)), slots=_ACROSS),
        "5 symbols, real, libx.so.1, 1 of 3 slots, 1 exports",
    ),
    "evil-slot-twice": (
        Object(calls=_calls((DATA + 0x100, JUMP_SLOT), (DATA + 0x118, JUMP_SLOT))),
        "5 symbols, real, libx.so.1, 2 of 4 slots, 1 exports",
    ),
    "evil-relro-of-neighbours": (Object(relro=(0, 0x20000)), _USUAL),
    "evil-relro-of-the-next": (Object(relro=(DATA, 0x3000)), _USUAL),
    "evil-relro-before": (Object(relro=(2**64 - 0x1000, 0x4000)), _USUAL),
    "evil-relro-of-code": (Object(relro=(0, 0x1000)), _USUAL),
    "evil-relro-wraps": (Object(relro=(DATA, 2**64 - 0x1000)), _USUAL),
    "evil-relro-from-a-hole": (Object(relro=(0x1000, 0x2000)), _USUAL),
    "evil-tables-not-readable": (Object(flags=(X, R | W)), _NOTHING),
    "evil-data-not-writable": (Object(flags=(R, R)), "5 symbols, real, libx.so.1, 0 of 0 slots, 1 exports"),
    "evil-exports-many": (
        Object(symbols=[symbol("real", REAL)] * 70, hash=gnu_hash([0], 70, [])),
        "70 symbols, real, libx.so.1, 2 of 3 slots, 64 exports",
    ),
}

#: What no loader maps.
UNLOADED = {
    "none-empty": b"",
    "none-cut-off": Object().bytes()[:100],
    "none-overlapping": Object()
    .bytes()
    .replace(struct.pack("<QQ", DATA, DATA), struct.pack("<QQ", 0x100, 0x100)),
}

SAID = {**{name: said for name, (_, said) in OBJECTS.items()}, **dict.fromkeys(UNLOADED, "not loaded")}


def made() -> dict[str, bytes]:
    """Return all files by name."""
    return {**{name: one.bytes() for name, (one, _) in OBJECTS.items()}, **UNLOADED}


if __name__ == "__main__":
    corpus_files.write(CORPUS, made())
