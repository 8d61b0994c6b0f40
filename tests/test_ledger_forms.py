"""The bytes of a record: what C writes is what Python would, and its digests are those of everybody."""

from __future__ import annotations

import errno
import hashlib
import hmac
import importlib.util
import json
import os
import random
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cffi import FFI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import helpers
import ledger_check
import safespawn
from safespawn import _child, audit
from safespawn.audit import _core, _record

LINE_MAX = 8000


@pytest.fixture(scope="session")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a program that does nothing, whatever its arguments and environment."""
    program = tmp_path_factory.mktemp("nothing") / "nothing"
    text = b"int main(void) { return 0; }"
    subprocess.run(["gcc", "-O2", "-static", "-x", "c", "-", "-o", program], input=text, check=True)
    return program


# ------------------------------------------------------------------ C and Python

#: Characters that JSON, terminals, or one of two encoders could treat in a way of its own.
ODD = "\"\\/'\x01\x08\t\n\x0c\r\x1b\x1f \x7f\x80\x85\xa0\xad\xe9\u07ff\u0800\u2028\u2029\u202e\ud7ff\ue000\ufdd0\ufeff\ufffe\uffff\U00010000\U0001f600\U0010ffff=a"
#: Bytes that are no UTF-8: cut, overlong, surrogates, beyond the last character.
WRONG = [b"\x80", b"\xff", b"\xc3", b"\xe2\x80", b"\xf0\x9f\x98", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80"]

_PIECES = st.one_of(
    st.sampled_from(ODD).map(str.encode),
    st.sampled_from(WRONG),
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=6).map(str.encode),
    st.binary(max_size=6).map(lambda data: data.replace(b"\0", b"")),
)
WORDS = st.one_of(
    st.lists(_PIECES, max_size=5).map(b"".join),
    # Around the limits of a part of the record, where the two could disagree by one.
    st.tuples(st.sampled_from([b"x", "\u2028".encode(), b"\xff", b"\x01", b'"']), st.integers(0, 2700)).map(
        lambda pair: (pair[0] * pair[1])[: 2700]
    ),
)
NAMES = WORDS.map(lambda name: name.replace(b"=", b"-")[:300] or b"N")
ENVIRONMENTS = st.one_of(
    st.dictionaries(NAMES, WORDS, max_size=6),
    st.integers(0, 120).flatmap(
        lambda count: st.integers(1, 40).map(lambda size: {b"%0*d" % (size, i): b"" for i in range(count)})
    ),
)
TAGS = st.dictionaries(st.text(max_size=5), st.text(max_size=30), max_size=3)


class Compared:
    """Holds each record that C writes against the one that Python would have written in its place."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.seen, self.by_c = path, 0, Counter[str]()
        real = audit.Ledger.append
        compared = self

        def append(self: audit.Ledger, event: str, sid: str | None, make: Any, **more: Any) -> bool | None:
            if native := more.get("native"):
                expected = _record.members(make())
                more["native"] = lambda *given: compared.answer(event, native(*given))
            kept = real(self, event, sid, make, **more)
            if native:
                compared.compare(expected)
            return kept

        monkeypatch.setattr(audit.Ledger, "append", append)
        # What an exit took is the same for both then.
        clock = SimpleNamespace(monotonic=time.monotonic, monotonic_ns=lambda: 5_000_000_000)
        monkeypatch.setattr(_child, "time", clock)

    def answer(self, event: str, error: int) -> int:
        """Count what C could write itself."""
        assert error in (0, -errno.EMSGSIZE)
        self.by_c[event] += error == 0
        return error

    def compare(self, expected: bytes) -> None:
        """Compare the last line of the ledger, behind its envelope."""
        with open(self.path, "rb") as file:
            file.seek(self.seen)
            lines = file.read().splitlines()
            self.seen = file.tell()
        found = ledger_check.ENVELOPE.match(lines[-1].decode("ascii"))
        assert found
        assert lines[-1][found.end() : -1] == expected


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compared]:
    """Return what compares, with a ledger open."""
    made = Compared(tmp_path / "ledger", monkeypatch)
    with audit.open(tmp_path / "ledger"):
        yield made


QUICK = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
    database=None,
)


@QUICK
@given(argv=st.lists(WORDS, min_size=1, max_size=6), env=ENVIRONMENTS, tags=TAGS)
def test_intent_of_any_request(compared: Compared, nothing: Path, argv: list[bytes], env: dict[bytes, bytes], tags: dict[str, str]) -> None:
    """Arguments, names of variables and tags of any kind and size: C and Python say the same, to the byte."""
    safespawn.run([b"a", *argv], executable=nothing, env=env, audit_tags=tags)


@pytest.mark.parametrize("size", [*range(2560, 2600), 2700, 100_000])
def test_arguments_around_their_limit(compared: Compared, nothing: Path, size: int) -> None:
    """One byte more or less at the limit of the arguments: both see it at the same one."""
    for word in (b"x" * size, b"\x01" * (size // 6) + b"x" * (size % 6), b"\xff" * (size // 2)):
        safespawn.run([b"a", word], executable=nothing, env={})


@pytest.mark.parametrize("size", [*range(940, 1010, 3), 20_000])
def test_names_around_their_limit(compared: Compared, nothing: Path, size: int) -> None:
    """The same of the names of the variables: first, number and digest of too many of them."""
    safespawn.run(["a"], executable=nothing, env={b"N" * size: b""})
    safespawn.run(["a"], executable=nothing, env={b"%05d" % i: b"" for i in range(size // 8)})
    safespawn.run(["a"], executable=nothing, env={"\u2028".encode() * (size // 6): b"", b"a": b"", b"b" * 900: b""})


@pytest.mark.parametrize("count", [0, 1, 5, 8, 9, 10, 11, 12, 40])
def test_descriptors_around_their_limit(compared: Compared, nothing: Path, tmp_path: Path, count: int) -> None:
    """Descriptors of every kind, up to more than fit."""
    import socket

    kept = [os.open(tmp_path, os.O_RDONLY), os.open(os.devnull, os.O_RDONLY), *os.pipe(), os.eventfd(0)]
    with socket.socket(socket.AF_UNIX) as sock, open(tmp_path / "file", "w") as file:
        sources = [*kept, sock.fileno(), file.fileno()]
        try:
            fds = {10 + i: sources[i % len(sources)] for i in range(count)}
            safespawn.run(["a"], executable=nothing, fds=fds)
        finally:
            for fd in kept:
                os.close(fd)


def test_places_programs_and_options(compared: Compared, tmp_path: Path) -> None:
    """Directories and programs with odd names, scripts, pins and every way to start: all the same."""
    odd = os.fsencode(tmp_path) + b"/" + "\u2028\U0001f600 \"\\".encode() + b"\xff\n"
    os.mkdir(odd)
    script = odd + b"/script"
    with open(script, "wb") as file:
        file.write(b"#!/bin/sh\nexit 3\n")
    os.chmod(script, 0o755)
    for options in (
        {"cwd": odd},
        {"cwd": odd, "env_policy": "scrub", "env": {"LD_PRELOAD": "", "PATH": "/bin"}},
        {"executable": script, "pin": True},
        {"strategy": "fork", "umask": 0o77, "deadline": 20.5},
        {"strategy": "launcher", "user": "nobody"} if os.geteuid() == 0 else {},
    ):
        safespawn.run(["a"], **{"executable": "/bin/true", **options})  # type: ignore[arg-type]

    assert compared.by_c == {"spawn.intent": 5, "spawn.started": 5, "spawn.exit": 5}


@pytest.mark.parametrize("text", ["exit 255", "kill -9 $$", "kill -TERM $$", "kill -ABRT $$"])
def test_ends(compared: Compared, text: str) -> None:
    """Codes, signals and core dumps."""
    safespawn.run(["/bin/sh", "-c", f"ulimit -c 0; {text}"])

    assert compared.by_c["spawn.exit"] == 1


def test_what_is_ordinary_is_written_by_c(compared: Compared, nothing: Path) -> None:
    """Ordinary programs take the fast way: a comparison of Python with itself would prove nothing."""
    for i in range(20):
        safespawn.run(["rsync", "-a", f"/source/{i}", "target:/\xe9"], executable=nothing)

    assert compared.by_c == {"spawn.intent": 20, "spawn.started": 20, "spawn.exit": 20}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("count", [0, 31, 32, 33, 200])
def test_groups_around_their_limit(tmp_path: Path, count: int) -> None:
    """32 groups are told, of more the first 32 and their number, whoever writes it."""
    out = helpers.run_snippet(
        """
        from safespawn import audit
        os.setgroups([5000 + (i * 7919) % 1000 for i in range(count)])
        with audit.open(where):
            safespawn.run(["/bin/true"])
        out["groups"] = sorted(os.getgroups())
        """,
        where=str(tmp_path / "ledger"),
        count=count,
    )
    (intent,) = [r for r in helpers.records(tmp_path / "ledger") if r["ev"] == "spawn.intent"]
    expected = out["groups"] if count <= 32 else {"first": out["groups"][:32], "count": count}

    assert intent["who"]["groups"] == expected


# ------------------------------------------------------------------ digests


@pytest.fixture(scope="session")
def sha(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Compile _sha256.c alone, with both of its ways to get through a block."""
    where = tmp_path_factory.mktemp("sha")
    maker = FFI()
    maker.cdef(
        """
        struct ss_sha256 { ...; };
        void whole(const char *, size_t, uint8_t *);
        void pieces(const char *, const size_t *, size_t, uint8_t *);
        void keyed(const uint8_t *, const char *, size_t, size_t, uint8_t *);
        int blocks(int, uint32_t *, const uint8_t *, size_t);
        void left(int, const uint8_t *, uint8_t *, size_t);
        """
    )
    maker.set_source(
        "_sha_alone",
        """
        #include <stdint.h>
        #include <string.h>
        #include <ucontext.h>
        #include "_sha256.c"
        static ucontext_t before, inside;
        static uint8_t out[64];
        static const uint8_t *secret;
        static int which;
        static void use(void)
        {
            uint32_t state[8] = { 0 };
            switch (which) {
            case 0: ss_sha256(secret, 32, out); break;
            case 1: ss_hmac(secret, "data", 4, NULL, 0, out); break;
            default: ss_sha256_blocks_plain(state, secret, 1);
            }
        }
        /* Use a key on a stack of its own, which can be looked at then. */
        static void left(int how, const uint8_t *key, uint8_t *stack, size_t bytes)
        {
            which = how, secret = key;
            (void)getcontext(&inside);
            inside.uc_stack.ss_sp = stack, inside.uc_stack.ss_size = bytes, inside.uc_link = &before;
            makecontext(&inside, use, 0);
            (void)swapcontext(&before, &inside);
        }
        static void whole(const char *data, size_t bytes, uint8_t *ret) { ss_sha256(data, bytes, ret); }
        static void pieces(const char *data, const size_t *sizes, size_t count, uint8_t *ret)
        {
            struct ss_sha256 hash;
            ss_sha256_start(&hash);
            for (size_t i = 0; i < count; data += sizes[i++])
                ss_sha256_add(&hash, data, sizes[i]);
            ss_sha256_end(&hash, ret);
        }
        static void keyed(const uint8_t *key, const char *data, size_t one, size_t two, uint8_t *ret)
        {
            ss_hmac(key, data, one, data + one, two, ret);
        }
        static int blocks(int plain, uint32_t *state, const uint8_t *data, size_t count)
        {
            if (plain) {
                ss_sha256_blocks_plain(state, data, count);
                return 1;
            }
        #if defined(__x86_64__)
            if (ss_has_sha()) {
                ss_sha256_blocks_sha(state, data, count);
                return 1;
            }
        #endif
            return 0;
        }
        """,
        include_dirs=[str(helpers.ROOT / "safespawn")],
        extra_compile_args=["-std=gnu11", "-O2", "-Wno-unused-function", "-D_GNU_SOURCE"],
    )
    path = maker.compile(tmpdir=str(where), verbose=False)
    spec = importlib.util.spec_from_file_location("_sha_alone", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def data_of(size: int) -> bytes:
    """Return so many bytes that look like any."""
    return random.Random(size).randbytes(size)


SIZES = [*range(301), *(random.Random(7).randrange(301, 100_000) for _ in range(40)), 1 << 20]


def test_sha256_of_every_length(sha: Any) -> None:
    """Digests are those of hashlib, for every way in which a block can be filled."""
    digest = sha.ffi.new("uint8_t[32]")
    for size in SIZES:
        data = data_of(size)
        sha.lib.whole(data, size, digest)
        assert bytes(digest) == hashlib.sha256(data).digest(), size


def test_sha256_in_pieces(sha: Any) -> None:
    """However the data comes, piece by piece, its digest is the same."""
    digest, chance = sha.ffi.new("uint8_t[32]"), random.Random(11)
    for size in SIZES:
        cuts = sorted(chance.randrange(size + 1) for _ in range(chance.randrange(6)))
        sizes = [b - a for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
        data = data_of(size)
        sha.lib.pieces(data, sizes, len(sizes), digest)
        assert bytes(digest) == hashlib.sha256(data).digest(), sizes


def test_hmac_of_every_length(sha: Any) -> None:
    """HMAC is that of hmac, over one part or two; key and answer may be the same memory."""
    digest, chance = sha.ffi.new("uint8_t[32]"), random.Random(13)
    for size in SIZES:
        data, key, cut = data_of(size), chance.randbytes(32), chance.randrange(size + 1)
        expected = hmac.digest(key, data, "sha256")
        sha.ffi.memmove(digest, key, 32)
        sha.lib.keyed(digest, data, cut, size - cut, digest)
        assert bytes(digest) == expected, size


def test_both_ways_through_a_block(sha: Any) -> None:
    """The instructions of the processor and plain C come to the same state, from any one."""
    chance = random.Random(17)
    for count in (1, 2, 3, 7, 64):
        for _ in range(20):
            state, data = [chance.getrandbits(32) for _ in range(8)], chance.randbytes(64 * count)
            plain, fast = sha.ffi.new("uint32_t[8]", state), sha.ffi.new("uint32_t[8]", state)
            sha.lib.blocks(1, plain, data, count)
            if sha.lib.blocks(0, fast, data, count):
                assert list(plain) == list(fast)
    # Plain alone, from the beginning: one whole digest by hand.
    text = b"abc"
    block = text + b"\x80" + bytes(52) + (8 * len(text)).to_bytes(8, "big")
    state = sha.ffi.new("uint32_t[8]", [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19])
    sha.lib.blocks(1, state, block, 1)
    assert b"".join(word.to_bytes(4, "big") for word in state) == hashlib.sha256(text).digest()


@pytest.mark.parametrize("which", [0, 1, 2], ids=["sha256", "hmac", "plain"])
def test_nothing_of_a_key_is_left_on_the_stack(sha: Any, which: int) -> None:
    """Who reads the memory of the process later finds no piece of a key where it was hashed, nor of its pads."""
    key, stack = sha.ffi.new("uint8_t[64]", random.Random(19).randbytes(64)), sha.ffi.new("uint8_t[65536]")
    sha.lib.left(which, key, stack, len(stack))
    seen, pieces = bytes(stack), []
    for pad in (0, 0x36, 0x5C):
        text = bytes(byte ^ pad for byte in bytes(key)[: 64 if which == 2 else 32])
        words = struct.pack(f"={len(text) // 4}I", *struct.unpack(f">{len(text) // 4}I", text))
        pieces += [one[at : at + 8] for one in (text, words) for at in range(0, len(text), 8)]

    assert any(seen)
    assert [piece.hex() for piece in pieces if piece in seen] == []


# ------------------------------------------------------------------ the limit of a line


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keys"])
def test_line_has_8000_bytes_at_most(tmp_path: Path, keyed: bool) -> None:
    """A line of exactly 8000 bytes with its newline is written with keys, one byte more is refused, whatever is in it."""
    keys = tmp_path / "keys"
    key = audit.keys.initialise(keys) if keyed else None
    ledger = audit.Ledger(tmp_path / "ledger", "require", audit.Options(keys if keyed else None))
    answers = []
    for flags in (0, _core.AGGREGATE):
        for size in range(7300, 7800):
            members = b'"pad":"' + b"x" * size + b'"'
            answers.append(ledger._core.append("guard.config", None, members, flags))
    ledger.close()
    lines = (tmp_path / "ledger").read_bytes().splitlines(keepends=True)
    checked = ledger_check.check(tmp_path / "ledger", key, keys, still_open=False)

    assert set(answers) == {0, -errno.EMSGSIZE}
    assert max(map(len, lines)) == (LINE_MAX if keyed else LINE_MAX - len(',"m":""') - 64)
    assert len(checked.of("guard.config")) == answers.count(0)


def test_no_line_of_python_is_too_long_for_c(tmp_path: Path) -> None:
    """Members that Python has made fit are never refused for their size, aggregate and the longest event included."""
    audit.keys.initialise(tmp_path / "keys")
    ledger = audit.Ledger(tmp_path / "ledger", "best_effort", audit.Options(tmp_path / "keys"))
    fields = {"pad": "x" * (_record.MEMBERS_MAX - len('{"pad":""}'))}
    members = _record.members(fields)
    answers = {
        event: ledger._core.append(event, audit.new_id(), members, _core.AGGREGATE)
        for event in _core.EVENTS
        if event not in ("chain.open", "chain.close")
    }
    ledger.close()

    assert len(members) == _record.MEMBERS_MAX - 2
    assert set(answers.values()) == {0}
    assert json.loads((tmp_path / "ledger").read_bytes().splitlines()[1])["pad"] == fields["pad"]
