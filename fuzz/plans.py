"""Plans of the launcher as bytes: read, changed and made. The layout is that of safespawn/_wire.h."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

from safespawn import _binding

MAGIC, VERSION = b"sassplan", 1
PARTS = ("path", "argv", "env", "targets", "groups", "rlimits", "cpus", "filter", "cwd", "places")
POINTERS = (
    "path", "argv", "env", "fds", "groups", "rlimits", "cpus", "filter", "cwd", "map_users", "map_groups",
)  # fmt: skip

_FFI = _binding.ffi
_REQUEST = _FFI.typeof("struct ss_request")
#: Magic, version, size of the head, size of the file, nonce: then the request.
_FIXED = struct.Struct("<8sIIQ16s")
#: Behind it: mask, pid of the parent, a reserved word; then place and length of each part.
_TAIL = struct.Struct("<QiI")
_PART = struct.Struct("<QQ")
WANT = _FIXED.size
TABLE = WANT + _FFI.sizeof(_REQUEST) + _TAIL.size
HEAD = TABLE + len(PARTS) * _PART.size


def joined(strings: Iterable[bytes]) -> bytes:
    """Return the strings end to end, each with its NUL."""
    return b"".join(one + b"\0" for one in strings)


def targets(*numbers: int) -> bytes:
    """Return descriptor numbers as a plan has them."""
    return struct.pack(f"<{len(numbers)}i", *numbers)


class Plan:
    """A plan whose head and parts can be set apart; ``bytes()`` lays them out as the core does."""

    def __init__(self, nonce: bytes = bytes(range(16))) -> None:
        """Nothing is asked for: no descriptor, no path, no program."""
        self.nonce = nonce
        self.want: Any = _FFI.new("struct ss_request *")
        self.mask, self.parent_pid = 0, 1
        self.parts = dict.fromkeys(PARTS, b"")
        for name in ("exec", "cwd", "terminal", "root", "cgroup", "landlock", "launcher", "parent"):
            setattr(self.want, f"{name}_fd", -1)

    @classmethod
    def read(cls, data: bytes) -> Plan:
        """Take one apart that the core made."""
        plan = cls()
        magic, version, head, total, plan.nonce = _FIXED.unpack_from(data)
        if (magic, version, head, total) != (MAGIC, VERSION, HEAD, len(data)):
            raise ValueError(f"no plan of this version: {data[:24]!r}")
        _FFI.buffer(plan.want)[:] = data[WANT : WANT + _FFI.sizeof(_REQUEST)]
        plan.mask, plan.parent_pid, _ = _TAIL.unpack_from(data, TABLE - _TAIL.size)
        for name in PARTS:
            at, size = _PART.unpack_from(data, place(name))
            plan.parts[name] = data[at : at + size]
        return plan

    def put(self, **parts: bytes) -> Plan:
        """Set parts, and the counts in the head that go with them."""
        self.parts |= parts
        want, have = self.want, self.parts
        want.argc, want.envc = have["argv"].count(0), have["env"].count(0)
        want.argv_bytes, want.env_bytes = len(have["argv"]), len(have["env"])
        want.nfds, want.ngroups = len(have["targets"]) // 4, len(have["groups"]) // 4
        want.nrlimits, want.nfilter = len(have["rlimits"]) // 24, len(have["filter"]) // 8
        want.cpus_bytes = len(have["cpus"])
        return self

    def bytes(self) -> bytes:
        """Return it whole."""
        body, table, at = b"", b"", HEAD
        for name in PARTS:
            part = self.parts[name]
            body += bytes(-at % 16) + part
            at += -at % 16
            table += _PART.pack(at, len(part))
            at += len(part)
        fixed = _FIXED.pack(MAGIC, VERSION, HEAD, at, self.nonce)
        return b"".join(
            (fixed, _FFI.buffer(self.want)[:], _TAIL.pack(self.mask, self.parent_pid, 0), table, body)
        )


# ------------------------------------------------------------------ plans that are none


def place(name: str) -> int:
    """Return where in the head the place and the length of a part are."""
    return TABLE + PARTS.index(name) * _PART.size


def _with(data: bytes, at: int, kind: str, value: int) -> bytes:
    new = struct.pack(f"<{kind}", value & (1 << 8 * struct.calcsize(kind)) - 1)
    return data[:at] + new + data[at + len(new) :]


def _head(at: int, kind: str, value: int) -> Callable[[Plan], bytes]:
    """A word of the head is another."""
    return lambda plan: _with(plan.bytes(), at, kind, value)


def _number(name: str, change: Callable[[int], int]) -> Callable[[Plan], bytes]:
    """A number of the request is another; the parts stay as they are."""

    def made(plan: Plan) -> bytes:
        setattr(plan.want, name, change(getattr(plan.want, name)))
        return plan.bytes()

    return made


def _moved(name: str, at: Callable[[int, int], int]) -> Callable[[Plan], bytes]:
    """A part lies elsewhere: ``at`` gets its length and the size of the file."""

    def made(plan: Plan) -> bytes:
        data = plan.bytes()
        return _with(data, place(name), "Q", at(_PART.unpack_from(data, place(name))[1], len(data)))

    return made


def _long(name: str, size: Callable[[int, int], int]) -> Callable[[Plan], bytes]:
    """A part has another length: ``size`` gets its place and the size of the file."""

    def made(plan: Plan) -> bytes:
        data = plan.bytes()
        return _with(data, place(name) + 8, "Q", size(_PART.unpack_from(data, place(name))[0], len(data)))

    return made


def _part(name: str, content: bytes) -> Callable[[Plan], bytes]:
    """A part has this content, and the counts are those from before."""

    def made(plan: Plan) -> bytes:
        plan.parts[name] = content
        return plan.bytes()

    return made


def _counted(name: str, content: bytes) -> Callable[[Plan], bytes]:
    """A part has this content, and the count that goes with it."""
    return lambda plan: plan.put(**{name: content}).bytes()


def _targets(*numbers: int) -> Callable[[Plan], bytes]:
    """Other targets, and a place for each."""
    return lambda plan: plan.put(targets=targets(*numbers), places=targets(*[2] * len(numbers))).bytes()


def _more(name: str, extra: bytes) -> Callable[[Plan], bytes]:
    """A part has something behind its end, and the counts are those from before."""

    def made(plan: Plan) -> bytes:
        plan.parts[name] += extra
        return plan.bytes()

    return made


def _less(name: str) -> Callable[[Plan], bytes]:
    """A part has lost its last byte."""

    def made(plan: Plan) -> bytes:
        plan.parts[name] = plan.parts[name][:-1]
        return plan.bytes()

    return made


def _missing(name: str) -> Callable[[Plan], bytes]:
    """A part is not there, but its things are counted."""
    return _part(name, b"")


def _last(name: str, content: bytes) -> Callable[[Plan], bytes]:
    """A part is the last in the file, and has this content; the counts are those from before."""

    def made(plan: Plan) -> bytes:
        data = plan.bytes()
        data += bytes(-len(data) % 16)
        table = _PART.pack(len(data), len(content))
        data = data[: place(name)] + table + data[place(name) + len(table) :] + content
        return _with(data, 16, "Q", len(data))

    return made


def _places(plan: Plan, first: int, last: int) -> bytes:
    """As many places as there are targets, two at least: 0 between the first and the last."""
    return plan.put(places=targets(first, *[0] * (plan.want.nfds - 2), last)).bytes()


def _with_pointers(plan: Plan) -> bytes:
    """The request has addresses of another process, and lengths of its strings."""
    for number, name in enumerate(POINTERS, 1):
        setattr(plan.want, name, _FFI.cast("void *", number << 12))
    plan.want.argv_bytes = plan.want.env_bytes = 2**64 - 1
    return plan.bytes()


_EVERY_U64, _TOP = 2**64, 2**64 - 16

#: What is wrong, and a maker of such bytes from a plan that has two arguments or more, two
#: variables or more, and something in every part. Each must be refused.
EVIL: dict[str, Callable[[Plan], bytes]] = {
    "nothing": lambda _: b"",
    "magic-only": lambda _: MAGIC,
    "head-cut-off": lambda plan: plan.bytes()[: HEAD - 1],
    "head-only": lambda plan: plan.bytes()[:HEAD],
    "truncated-by-one": lambda plan: plan.bytes()[:-1],
    "one-byte-more": lambda plan: plan.bytes() + b"\0",
    "total-too-small": lambda plan: _with(plan.bytes(), 16, "Q", len(plan.bytes()) - 1),
    "total-huge": _head(16, "Q", _EVERY_U64 - 1),
    "magic-wrong": _head(0, "B", ord("S")),
    "version-older": _head(8, "I", VERSION - 1),
    "version-newer": _head(8, "I", VERSION + 1),
    "head-size-smaller": _head(12, "I", HEAD - 8),
    "head-size-larger": _head(12, "I", HEAD + 8),
    "flag-unknown": _number("flags", lambda flags: flags | _binding.lib.SS_SUBREAPER << 1),
    "flag-highest": _number("flags", lambda flags: flags | 1 << 63),
    # Counts and strings.
    "argc-none": _number("argc", lambda _: 0),
    "argc-none-and-no-argument": _counted("argv", b""),
    "argc-too-small": _number("argc", lambda count: count - 1),
    "argc-too-large": _number("argc", lambda count: count + 1),
    "argc-over-the-limit": _number("argc", lambda _: (1 << 23) + 1),
    "argc-largest": _number("argc", lambda _: 2**32 - 1),
    "envc-none": _number("envc", lambda _: 0),
    "envc-too-small": _number("envc", lambda count: count - 1),
    "envc-too-large": _number("envc", lambda count: count + 1),
    "envc-largest": _number("envc", lambda _: 2**32 - 1),
    "argv-missing": _missing("argv"),
    "argv-without-last-nul": _less("argv"),
    "argv-nul-more": _more("argv", b"\0"),
    "argv-string-more": _more("argv", b"more\0"),
    "argv-text-behind": _more("argv", b"x"),
    "env-missing": _missing("env"),
    "env-without-last-nul": _less("env"),
    "env-last-and-without-last-nul": _last("env", b"A=1\0B=2"),
    "env-nul-more": _more("env", b"\0"),
    "path-missing": _missing("path"),
    "path-without-nul": _less("path"),
    "path-nul-more": _more("path", b"\0"),
    "path-two-strings": _part("path", b"/bin/true\0/bin/false\0"),
    "cwd-without-nul": _less("cwd"),
    "cwd-nul-more": _more("cwd", b"\0"),
    # Lists.
    "targets-missing": _missing("targets"),
    "targets-negative": _targets(-1, 0, 1, 2),
    "targets-negative-later": _targets(0, 1, 2, -2),
    "targets-smallest": _targets(-(2**31)),
    "targets-twice": _targets(0, 1, 1, 2),
    "targets-descending": _targets(0, 2, 1),
    "targets-count-too-large": _number("nfds", lambda count: count + 1),
    "targets-count-too-small": _number("nfds", lambda count: count - 1),
    "targets-count-over-the-limit": _number("nfds", lambda _: (1 << 20) + 1),
    "targets-count-wraps": _number("nfds", lambda count: count | 1 << 30),  # times four: the same in 32 bits
    "targets-part-of-one": _more("targets", b"\x03\0\0"),
    "places-too-few": _part("places", targets(2)),
    "places-too-many": _more("places", targets(2)),
    "places-part-of-one": _more("places", b"\x02\0\0"),
    "places-without-last-byte": _less("places"),
    "places-of-no-targets": _counted("targets", b""),
    "places-first-negative": lambda plan: _places(plan, -1, 0),
    "places-last-negative": lambda plan: _places(plan, 2, -1),
    "places-smallest": lambda plan: _places(plan, 2, -(2**31)),
    "groups-missing": _missing("groups"),
    "groups-count-too-large": _number("ngroups", lambda count: count + 1),
    "groups-count-over-the-limit": _number("ngroups", lambda _: 65537),
    "groups-count-largest": _number("ngroups", lambda _: 2**32 - 1),
    "rlimits-missing": _missing("rlimits"),
    "rlimits-count-too-large": _number("nrlimits", lambda count: count + 1),
    "rlimits-over-the-limit": _counted("rlimits", bytes(24 * 65)),
    "rlimits-inherited-too-many": _number("ninherited", lambda _: 2),
    "rlimits-inherited-of-none": lambda plan: _number("ninherited", lambda _: 1)(plan.put(rlimits=b"")),
    "rlimits-inherited-largest": _number("ninherited", lambda _: 2**32 - 1),
    "cpus-missing": _missing("cpus"),
    "cpus-count-too-large": _number("cpus_bytes", lambda count: count + 1),
    "cpus-over-the-limit": _counted("cpus", bytes(8193)),
    "filter-missing": _missing("filter"),
    "filter-count-too-large": _number("nfilter", lambda count: count + 1),
    "filter-over-the-limit": _counted("filter", bytes(8 * 4097)),
    "filter-part-of-one": _more("filter", b"\0"),
    # Places.
    "path-in-the-head": _moved("path", lambda _size, _total: 0),
    "env-over-the-end-of-the-head": _moved("env", lambda _size, _total: (HEAD - 1) // 16 * 16),
    "cpus-in-the-head": _moved("cpus", lambda _size, _total: 16),
    "groups-before-the-file": _moved("groups", lambda _size, _total: _TOP),
    "argv-behind-the-end": _moved("argv", lambda _size, total: total + -total % 16 + 4096),
    "places-in-the-head": _moved("places", lambda _size, _total: 32),
    "places-before-the-file": _moved("places", lambda _size, _total: _TOP),
    "places-over-the-end": _moved("places", lambda size, total: (total - size) // 16 * 16 + 16),
    "places-place-by-four": _moved("places", lambda _size, _total: HEAD + -HEAD % 16 + 4),
    "filter-from-the-end": _moved("filter", lambda size, total: (total - size) // 16 * 16 + 16),
    "targets-over-the-end": _moved("targets", lambda size, total: (total - size) // 16 * 16 + 16),
    "argv-place-by-eight": _moved("argv", lambda _size, _total: HEAD + -HEAD % 16 + 8),
    "rlimits-place-by-one": _moved("rlimits", lambda _size, _total: HEAD + -HEAD % 16 + 1),
    "env-place-and-length-wrap": _long("env", lambda at, _total: _EVERY_U64 - at),
    "path-place-and-length-wrap": _long("path", lambda at, _total: _EVERY_U64 - at),
    "argv-length-wraps-into-itself": _long("argv", lambda at, total: _EVERY_U64 - at + total),
    "places-length-wraps": _long("places", lambda _at, _total: _EVERY_U64 - 16),
    "cwd-length-largest": _long("cwd", lambda _at, _total: _EVERY_U64 - 1),
    "path-length-to-behind-the-end": _long("path", lambda at, total: total - at + 1),
    "argv-length-to-behind-the-end": _long("argv", lambda at, total: total - at + 1),
}

#: Odd, but nothing is wrong with it: each must be taken.
ODD: dict[str, Callable[[Plan], bytes]] = {
    "path-empty": _counted("path", b"\0"),
    "argv-one-empty": _counted("argv", b"\0"),
    "env-none": _counted("env", b""),
    "env-empty-strings": _counted("env", b"\0\0\0"),
    "env-last": lambda plan: _last("env", b"A=1\0B=2\0")(plan.put(env=b"A=1\0B=2\0")),
    "pointers-in-the-request": _with_pointers,
    "no-lists": lambda plan: plan.put(
        targets=b"", places=b"", groups=b"", rlimits=b"", cpus=b"", filter=b""
    ).bytes(),
    "places-none": _part("places", b""),
    "places-all-the-same": lambda plan: _places(plan, 0, 0),
    "places-largest": lambda plan: _places(plan, 2**31 - 1, 2**31 - 1),
    "rlimits-all-inherited": _number("ninherited", lambda _: 1),
    "place-of-nothing-is-not-looked-at": lambda plan: _moved("cwd", lambda _s, _t: 7)(plan.put(cwd=b"")),
    "two-parts-in-one-place": lambda plan: _moved("env", lambda _s, _t: HEAD + -HEAD % 16)(
        plan.put(path=b"A=1\0", env=b"A=1\0")
    ),
    "counts-at-the-limit": lambda plan: plan.put(rlimits=bytes(24 * 64), cpus=bytes(8192)).bytes(),
    "filter-at-the-limit": _counted("filter", bytes(8 * 4096)),
    "targets-far-apart": _targets(0, 1, 2, 2**31 - 1),
}
