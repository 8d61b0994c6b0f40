"""Makes fuzz/corpus/policy anew: policies of a helper as bytes, and scripts of a policy and a plan.

    python fuzz/policy_corpus.py

Needed when the layout of a policy has changed (tests/test_fuzz_corpus.py says so). ``SAID`` holds what
the target must say of each file: ``refused`` of what is no policy, ``allowed``, or ``denied`` and what of the
plan is: o options, u user, v variables, p program. A policy alone judges its own first entries.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safespawn import _allow, _binding

CORPUS = Path(__file__).resolve().parent / "corpus" / "policy"

_FFI, _LIB = _binding.ffi, _binding.lib
_HEAD = _FFI.typeof("struct ss_policy")
HEAD = _FFI.sizeof(_HEAD)
_USER = struct.Struct("<IIII")


def at(field: str) -> int:
    """Return where a field of the head is."""
    return int(_FFI.offsetof(_HEAD, field))


class Policy:
    """A policy whose head and lists can be set apart."""

    def __init__(self, data: bytes) -> None:
        """Take one apart that the product made."""
        self.head: Any = _FFI.new("struct ss_policy *")
        stamp = at("variable_bytes") + 8  # whose helper it is: not the same on every machine
        _FFI.buffer(self.head)[:] = data[:stamp] + bytes(HEAD - stamp)
        bounds = [HEAD, 16 * self.head.nusers, 4 * self.head.ngroups, self.head.program_bytes]
        ends = [sum(bounds[:n]) for n in range(1, 5)]
        self.users, self.groups, self.programs, self.variables = (
            data[start:end] for start, end in zip(ends, [*ends[1:], len(data)], strict=True)
        )

    def put(self, **lists: bytes) -> Policy:
        """Set lists, and the lengths in the head that go with them."""
        for name, content in lists.items():
            setattr(self, name, content)
        self.head.nusers, self.head.ngroups = len(self.users) // 16, len(self.groups) // 4
        self.head.nprograms, self.head.nvariables = self.programs.count(0), self.variables.count(0)
        self.head.program_bytes, self.head.variable_bytes = len(self.programs), len(self.variables)
        return self

    def bytes(self) -> bytes:
        """Return it whole."""
        lists = self.users + self.groups + self.programs + self.variables
        self.head.total = HEAD + len(lists)
        return _FFI.buffer(self.head)[:] + lists


def product(allow: Any, *, keeps: bool = False) -> Policy:
    """Return what the product makes of the words of a caller."""
    return Policy(_binding.HelperEnd().policy(_allow.allowed(allow, keeps=keeps), 0))


def example() -> Policy:
    """Return one with something in each list: the one that is made evil."""
    made = product({"programs": ["/bin/true", "/usr/bin/"], "variables": ["A", "LC_*"], "users": [0]})
    return made.put(
        users=_USER.pack(0, 0, 0, 0) + _USER.pack(1000, 1000, 0, 2) + _USER.pack(1001, 1001, 1, 2),
        groups=struct.pack("<3I", 4, 24, 1001),
    )


# ------------------------------------------------------------------ what is wrong


def _number(field: str, value: int) -> Callable[[], bytes]:
    """A number of the head is another, below 0 from the top; the lists stay as they are."""

    def made() -> bytes:
        data, size = example().bytes(), _FFI.sizeof(dict(_HEAD.fields)[field].type)
        new = (value % (1 << 8 * size)).to_bytes(size, "little")
        return data[: at(field)] + new + data[at(field) + size :]

    return made


def _lists(**lists: bytes) -> Callable[[], bytes]:
    return lambda: example().put(**lists).bytes()


def _same_counts(**lists: bytes) -> Callable[[], bytes]:
    """A list has this content, and the counts are those from before."""

    def made() -> bytes:
        policy = example()
        for name, content in lists.items():
            setattr(policy, name, content)
        return policy.bytes()

    return made


def _flagged(flags: int) -> Callable[[], bytes]:
    def made() -> bytes:
        policy = example()
        policy.head.flags |= flags
        return policy.bytes()

    return made


def _wrapped() -> bytes:
    """The two lengths add up to what is there, in 64 bits."""
    data = bytearray(example().bytes())
    have = sum(struct.unpack_from("<QQ", data, at("program_bytes")))
    struct.pack_into("<QQ", data, at("program_bytes"), (have - 2**63) % 2**64, 2**63)
    return bytes(data)


def _shifted() -> bytes:
    """One list ends within a string: the next has its rest."""
    data = bytearray(example().bytes())
    programs, variables = struct.unpack_from("<QQ", data, at("program_bytes"))
    struct.pack_into("<QQ", data, at("program_bytes"), programs - 2, variables + 2)
    return bytes(data)


#: What is no policy: each must be refused.
EVIL: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "magic-only": lambda: b"sasspoly",
    "head-cut-off": lambda: example().bytes()[: HEAD - 1],
    "head-only": lambda: example().bytes()[:HEAD],
    "one-byte-less": lambda: example().bytes()[:-1],
    "one-byte-more": lambda: example().bytes() + b"\0",
    "magic-wrong": _number("magic", 0),
    "version-older": _number("version", 0),
    "version-newer": _number("version", 2),
    "head-size-smaller": _number("head_bytes", HEAD - 8),
    "head-size-larger": _number("head_bytes", HEAD + 8),
    "total-smaller": _number("total", len(example().bytes()) - 1),
    "total-largest": _number("total", -1),
    "flag-unknown": _flagged(1 << 4),
    "flag-highest": _flagged(1 << 31),
    "option-unknown": _number("options", 1 << 19),
    "option-highest": _number("options", 1 << 63),
    "any-program-and-some": _flagged(_LIB.SS_ANY_PROGRAM),
    "any-user-and-some": _flagged(_LIB.SS_ANY_USER),
    "any-variable-and-some": _flagged(_LIB.SS_ANY_VARIABLE),
    "pool-too-large": _number("pool", 65),
    # Counts.
    "users-one-more": _number("nusers", 4),
    "users-one-less": _number("nusers", 2),
    "users-too-many": lambda: example().put(users=_USER.pack(0, 0, 0, 0) * 4097).bytes(),
    "users-largest": _number("nusers", -1),
    "users-wrap": _number("nusers", 3 | 1 << 28),  # times sixteen: the same in 32 bits
    "groups-one-more": _number("ngroups", 4),
    "groups-one-less": _number("ngroups", 2),
    "groups-too-many": lambda: example().put(groups=bytes(4 * 65537)).bytes(),
    "groups-largest": _number("ngroups", -1),
    "groups-wrap": _number("ngroups", 3 | 1 << 30),
    "programs-none": _number("nprograms", 0),
    "programs-one-more": _number("nprograms", 3),
    "programs-one-less": _number("nprograms", 1),
    "programs-too-many": lambda: example().put(programs=b"/\0" * 4097).bytes(),
    "programs-largest": _number("nprograms", -1),
    "variables-none": _number("nvariables", 0),
    "variables-one-more": _number("nvariables", 3),
    "variables-one-less": _number("nvariables", 1),
    "variables-too-many": lambda: example().put(variables=b"A\0" * 4097).bytes(),
    "program-bytes-one-more": _number("program_bytes", 20 + 1),
    "program-bytes-largest": _number("program_bytes", -1),
    "variable-bytes-largest": _number("variable_bytes", -1),
    "bytes-wrap-into-the-end": _wrapped,
    # Strings.
    "program-empty": _lists(programs=b"\0"),
    "program-empty-first": _lists(programs=b"\0/bin/true\0"),
    "program-empty-last": _lists(programs=b"/bin/true\0\0"),
    "program-without-nul": _same_counts(programs=b"/bin/true\0/usr/bin/x"),
    "program-without-nul-and-not-counted": _lists(programs=b"/bin/true\0/usr/bin/x"),
    "variable-empty": _lists(variables=b"\0"),
    "variable-empty-between": _lists(variables=b"A\0\0B\0"),
    "variable-without-nul": _same_counts(variables=b"A\0LC_*x"),
    "variable-without-nul-and-not-counted": _lists(variables=b"A\0LC_*x"),
    "strings-over-the-border": _shifted,
    # Groups of users.
    "user-groups-behind-the-end": _same_counts(users=_USER.pack(0, 0, 4, 0) * 3),
    "user-groups-over-the-end": _same_counts(users=_USER.pack(0, 0, 1, 3) * 3),
    "user-groups-of-last": _same_counts(users=_USER.pack(0, 0, 0, 0) * 2 + _USER.pack(0, 0, 3, 1)),
    "user-groups-wrap": _same_counts(users=_USER.pack(0, 0, 2, 2**32 - 1) * 3),
    "user-groups-largest": _same_counts(users=_USER.pack(0, 0, 2**32 - 1, 2**32 - 1) * 3),
}  # fmt: skip

#: Odd, but nothing is wrong with it; and what it says of its own first entries.
ODD: dict[str, tuple[Callable[[], bytes], str]] = {
    "example": (lambda: example().bytes(), "allowed"),
    "any": (lambda: product("any").bytes(), "allowed"),
    "nothing-at-all": (lambda: product({"programs": [], "users": [], "variables": []}).bytes(), "denied up"),
    "of-one-that-stays": (
        lambda: product({"programs": ["/bin/true"], "users": [0]}, keeps=True).bytes(),
        "allowed",
    ),
    "programs-at-the-limit": (_lists(programs=b"/a\0" * 4096), "taken"),
    "users-at-the-limit": (_lists(users=_USER.pack(0, 0, 0, 0) * 4096), "taken"),
    "groups-at-the-limit": (_lists(groups=bytes(4 * 65536)), "allowed"),
    "user-without-groups-at-the-end": (_lists(users=_USER.pack(0, 0, 3, 0)), "allowed"),
    "program-is-a-directory": (_lists(programs=b"/usr/bin/\0"), "denied p"),
    "program-is-not-plain": (_lists(programs=b"/usr/../bin/true\0"), "denied p"),
    "program-is-relative": (_lists(programs=b"bin/true\0"), "denied p"),
    "variable-has-a-star-within": (_lists(variables=b"A*B\0"), "denied v"),
    "variable-is-a-star": (_lists(variables=b"*\0"), "allowed"),
}

# ---------------------------------------------------------------------- scripts

#: A policy of one user, one program and two variables, without options.
_USUAL = ("U1000,1000,4,24", "P/bin/true", "P/dev/", "P/etc/passwd", "VA", "VLC_*")
_OWN = ("E0", "U0,0")
_ANY = "F7"


def _script(*lines: str) -> bytes:
    return "\n".join(("T", *lines)).encode("utf-8")


_PLAN = ("x/bin/true", "u1000,1000,4,24", "eA=1")

#: Lines of a script, and what is to come of them. A later path or user takes the place of one before.
SCRIPTS: dict[str, tuple[tuple[str, ...], str]] = {
    "empty": ((), "denied up"),
    "usual": ((*_USUAL, *_PLAN), "allowed"),
    "any": ((_ANY, "O7ffff", "x../x", "u7,7", "eX=1", "o1fffff", "t5"), "allowed"),
    "any-but-options": ((_ANY, "O0", "x../x", "u7,7", "eX=1", "o1fffff", "t5"), "denied o"),
    # Programs.
    **{
        f"path-{name}": ((*_USUAL, *_PLAN, f"x{path}"), "denied p" if denied else "allowed")
        for name, path, denied in (
            ("right-in-the-directory", "/dev/x", False),
            ("directory-itself", "/dev", True),
            ("directory-with-slash", "/dev/", True),
            ("deeper", "/dev/x/y", True),
            ("with-the-start-of-an-entry", "/bin/tru", True),
            ("that-an-entry-starts", "/bin/true2", True),
            ("below-an-entry", "/bin/true/x", True),
            ("with-slash-behind", "/bin/true/", True),
            ("with-two-slashes", "/bin//true", True),
            ("with-two-slashes-first", "//bin/true", True),
            ("with-a-dot", "/bin/./true", True),
            ("with-a-dot-last", "/dev/.", True),
            ("with-dots", "/bin/../bin/true", True),
            ("with-dots-first", "/../bin/true", True),
            ("with-dots-last", "/dev/..", True),
            ("with-dots-behind-the-directory", "/dev/../bin/x", True),
            ("with-three-dots", "/dev/...", False),
            ("with-a-dot-in-front", "/dev/.x", False),
            ("with-two-dots-in-front", "/dev/..x", False),
            ("relative", "bin/true", True),
            ("relative-by-dot", "./bin/true", True),
            ("empty", "", True),
            ("root", "/", True),
        )
    },
    "programs-in-the-root": ((*_OWN, "P/", "x/init"), "allowed"),
    "programs-in-the-root-only": ((*_OWN, "P/", "x/bin/true"), "denied p"),
    "programs-root-itself": ((*_OWN, "P/", "x/"), "denied p"),
    "program-by-the-same-file": ((*_USUAL, *_PLAN, "x/dev/null", "f1"), "allowed"),
    "program-by-another-file": ((*_USUAL, *_PLAN, "x/etc/passwd", "f2"), "denied p"),
    "program-by-another-file-there": ((*_USUAL, *_PLAN, "x/dev/zero", "f2"), "denied p"),
    "program-with-two-slashes-listed": ((*_OWN, "P/bin//true", "x/bin//true"), "denied p"),
    "program-with-slash-behind-listed": ((*_OWN, "P/bin/true/", "x/bin/true/"), "denied p"),
    "program-relative-listed": ((*_OWN, "Pbin/true", "xbin/true"), "denied p"),
    "program-with-dots-listed": ((*_OWN, "P/bin/../x", "x/bin/../x"), "denied p"),
    "program-by-another-name-of-it": ((*_USUAL, *_PLAN, "x/dev/null", "f2"), "allowed"),
    "program-by-a-closed-descriptor": ((*_USUAL, *_PLAN, "f3"), "denied p"),
    "program-that-is-not-there-by-descriptor": ((*_USUAL, *_PLAN, "x/dev/not-there", "f2"), "denied p"),
    "script-by-the-same-file": ((*_USUAL, *_PLAN, "x/dev/null", "O2", "f5"), "allowed"),
    "script-by-another-file": ((*_USUAL, *_PLAN, "x/etc/passwd", "O2", "f6"), "denied p"),
    "script-by-no-file": ((*_USUAL, *_PLAN, "x/dev/null", "O2", "f4"), "denied p"),
    "script-by-a-target-that-is-not-there": ((*_USUAL, *_PLAN, "x/dev/null", "O2", "f9"), "denied p"),
    "program-in-another-root": ((*_USUAL, *_PLAN, "O7ffff", "o800"), "denied p"),
    "any-program-in-another-root": (("F1", *_OWN, "VA", "O7ffff", "o800"), "allowed"),
    # Users.
    **{
        f"user-{name}": ((*_USUAL, *_PLAN, f"u{user}"), "denied u")
        for name, user in (
            ("another", "1001,1000,4,24"),
            ("of-another-group", "1000,1001,4,24"),
            ("without-groups", "1000,1000"),
            ("with-a-group-less", "1000,1000,4"),
            ("with-a-group-more", "1000,1000,4,24,27"),
            ("with-another-group", "1000,1000,4,25"),
            ("with-groups-in-another-order", "1000,1000,24,4"),
        )
    },
    **{f"user-in-part-{part}": ((*_USUAL, *_PLAN, f"i{part}"), "denied u") for part in range(1, 7)},
    "user-second": (("U1,1,1", *_USUAL, "U2,2,2", *_PLAN), "allowed"),
    "user-last": ((*_USUAL, "U2,2,2,3,4", "x/bin/true", "u2,2,2,3,4"), "allowed"),
    "user-stays": ((*_USUAL, *_OWN, "x/bin/true"), "allowed"),
    "user-stays-and-is-not-listed": ((*_USUAL, "E0", "x/bin/true"), "denied u"),
    "user-largest": (("U4294967295,4294967295", "P/bin/true", "u4294967295,4294967295"), "allowed"),
    "user-in-a-namespace": ((*_USUAL, *_PLAN, "O7ffff", "n1"), "denied u"),
    "user-born-in-a-namespace": ((*_USUAL, *_PLAN, "O7ffff", "n2"), "denied u"),
    "any-user-in-a-namespace": (("F2", "P/bin/true", "O7ffff", "n3"), "allowed"),
    # Variables.
    **{
        f"variable-{name}": ((*_USUAL, *_PLAN, f"e{variable}"), "denied v" if denied else "allowed")
        for name, variable, denied in (
            ("listed", "A=", False),
            ("listed-without-equals", "A", False),
            ("that-starts-like-one", "AB=1", True),
            ("that-starts-like-one-without-equals", "AB", True),
            ("in-small-letters", "a=1", True),
            ("by-a-start", "LC_ALL=C", False),
            ("that-is-the-start", "LC_=C", False),
            ("that-is-the-start-without-equals", "LC_", False),
            ("shorter-than-the-start", "LC=C", True),
            ("with-the-start-behind-equals", "LC=LC_", True),
            ("without-a-name", "=A=1", True),
            ("empty", "", True),
            ("that-is-a-star", "*=1", True),
        )
    },
    "variable-none": ((*_USUAL, *_PLAN[:2]), "allowed"),
    "variable-of-many": ((*_USUAL, *_PLAN, "eA=2", "eLC_ALL=C", "eLD_PRELOAD=x", "eA=3"), "denied v"),
    "variable-star": ((*_USUAL, *_PLAN, "V*", "eX=1", "e=", "e"), "allowed"),
    "variable-star-within": ((*_USUAL, *_PLAN, "VX*Y", "eXY=1"), "denied v"),
    "variable-two-stars": ((*_USUAL, *_PLAN, "VX**", "eX=1"), "denied v"),
    "variable-with-equals": ((*_USUAL, *_PLAN, "VX=1", "eX=2"), "denied v"),
    "variable-with-empty-entry": ((*_USUAL, *_PLAN, "V"), "refused"),
    "program-with-empty-entry": ((*_USUAL, *_PLAN, "P"), "refused"),
    "flag-unknown": ((*_USUAL, *_PLAN, "F10"), "refused"),
    "option-unknown": ((*_USUAL, *_PLAN, "O80000"), "refused"),
    # Options: each alone where it is not allowed, and where nothing else is.
    **{
        f"option-{number}-denied": (
            (*_USUAL, *_PLAN, f"O{0x7FFFF & ~(1 << number):x}", f"o{1 << number:x}"),
            "denied op" if number == 11 else "denied o",
        )
        for number in range(19)
        if number != 1
    },
    **{
        f"option-{number}-allowed": (
            (*_USUAL, *_PLAN, f"O{1 << number:x}", f"o{1 << number:x}"),
            "denied p" if number == 11 else "allowed",
        )
        for number in range(19)
        if number != 1
    },
    "option-cwd-by-name": ((*_USUAL, *_PLAN, "O7fffe", "o80000"), "denied o"),
    "option-namespace-at-birth": ((*_USUAL, *_PLAN, "O7bfff", "o100000"), "denied o"),
    "option-user-namespace": ((_ANY, "O7bfff", "n1"), "denied o"),
    **{
        f"targets-{name}": ((*_USUAL, *_PLAN, f"O{options}", f"t{targets}"), said)
        for name, targets, options, said in (
            ("usual", "0,1,2", "0", "allowed"),
            ("none", "", "0", "denied o"),
            ("without-input", "1,2", "0", "denied o"),
            ("without-errors", "0,1", "0", "denied o"),
            ("one-more", "0,1,2,3", "0", "denied o"),
            ("another-third", "0,1,3", "0", "denied o"),
            ("without-input-allowed", "1,2", "2", "allowed"),
            ("one-more-allowed", "0,1,2,3", "2", "allowed"),
            ("one-more-not-allowed", "0,1,2,3", "7fffd", "denied o"),
        )
    },
}

SAID: dict[str, str] = {
    **{f"evil-{name}": "refused" for name in EVIL},
    **{f"good-{name}": said for name, (_, said) in ODD.items()},
    **{f"script-{name}": said for name, (_, said) in SCRIPTS.items()},
}


def made() -> dict[str, bytes]:
    """Return all files by name."""
    files = {f"evil-{name}": make() for name, make in EVIL.items()}
    files |= {f"good-{name}": make() for name, (make, _) in ODD.items()}
    return files | {f"script-{name}": _script(*lines) for name, (lines, _) in SCRIPTS.items()}


def main() -> None:
    """Write all files of ours; others in the directory (findings) stay."""
    CORPUS.mkdir(parents=True, exist_ok=True)
    for name, data in made().items():
        (CORPUS / name).write_bytes(data)
    sys.stdout.write(f"{len(list(CORPUS.iterdir()))} files in {CORPUS}\n")


if __name__ == "__main__":
    main()
