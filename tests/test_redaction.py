"""Redaction: what is left out of the arguments in records, and what stands for it."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import logging
import re
import subprocess
import sys
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import helpers
import safespawn
from safespawn import Secret, UnsafeSpawn, audit, run
from safespawn.audit import (
    _expression,
    _first_look,
    _record,
    _redact,
    _redaction,
    _shapes,
    _text_search,
    _tools,
    _word_reader,
)
from safespawn.audit._redact import RedactionKey

CORPUS = helpers.TESTS / "corpus" / "redaction"
MARK = "…"
KEY = RedactionKey("hk1", b"k" * 32)


def lines(name: str) -> dict[str, Any]:
    """Return the lines of a file of the corpus, by what a test calls them."""
    texts = (CORPUS / name).read_text(encoding="utf-8").splitlines()
    return {f"{name}:{number}": json.loads(text) for number, text in enumerate(texts, 1)}


def assert_all_equal(told: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare line by line, and name every line that is another than expected."""
    assert told.keys() == expected.keys()
    wrong = [f"{name}: {told[name]}, not {expected[name]}" for name in told if told[name] != expected[name]]
    assert not wrong, "\n".join(["", *wrong])


def encoded(argv: list[str]) -> tuple[bytes, ...]:
    """Return arguments as execve gets them."""
    return tuple(word.encode() for word in argv)


def shown(argv: list[str], **more: Any) -> list[str]:
    """Return what may be shown of a command line."""
    redacted = _redact.redact(encoded(argv), **more)
    return argv if redacted is None else [word.decode() for word in redacted.shown]


SECRET, ORDINARY = lines("secret.jsonl"), lines("ordinary.jsonl")


# ------------------------------------------------------------------------- the corpus


def test_secret_is_hidden() -> None:
    """Of a command line with secrets exactly the expected parts are hidden, and their arguments named."""

    def told(case: dict[str, Any]) -> Any:
        redacted = _redact.redact(encoded(case["argv"]))
        return redacted and ([word.decode() for word in redacted.shown], list(redacted.indices), redacted.argv)

    def expected(case: dict[str, Any]) -> Any:
        return case["shown"], case["redacted"], encoded(case["argv"])

    assert_all_equal(
        {name: told(case) for name, case in SECRET.items()}, {name: expected(case) for name, case in SECRET.items()}
    )


def test_ordinary_command_is_shown_whole() -> None:
    """Of an everyday command line nothing is hidden, also where it speaks of passwords, keys and tokens."""
    hidden = {name: shown(argv) for name, argv in ORDINARY.items() if _redact.redact(encoded(argv)) is not None}
    assert_all_equal(hidden, {name: ORDINARY[name] for name in hidden})
    assert not hidden


def test_corpus_is_large_and_of_many_programs() -> None:
    """The corpus has 150 command lines with secrets of 60 programs, and 200 without, none of them twice."""
    assert len({json.dumps(case["argv"]) for case in SECRET.values()}) == len(SECRET) >= 150
    assert len({json.dumps(argv) for argv in ORDINARY.values()}) == len(ORDINARY) >= 200
    assert len({case["argv"][0] for case in SECRET.values()}) >= 60


@pytest.mark.parametrize("wrapper", [["sudo", "-u", "app"], ["/usr/bin/env", "-i"], ["timeout", "5"]], ids=str)
def test_secret_is_hidden_behind_a_wrapper(wrapper: list[str]) -> None:
    """A program that is started by another one has the same secrets."""
    told = {name: shown([*wrapper, *case["argv"]])[len(wrapper) :] for name, case in SECRET.items()}
    assert_all_equal(told, {name: case["shown"] for name, case in SECRET.items()})


# -------------------------------------------------------------------- what is hidden


@pytest.mark.parametrize(
    ("argv", "seen"),
    [
        (["tool", "--password", "--verbose"], ["tool", "--password", "--verbose"]),
        (["tool", "--password", "-v"], ["tool", "--password", "-v"]),
        (["tool", "--password", "-hunter2"], ["tool", "--password", MARK]),
        (["tool", "--password"], ["tool", "--password"]),
        (["tool", "--password", ""], ["tool", "--password", ""]),
        (["tool", "--password=", "x"], ["tool", "--password=", "x"]),
        (["tool", "--password-file", "/x"], ["tool", "--password-file", "/x"]),
        (["tool", "--api-key", "/etc/key"], ["tool", "--api-key", "/etc/key"]),
        (["tool", "--api-key", "/abc+def=="], ["tool", "--api-key", MARK]),
        (["tool", "--password", "/etc/key"], ["tool", "--password", MARK]),
        (["tool", "--password=$PW"], ["tool", f"--password={MARK}"]),
        (["mysql", "-p@ssw0rd"], ["mysql", f"-p{MARK}"]),
        (["mysql", "-u", "curl", "-phunter2"], ["mysql", "-u", "curl", f"-p{MARK}"]),
        (["sh", "-c", "true; mysql -phunter2"], ["sh", "-c", f"true; mysql -p{MARK}"]),
        (["sh", "-c", "mysql; tool -p80"], ["sh", "-c", "mysql; tool -p80"]),
        (["cp", "net/a", "-U", "a%b"], ["cp", "net/a", "-U", "a%b"]),
        (["tool", "hunter2hunter2", "--password=hunter2hunter2"], ["tool", MARK, f"--password={MARK}"]),
        (["tool", "hunt", "--password=hunt"], ["tool", "hunt", f"--password={MARK}"]),
        (["tool", "secret123", "x=secret123", "--password=secret123"], ["tool", MARK, f"x={MARK}", f"--password={MARK}"]),
        (["tool", "--password=password", "my-password"], ["tool", f"--password={MARK}", "my-password"]),
    ],
    ids=str,
)
def test_rule(argv: list[str], seen: list[str]) -> None:
    """Options that follow, empty values and names of files are no secrets; a hidden text is hidden everywhere."""
    assert shown(argv) == seen


@pytest.mark.parametrize("text", ["", MARK])
def test_declared_secret_is_named_whatever_it_is(text: str) -> None:
    """A declared secret that is empty, or looks like what stands for one, is among the indices."""
    redacted = _redact.redact((b"tool", text.encode()), [(1, Secret(text).spans)])
    assert redacted is not None
    assert (redacted.shown, redacted.indices) == ((b"tool", MARK.encode()), (1,))


def test_bytes_that_are_no_text_are_hidden_too() -> None:
    """A secret need not be UTF-8, and what is beside it stays as it is."""
    redacted = _redact.redact((b"tool", b"\xff --password=\xfe\xfd"))
    assert redacted is not None
    assert redacted.shown == (b"tool", b"\xff --password=" + MARK.encode())


@pytest.mark.parametrize(
    ("pattern", "argument", "seen"),
    [
        (rb"\d{4}", "pin 1234 5678", "pin … …"),
        (rb"pin (\d+)", "pin 1234", "pin …"),
        (rb"(a)|(b)", "xabx", "x…x"),
        (rb"a(b)?", "ac", "ac"),
        (rb"x*", "aaa", "aaa"),
        (rb"(?i)NIP=(.*)", "nip=1\n2", "nip=…\n2"),
    ],
)
def test_patterns_of_the_caller(pattern: bytes, argument: str, seen: str) -> None:
    """Hidden is what the groups match, without groups the whole match; what is empty is nothing."""
    assert shown(["tool", argument], patterns=(re.compile(pattern),)) == ["tool", seen]


def declared(argv: list[Any], **more: Any) -> tuple[list[str], list[int]]:
    """Return what may be shown of a command line with Secrets in it, and the indices of what may not."""
    words = tuple((word.reveal() if isinstance(word, Secret) else word).encode() for word in argv)
    secrets = [(index, word.spans) for index, word in enumerate(argv) if isinstance(word, Secret)]
    redacted = _redact.redact(words, secrets, **more)
    assert redacted is not None
    return [word.decode() for word in redacted.shown], list(redacted.indices)


def test_declared_secrets_are_hidden_beside_what_is_known() -> None:
    """Of a declared secret what may be seen is searched like any argument."""
    argv = ["tool", "https://bob:hunter2@host/" + Secret("abc-abc-abc"), "abc-abc-abc"]

    assert declared(argv) == (["tool", "https://bob:…@host/…", MARK], [1, 2])
    assert declared(argv, known=False) == (["tool", "https://bob:hunter2@host/…", MARK], [1, 2])


@pytest.mark.parametrize(
    ("argv", "seen"),
    [
        (["tool", Secret("--token"), "shown"], ["tool", MARK, "shown"]),
        (["tool", Secret("my-token"), "shown"], ["tool", MARK, "shown"]),
        (["tool", "--" + Secret("token"), "shown"], ["tool", "--…", "shown"]),
        (["tool", "--x=" + Secret("token="), "shown"], ["tool", "--x=…", "shown"]),
        (["tool", Secret("token=") + "shown"], ["tool", "…shown"]),
        (["tool", Secret("set"), "password", "shown"], ["tool", MARK, "password", "shown"]),
        (["tool", Secret("mysql"), "-p80"], ["tool", MARK, "-p80"]),
        (["docker", Secret("login"), "-p", "80:80"], ["docker", MARK, "-p", "80:80"]),
        (["tool", Secret("x; sudo -S"), "shown"], ["tool", MARK, "shown"]),
        (["tool", "--token", Secret("--verbose"), "shown"], ["tool", "--token", MARK, "shown"]),
    ],
    ids=repr,
)
def test_declared_text_means_nothing(argv: list[Any], seen: list[str]) -> None:
    """What is declared is no name, option, program or value of another argument, whatever it says."""
    assert declared(argv)[0] == seen


@pytest.mark.parametrize(
    ("argv", "seen", "indices"),
    [
        (["tool", Secret("password"), "--password=x"], ["tool", MARK, "--…=…"], [1, 2]),
        (["tool", Secret("my-token"), "get my-token"], ["tool", MARK, "get …"], [1, 2]),
        (["tool", Secret("hunter2") + ":" + Secret("hunter3"), "hunter3hunter2"], ["tool", "…:…", MARK], [1, 2]),
        (["tool", Secret("1234"), "--n=1234", "1234", "a1234"], ["tool", MARK, "--n=…", MARK, "a1234"], [1, 2, 3]),
        (["tool", Secret("x"), "xx", "x", "a/x:y", "x-x"], ["tool", MARK, "xx", MARK, "a/…:y", "x-x"], [1, 3, 4]),
        (["tool", Secret("aaaaaa"), "aaaaaaaa"], ["tool", MARK, MARK], [1, 2]),
        (["tool", Secret("abcdef"), Secret("defghi"), "abcdefghi"], ["tool", MARK, MARK, MARK], [1, 2, 3]),
        (["tool", Secret(""), "x"], ["tool", MARK, "x"], [1]),
        (["tool", Secret("hunter2"), "x" * 4000 + "hunter2"], ["tool", MARK, "x" * 4000 + "hunter2"], [1]),
        (["tool", "hunter2" + Secret("y" * 4000) + "hunter2", Secret("hunter2")], ["tool", MARK, MARK], [1, 2]),
        (["tool", Secret("hunter2"), "hunter2" * 300], ["tool", MARK, MARK], [1, 2]),
        (["tool", Secret("a"), "a" * 2000], ["tool", MARK, MARK], [1, 2]),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_declared_text_is_hidden_wherever_it_stands(argv: list[Any], seen: list[str], indices: list[int]) -> None:
    """Also in other arguments, be it an ordinary word; where it is short, only as a word of its own.

    What no record has room for is not looked at; nor in detail what has ever so many of it.
    """
    assert declared(argv) == (seen, indices)


@pytest.mark.parametrize("mark", ["…", "a…b"])
def test_mark_in_what_may_be_seen_hides_nothing_less(mark: str) -> None:
    """Text that looks like what stands for a secret moves no place of what is hidden."""
    secret = mark + Secret("hunter2") + mark + Secret("4711") + mark
    assert declared(["tool", secret, "hunter2"]) == (["tool", f"{mark}…{mark}…{mark}", MARK], [1, 2])


# ------------------------------------------------------------------- hostile and long

PIECES = [
    *("-", "--", "=", ":", " ", "'", '"', "@", "://", "/", "x", "1", "|", "echo ", "_", ".", "?", "&", ";", "\n"),
    *("pin", "pw", "sas", "otp", "sig", "_auth", "bearer", "pass", "word", "pwd", "token", "key", "secret"),
    *("cred", "cookie", "Authorization", "connection", "string", "set ", "login", "a%b", "u:p", "sudo -S"),
    *("ghp_" + "a" * 24, "sk-" + "b" * 24, "eyJ" + "c" * 9 + ".dddd", "AKIA" + "B" * 16, "AIza" + "c" * 31),
    *("-p", "-u", "-a", "-P", "-w", "-U", "-k", "identified by 'x'", "-----BEGIN PRIVATE KEY", "$", "$(", "`", "\\"),
    *("8.0", ".exe", "bearer ", "basic YTpi", "<password>", "name=", ",value=", "/p:", "/password:", "\\\"", "%3D"),
    *("bot123456:" + "a" * 30, "discord.com/api/webhooks/" + "1" * 20, "convertto-securestring 'x'", "sonar.login="),
    *("xapp-" + "d" * 12, "glrt-" + "e" * 16, "dapi" + "f" * 32, "office.com/webhook/" + "g" * 20, "--login ", "--auth "),
    *(name.decode() for name in _tools.TOOLS),
]
ARGUMENT = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join)


@settings(max_examples=400, deadline=None)
@given(st.lists(ARGUMENT, min_size=1, max_size=5))
@example(["tool", "-Pin"])
def test_first_look_misses_nothing(argv: list[str]) -> None:
    """What a whole search finds, the first look has not ruled out; an argument is named when it was changed."""
    words = encoded(argv)
    found = _redact._Redaction(words, words, {}, (), searched=True).result()
    if found is not None and found.indices:
        assert _first_look.may_have_secrets(b"\0".join(words))
        changed = [i for i, word in enumerate(found.shown) if word != words[i]]
        assert list(found.indices) == changed


HOSTILE = [
    *(piece.encode() for piece in PIECES[:60]),
    *(b"password=", b"password='", b'password="', b"://a:", b"://a:b", b"'\\", b'"a\\', b"echo a|", b"eyJaaaaaaaa."),
    *(b"-----BEGIN ", b"-----BEGIN A PRIVATE KEY", b"identified with a ", b"a= ", b"a: ", b"authorization: ", b"x-a:"),
    *(b"--pass ", b"mysql -p ", b"curl -u ", b"SG.", b"SG.aaaaaaaaaaaaaaaa.", b"a@", b"passw", b"passwless", b"?sig="),
    *(b"<", b"<a ", b"<password>", b"<password><![CDATA[", b"<password ", b"name=a,value=", b"name=pin, value='", b"value"),
    *(b"\\\"pin\\\":", b"pin\\", b"bearer ", b"bearer a", b"basic a", b"basic ", b"/password:", b"-pin: ", b"password:"),
    *(b"pass:", b"%3D", b":pserver:a:", b"bot1", b"a1", b"mysql8.", b"--auth ", b"auth={", b"pragma key ", b"value:"),
    *(b"&sig=a&", b"PASSWORD=$(", b"PASSWORD=`", b"PASSWORD='a' ", b"\xff", b"token:token:", b"'\"'\""),
]


def _soon(holds: Callable[[], bool]) -> bool:
    """Whether what compares two times holds, once in a few tries: a machine may become slower between the two."""
    return any(holds() for _ in range(6))


def _seconds(argv: list[bytes], enough: float = 0) -> float:
    """Return what it takes at best: of three runs, or of fewer if that is less than enough."""
    best = float("inf")
    for _ in range(3):
        best = min(best, timeit.timeit(lambda: _redact.redact(argv), timer=time.process_time, number=1))
        if best < enough:
            break
    return best


@pytest.mark.parametrize("before", [[b"mysql"], [b"sh", b"-c"]], ids=["argument", "script"])
def test_time_grows_with_the_length(before: list[bytes]) -> None:
    """The longest argument that is searched takes some four times as long as one of a quarter, not sixteen times."""
    longest = _redact.SEARCHED_MAX
    wrong = []
    for piece in HOSTILE:
        quarter, whole = [[*before, b"token", (piece * longest)[:size]] for size in (longest // 4, longest)]
        if not _soon(lambda: _seconds(whole, most := 0.0005 + _seconds(quarter) * 9) < most):  # noqa: B023
            wrong.append(piece)
    assert not wrong


@pytest.mark.parametrize("look", [_first_look.may_have_secrets, _first_look.may_tell_secrets])
def test_time_of_the_first_look_grows_with_the_length(look: Callable[[bytes], bool]) -> None:
    """It is taken at everything, however long: four times as much takes some four times as long."""
    wrong = []
    for piece in HOSTILE:
        quarter, whole = (partial(look, piece * (size // len(piece))) for size in (2**14, 2**16))
        if not _soon(lambda: _best(whole) < 0.0005 + _best(quarter) * 9):  # noqa: B023
            wrong.append(piece)
    assert not wrong


def _best(call: Callable[[], object]) -> float:
    return min(timeit.repeat(call, timer=time.process_time, number=1, repeat=3))


@pytest.mark.parametrize(("number", "length"), [(16, 2**17 - 1), (2**15, 64), (1, 2**21), (2**20, 2)])
def test_as_much_as_execve_takes_is_looked_at_in_time(number: int, length: int) -> None:
    """Two mebibytes take less than a second of the processor, be it few arguments or many.

    Of one that counts to a million in a fiftieth of it: a second of a slow one is longer.
    """
    pieces = [b"x", b"'", b"a@", b"SG.", b"curl -u ", b"password='", b"\xff"]
    slow = []
    for piece in pieces:
        argv = [b"sh", b"-c", *[(piece * length)[:length]] * number]
        if not _soon(lambda: _seconds(argv, a_second := 50 * _best(_count)) < a_second):  # noqa: B023
            slow.append(piece)
    assert slow == []


def _count() -> None:
    for _ in range(1_000_000):
        pass


def test_time_of_all_arguments_has_an_end() -> None:
    """However many have a text in them that takes long: what has not been searched by then is hidden whole."""
    text = " ".join(name.decode() for name in _tools.TOOLS)[: _redact.SEARCHED_MAX - 10]
    argv = ["sh", *[f"pin={number:02} {text}" for number in range(60)], "end"]

    seen = shown(argv)
    assert seen == ["sh", *[f"pin={MARK}"] * 8, *[MARK] * 52, "end"]


@pytest.mark.parametrize("word", [b"-p", b"-u", b"--password", b"", b"-px", b"mysql", b"sudo", b"'"], ids=repr)
def test_many_arguments_take_time_in_proportion(word: bytes) -> None:
    """A hundred thousand arguments take some four times as long as a quarter of them."""
    few, many = ([b"mysql", b"-u", b"curl", *[word] * number] for number in (25_000, 100_000))
    assert _soon(lambda: _seconds(many) < 0.002 + _seconds(few) * 9)


def test_many_declared_secrets_take_time_in_proportion() -> None:
    """Also of these, in as many arguments or in one."""

    def took(number: int, parts: int) -> float:
        argv = [b"tool", *[b"secret%d" % i * parts for i in range(number)]]
        secrets = [(i, [(at, at + 1) for at in range(0, parts, 2)]) for i in range(1, number + 1)]
        return _best(lambda: _redact.redact(argv, secrets))

    assert _soon(lambda: took(20_000, 1) < 0.005 + took(5_000, 1) * 9)
    assert _soon(lambda: took(1, 20_000) < 0.005 + took(1, 5_000) * 9)


def test_long_argument_is_hidden_whole() -> None:
    """What is too long to be searched is hidden if there may be a secret in it, and shown (cut) if not."""
    long = "x" * (_redact.SEARCHED_MAX + 1)
    assert shown(["tool", long]) == ["tool", long]
    assert shown(["tool", f"{long} token"]) == ["tool", MARK]
    assert shown(["mysql", f"-p{long}", "db"]) == ["mysql", f"-p{MARK}", "db"]


def test_ordinary_command_costs_next_to_nothing() -> None:
    """To find nothing in five arguments of 87 bytes takes at most four times as long as to make their fields."""
    argv = (b"rsync", b"-a", b"--delete", b"/srv/data/projects/alpha/", b"backup.example.com:/srv/backup/alpha-2024-01/xx")

    def cost(call: Callable[[], object]) -> float:
        return min(timeit.repeat(call, timer=time.process_time, number=2000, repeat=7))

    assert _soon(lambda: cost(lambda: _redact.redact(argv)) < 4 * cost(lambda: _record.arguments(argv)))


# ------------------------------------------------------------------------ compiled when first used


def expressions() -> list[_expression.Expression]:
    """Return all expressions that look for secrets."""
    modules = (_shapes, _first_look, _word_reader, _text_search)
    tools = [tool.after for tools in _tools.TOOLS.values() for tool in tools]
    known = [*tools, _tools.BEFORE_PROGRAM, *(value for module in modules for value in vars(module).values())]
    return [value for value in known if isinstance(value, _expression.Expression)]


def test_expressions_are_expressions() -> None:
    """Each of them compiles, though nothing else may have used it."""
    assert len(expressions()) > 50
    for one in expressions():
        one.search(b"")


FIRST_USE = """
import os, sys
sys.path.insert(0, {tests!r})
import safespawn
from safespawn.audit import _redact
import test_redaction

compiled = [one for one in test_redaction.expressions() if "search" in vars(one)]
assert compiled == [], compiled
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
if os.geteuid() == 0:
    os.chroot({empty!r})
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
before = set(sys.modules)
sys.meta_path.clear()  # nothing more can be imported
test_redaction.test_secret_is_hidden()
test_redaction.test_ordinary_command_is_shown_whole()
assert set(sys.modules) == before, set(sys.modules) - before
os._exit(0)
"""


def test_first_use_needs_nothing_of_the_machine(tmp_path: Path) -> None:
    """Importing compiles nothing; the first use, in a forked child, behind a chroot and as nobody, imports nothing."""
    script = FIRST_USE.format(tests=str(helpers.TESTS), empty=str(tmp_path))
    subprocess.run([sys.executable, "-c", script], check=True)


def test_two_threads_may_use_an_expression_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both compile it, and both find what is there."""
    together = threading.Barrier(2, timeout=60)

    def compiled(*given: Any) -> Any:
        together.wait()
        return compile_(*given)

    compile_ = re.compile
    monkeypatch.setattr(_expression.re, "compile", compiled)
    one = _expression.Expression(b"b+")
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda text: one.search(text).span(), (b"abbc", b"abbc")))
    assert found == [(1, 3)] * 2


def test_expression_has_no_other_attributes() -> None:
    """What is no method of it is an error that compiles nothing."""
    with pytest.raises(AttributeError, match="sub"):
        _expression.Expression(b"(").sub  # noqa: B018


# -------------------------------------------------------------------------- the fields


def fields(argv: list[str], **more: Any) -> dict[str, Any]:
    """Return the fields of a record for a command line."""
    words = encoded(argv)
    return _redact.arguments(words, _redact.redact(words, **more), KEY)


def mac(argv: list[str]) -> str:
    """Return the MAC as docs/audit-format.md has it."""
    text = "".join(word + "\0" for word in argv).encode()
    return "hk1:" + hmac.new(b"k" * 32, text, hashlib.sha256).hexdigest()


def test_fields_of_a_redacted_command() -> None:
    """The record has the rest, the indices, a MAC of all and one of each hidden argument, and no length of it."""
    argv = ["mysql", "-uroot", "-phunter2", "shop"]
    assert fields(argv) == {
        "argc": 4,
        "argv_bytes": len("mysql-uroot-pshop" + MARK) + 2,
        "argv": ["mysql", "-uroot", "-p…", "shop"],
        "redacted": [2],
        "argv_mac": mac(argv),
        "secret_macs": [mac(["hunter2"])],
    }


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=900).map(lambda data: data.replace(b"\0", b"")), min_size=1, max_size=6))
def test_fields_of_an_ordinary_command_are_those_of_today(argv: list[bytes]) -> None:
    """Where nothing is hidden the fields are exactly those of a record without redaction."""
    redacted = _redact.redact(argv)
    assert redacted is not None or _redact.arguments(argv, None, KEY) == _record.arguments(argv)


def test_nothing_that_was_cut_can_be_guessed() -> None:
    """With a secret anywhere in a vector that does not fit there is no digest without a key."""
    filler = ["x" * 100] * 40
    for argv in (["tool", "--token=abc", *filler], ["tool", *filler, "--token=abc"], ["mysql", *filler, "-pabc"]):
        told = fields(argv)
        assert told["argv_cut"] == len(told["argv"]) < len(argv) == told["argc"]
        assert told["argv_mac"] == mac(argv)
        assert "argv_sha256" not in told
        assert "abc" not in json.dumps(told["argv"])
    told = fields(["tool", *filler, "abc"], secrets=[(41, [(0, 3)])])
    assert "argv_sha256" not in told
    assert told["redacted"] == []
    assert "argv_sha256" in fields(["tool", *filler])


def test_hidden_arguments_make_room() -> None:
    """A long secret does not push the arguments behind it out of the record."""
    told = fields(["tool", "--token=" + "x" * 2000, "--token=" + "x" * 3000, "behind"])
    assert told["argv"] == ["tool", "--token=…", "…", "behind"]
    assert "argv_cut" not in told


def test_record_stays_small_whatever_is_hidden() -> None:
    """With ever so many secrets the indices are those of what is shown, and the MACs are of the first."""
    argv = ["tool", *["-password=x"] * 5000]
    told = fields(argv)

    assert told["argc"] == 5001
    assert told["argv_cut"] == len(told["argv"]) == 65
    assert told["redacted"] == list(range(1, 65))
    assert told["secret_macs"] == [mac(["x"])] * 8
    assert len(json.dumps(told)) < 3000


def secret_macs(argv: list[str], key: RedactionKey = KEY, **more: Any) -> Any:
    """Return the MACs of what is hidden."""
    words = encoded(argv)
    return _redact.arguments(words, _redact.redact(words, **more), key)["secret_macs"]


def test_equal_secrets_have_equal_macs_under_one_key_only() -> None:
    """What is hidden can be recognised, whatever option it is for; under another key, or another one, it cannot."""
    other = _redact.process_key()
    one = secret_macs(["tool", "--token=hunter2"])
    assert one == secret_macs(["mysql", "-phunter2"]) == secret_macs(["tool", "hunter2"], secrets=[(1, [(0, 7)])])
    of = [secret_macs(["tool", "--token=" + text], key)[0] for text in "ab" for key in (KEY, other, _redact.process_key())]
    assert len(set(of)) == 6
    assert of[1].startswith("hp1:")


def test_mac_is_of_all_parts_that_are_hidden() -> None:
    """Two declared parts of one argument are apart from each other in its MAC, and from what may be seen."""
    spans = [(0, 2), (3, 5)]
    assert secret_macs(["tool", "ab:cd"], secrets=[(1, spans)]) == [mac(["ab", "cd"])]
    assert secret_macs(["tool", "abcd"], secrets=[(1, [(0, 4)])]) == [mac(["abcd"])]


def test_indices_have_an_end_also_where_a_secret_is_repeated() -> None:
    """An argument that is hidden because another one is counts too: behind 64 of them argv ends."""
    told = fields(["tool", *["hunter2", "x"] * 100, "--password=hunter2"])
    assert told["redacted"] == list(range(1, 128, 2))
    assert told["argv_cut"] == len(told["argv"]) == 128
    assert told["argc"] == 202


def test_macs_of_environments() -> None:
    """The MAC of an environment is over its strings as the program gets them, values and all."""
    assert _redact.environment_mac([(b"B", b"2"), (b"A", b"1")], KEY) == mac(["B=2", "A=1"])
    assert _redact.environment_mac([(b"A", b"1"), (b"B", b"3")], KEY) != mac(["A=1", "B=2"])


def test_key_is_not_shown() -> None:
    """The key is not in its own repr."""
    assert "kkk" not in repr(KEY)


# ----------------------------------------------------------------------- a whole spawn


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Return what all loggers write, from the lowest level up."""
    stream = io.StringIO()
    handler, root = logging.StreamHandler(stream), logging.getLogger()
    root.addHandler(handler)
    level = root.level
    root.setLevel(1)
    yield stream
    root.setLevel(level)
    root.removeHandler(handler)


#: Where a secret can stand, as what runs; {} is the secret.
PLACES = [
    ["/bin/true", "--password={}"],
    ["/bin/true", "--password", "{}"],
    ["/bin/true", "{}", "mysql", "-p{}"],
    ["/bin/true", "curl", "-u", "bob:{}", "https://bob:{}@host/?token={}"],
    ["/bin/true", "-H", "Authorization: Bearer {}"],
    ["/bin/true", "API_TOKEN={}"],
    ["/bin/true", '{{"password": "{}"}}'],
    ["/bin/sh", "-c", "true PGPASSWORD={} psql"],
    ["/bin/sh", "-c", "true mysql -p'{}'"],
]
#: What becomes of it, and with which options.
ENDS: list[tuple[type[BaseException] | None, dict[str, Any]]] = [
    (None, {}),
    (FileNotFoundError, {"executable": "/no/such/program"}),
    (FileNotFoundError, {"cwd": "/no/such/directory"}),
    (UnsafeSpawn, {"digest": "sha256:" + "0" * 64}),
    (safespawn.SpawnTimeout, {"deadline": 1e-9}),
    (subprocess.TimeoutExpired, {"executable": "/bin/sh", "timeout": 0.005}),
]
SECRETS = st.text(st.sampled_from("abcXYZ0123456789!%+,;^~ü"), min_size=8, max_size=20).map(lambda text: f"S{text}s")


def _run(argv: list[Any], end: type[BaseException] | None, options: dict[str, Any]) -> list[object]:
    """Run it and return everything that could show an argument."""
    if end is subprocess.TimeoutExpired:
        argv = ["/bin/sh", "-c", "exec sleep 1000", *argv]
    try:
        done = run(argv, **options)
    except end or () as problem:
        return [getattr(problem, "report", None)]
    # However short its time, a child may be done before anybody looks.
    assert end in (None, safespawn.SpawnTimeout)
    return [done.report, done._process]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(SECRETS, st.sampled_from(PLACES), st.sampled_from(ENDS))
@pytest.mark.parametrize("sink", ["ledger", "logger"])
def test_no_secret_in_any_sink(
    tmp_path: Path,
    log: io.StringIO,
    sink: str,
    secret: str,
    place: list[str],
    end: tuple[type[BaseException] | None, dict[str, Any]],
) -> None:
    """A secret is in no record, log line or report of a spawn that ran, failed, was denied or timed out."""
    log.truncate(0)
    path = tmp_path / "ledger"
    path.unlink(missing_ok=True)
    argv = [word.format(*[secret] * 3) for word in place]
    if sink == "ledger":
        with audit.open(path):
            told = _run(argv, *end)
        written = path.read_text(encoding="ascii")
    else:
        told = _run(argv, *end)
        written = log.getvalue()

    assert '"redacted":[' in written
    everything = written + log.getvalue() + repr([one for one in told if isinstance(one, safespawn.SpawnReport)])
    assert secret not in everything
    assert json.dumps(secret)[1:-1] not in everything


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(SECRETS, st.sampled_from(ENDS), st.booleans())
def test_no_declared_secret_in_any_sink(
    tmp_path: Path, log: io.StringIO, secret: str, end: tuple[type[BaseException] | None, dict[str, Any]], off: bool
) -> None:
    """A Secret, in the arguments or the environment, is shown nowhere, handle included, even with redaction off."""
    log.truncate(0)
    path = tmp_path / "ledger"
    path.unlink(missing_ok=True)
    options = {**end[1], "env": {"A": Secret(secret), "PATH": "/bin"}, **({"redact": ()} if off else {})}
    with audit.open(path):
        told = _run(["/bin/true", Secret(secret), "x" + Secret(secret)], end[0], options)

    everything = path.read_text(encoding="ascii") + log.getvalue() + repr(told)
    assert secret not in everything
    assert json.dumps(secret)[1:-1] not in everything


def what(path: Path, event: str = "spawn.intent") -> dict[str, Any]:
    """Return the ``what`` of the one record of an event."""
    (record,) = [r for r in helpers.records(path) if r["ev"] == event]
    return dict(record["what"])


def test_option_adds_patterns(tmp_path: Path) -> None:
    """``redact`` hides more than what is known."""
    with audit.open(tmp_path / "ledger"):
        run(["/bin/true", "--pin-code=1234", "--token=abc"], redact=["--pin-code=(.*)", re.compile(b"unused")])
    assert what(tmp_path / "ledger")["argv"] == ["/bin/true", "--pin-code=…", "--token=…"]


def test_empty_option_turns_it_off(tmp_path: Path) -> None:
    """With ``redact=()`` arguments are recorded as they are, but what is a Secret."""
    with audit.open(tmp_path / "ledger"):
        run(["/bin/true", "--token=abc", Secret("x")], redact=())
    told = what(tmp_path / "ledger")
    assert told["argv"] == ["/bin/true", "--token=abc", "…"]
    assert told["redacted"] == [2]


@pytest.fixture
def own_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the patterns and the key of the process back after the test."""
    monkeypatch.setattr(_redaction._Process, "patterns", ())
    monkeypatch.setattr(_redaction._Process, "key", _redaction._Process.key)


def test_command_that_was_plain_is_looked_at_again(own_state: None, tmp_path: Path) -> None:
    """The second time it is known to be plain; not by other patterns, nor with a part declared secret, and back again."""
    argv = ["/bin/true", "--badge=1"]
    with audit.open(tmp_path / "ledger"):
        for _ in range(2):
            run(argv)
        run(argv, redact=["--badge=(.*)"])
        run(["/bin/true", Secret("--badge=1")])
        run(argv)
        _redaction.redact("--badge=(.*)")
        run(argv)
    told = [r["what"]["argv"][1] for r in helpers.records(tmp_path / "ledger") if r["ev"] == "spawn.intent"]
    assert told == ["--badge=1"] * 2 + ["--badge=…", "…", "--badge=1", "--badge=…"]


def test_few_plain_commands_are_remembered(own_state: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """None with a secret, none that is long, and not more than a bound."""
    monkeypatch.setattr(_redaction._Process, "plain", plain := set())
    assert _redaction.hides((b"curl", b"--token=abc"))
    assert not _redaction.hides((b"ls", b"x" * 400))
    assert not _redaction.hides((b"ls",) * 17)
    assert plain == set()
    for number in range(1000):
        assert not _redaction.hides((b"ls", b"%d" % number))
        assert 0 < len(plain) <= _redaction.PLAIN_MAX
    assert (b"ls", b"999") in plain


def test_patterns_of_the_process(own_state: None, tmp_path: Path) -> None:
    """What was added for the process holds for every spawn, beside the option; only ``()`` turns it off."""
    _redaction.redact("--badge=(.*)")
    _redaction.redact(re.compile("--desk=(.*)"))
    argv = ["/bin/true", "--badge=1", "--desk=2", "--room=3"]
    with audit.open(tmp_path / "ledger"):
        for option in (None, ["--room=(.*)"], ()):
            run(argv, redact=option)
    told = [r["what"]["argv"][1:] for r in helpers.records(tmp_path / "ledger") if r["ev"] == "spawn.intent"]

    assert told == [
        ["--badge=…", "--desk=…", "--room=3"],
        ["--badge=…", "--desk=…", "--room=…"],
        ["--badge=1", "--desk=2", "--room=3"],
    ]


@pytest.mark.parametrize("wrong", ["(", 7, None], ids=repr)
def test_what_is_no_pattern_is_refused_for_the_process(own_state: None, wrong: Any) -> None:
    """A bad expression is an error at once, and nothing is added."""
    with pytest.raises((TypeError, ValueError), match=r"redact\[1\]"):
        _redaction.redact("fine", wrong)
    assert _redaction._Process.patterns == ()


def test_macs_of_records_are_under_the_key_in_use(own_state: None, tmp_path: Path) -> None:
    """Records have the MACs of the host's key once there is one, of a key of the process before."""
    argv = ["/bin/true", "--token=abc"]
    with audit.open(tmp_path / "ledger"):
        run(argv)
        _redaction.use_key(KEY)
        run(argv)
    macs = [r["what"]["argv_mac"] for r in helpers.records(tmp_path / "ledger") if r["ev"] == "spawn.intent"]
    assert macs[0].startswith("hp1:")
    assert macs[1] == mac(argv)


@pytest.mark.parametrize(
    ("options", "event", "problem"),
    [
        ({"executable": "/no/such/program"}, "spawn.failed", FileNotFoundError),
        ({"digest": "sha256:" + "0" * 64}, "spawn.denied", UnsafeSpawn),
    ],
    ids=["failed", "denied"],
)
def test_spawn_that_did_not_run_is_redacted_too(
    tmp_path: Path, options: dict[str, Any], event: str, problem: type[BaseException]
) -> None:
    """The records that tell all because there was no intent have the same fields."""
    argv = ["/bin/true", "--token=abc"]
    with audit.open(tmp_path / "ledger"), pytest.raises(problem):
        run(argv, **options)
    told = what(tmp_path / "ledger", event)
    assert (told["argv"], told["redacted"]) == (["/bin/true", "--token=…"], [1])


def test_command_line_redacts(tmp_path: Path) -> None:
    """``safespawn run`` hides what is known and what ``--redact`` says, in the ledger and on stderr."""
    path = tmp_path / "ledger"
    done = subprocess.run(
        [sys.executable, "-m", "safespawn", "run", "--audit", path, "--report", "--redact=--desk=(.*)", "--"]
        + ["/bin/true", "--token=abc", "--desk=2x2x2x"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert what(path)["argv"] == ["/bin/true", "--token=…", "--desk=…"]
    assert "2x2x2x" not in done.stderr
