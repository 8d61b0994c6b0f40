"""Secret: the program gets the text, and nobody is shown it."""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import pickle
import subprocess
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import safespawn
from safespawn import PIPE, Secret, _checks, run, spawn

HIDDEN = "hunter2-hunter2"


# ------------------------------------------------------------------------- the type


@pytest.mark.parametrize("text", ["x", "", "ü\udcff", b"x", b"\xff"], ids=repr)
def test_reveal_gives_what_was_hidden(text: str | bytes) -> None:
    """The text comes back as it was given, str or bytes."""
    assert Secret(text).reveal() == text  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        (Secret("a"), "Secret('…')"),
        (Secret(b"a"), "Secret('…')"),
        ("--password=" + Secret("a"), "Secret('--password=…')"),
        (b"-p" + Secret(b"a"), "Secret('-p…')"),
        ("bob:" + Secret("a") + "@host/" + Secret("b"), "Secret('bob:…@host/…')"),
        (b"\xff" + Secret(b"a"), "Secret('\\\\xff…')"),
    ],
    ids=str,
)
def test_it_shows_itself_without_the_text(secret: Secret[Any], shown: str) -> None:
    """``repr``, ``str``, ``%s`` and ``!r`` show the parts that may be seen, and a mark for the others."""
    assert [repr(secret), str(secret), "%s" % secret, f"{secret!r}"] == [shown] * 4


def test_parts_are_put_together() -> None:
    """``+`` with text before and behind gives a secret whose whole is all of it."""
    secret = "bob:" + Secret("a") + "@host"

    assert (secret.reveal(), secret.shown) == ("bob:a@host", "bob:…@host")
    assert (b"-p" + Secret(b"a")).shown == b"-p" + "…".encode()


@given(st.lists(st.tuples(st.sampled_from(["x", "é", "\udcff", "…", ""]), st.booleans())))
def test_spans_are_of_the_parts_that_are_hidden(parts: list[tuple[str, bool]]) -> None:
    """They are places in the bytes that a program gets, one for each hidden part, in order."""
    secret = Secret("")
    for text, hidden in parts:
        secret = secret + (Secret(text) if hidden else text)
    whole = os.fsencode(secret.reveal())

    assert [whole[start:end] for start, end in secret.spans] == [b"", *(os.fsencode(t) for t, hidden in parts if hidden)]
    marked = b"".join(map(os.fsencode, secret.shown.split("…")))
    assert marked == b"".join(os.fsencode(text).replace("…".encode(), b"") for text, hidden in parts if not hidden)


@pytest.mark.parametrize(
    "wrong",
    [lambda s: b"x" + s, lambda s: s + b"x", lambda s: s + Secret(b"x"), lambda s: s + 1, lambda s: None + s],
)
def test_other_types_cannot_be_put_to_it(wrong: Callable[[Any], object]) -> None:
    """str and bytes do not mix, and the error does not have the text."""
    with pytest.raises(TypeError) as caught:
        wrong(Secret(HIDDEN))
    assert HIDDEN not in str(caught.value)


@pytest.mark.parametrize(
    "leak",
    [
        lambda s: f"--password={s}",
        "--password={}".format,
        lambda s: "".join(["--password=", s]),
        lambda s: "--password=%r" % s + 1,
        pickle.dumps,
        json.dumps,
        os.fsencode,
        os.fspath,
        bytes,
        len,
        list,
        hash,
        lambda s: {s: 1},
        lambda s: s < s,
        lambda s: s.encode(),
        lambda s: s[0],
        lambda s: vars(s),
    ],
)
def test_it_does_not_become_text_by_accident(leak: Callable[[Any], object]) -> None:
    """What would make text of it, or tell its length or hash, is an error that does not have the text."""
    with pytest.raises((TypeError, AttributeError)) as caught:
        leak(Secret(HIDDEN))
    assert HIDDEN not in str(caught.value)


def test_copies_are_itself() -> None:
    """It can stand in what is copied deeply: a configuration, a dataclass."""
    secret = Secret("a")
    assert copy.deepcopy([secret])[0] is secret
    assert copy.copy(secret) is secret


def test_equal_is_what_a_program_would_get() -> None:
    """Two secrets of the same bytes are equal, whatever of them may be seen; no text is equal to one."""
    assert Secret("ab") == Secret(b"ab") == "a" + Secret("b")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert "a" != Secret("a")


def test_comparison_takes_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is left to hmac.compare_digest, with all of both."""
    from safespawn import _secret

    compared: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(_secret.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or False)
    assert Secret("abc") != Secret("abd")
    assert compared == [(b"abc", b"abd")]


@pytest.mark.parametrize("wrong", [None, 7, bytearray(b"x"), ["x"], Secret("x")], ids=repr)
def test_only_text_is_hidden(wrong: Any) -> None:
    """Anything but str and bytes is a TypeError that names the type."""
    with pytest.raises(TypeError, match=type(wrong).__name__):
        Secret(wrong)


@pytest.mark.parametrize("wrong", [f"{HIDDEN}\0", HIDDEN.encode() + b"\0", f"{HIDDEN}\ud800"], ids=repr)
@pytest.mark.parametrize("make", [Secret, lambda text: text + Secret(text[:0])], ids=["hidden", "visible"])
def test_what_no_argument_can_have_is_refused(wrong: Any, make: Callable[[Any], object]) -> None:
    """NUL and what cannot be encoded is a ValueError at once; neither it nor its causes have the text."""
    with pytest.raises(ValueError) as caught:
        make(wrong)
    told: BaseException | None = caught.value
    while told is not None:
        assert HIDDEN not in repr(told)
        assert HIDDEN not in repr(getattr(told, "object", ""))
        told = told.__cause__ or told.__context__


def test_logging_does_not_show_it() -> None:
    """A log line shows the mark, in whichever way the line is made; a failing format shows no text either."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.Logger("test")
    logger.addHandler(handler)

    logger.warning("%s %r", Secret(HIDDEN), Secret(HIDDEN))
    logger.warning(Secret(HIDDEN))
    logger.warning("%(s)s", {"s": Secret(HIDDEN)})

    assert stream.getvalue() == "Secret('…') Secret('…')\nSecret('…')\nSecret('…')\n"


# ------------------------------------------------------------------------ in a spawn


def test_program_gets_the_text() -> None:
    """As an argument and in the environment the text is what was hidden, whole."""
    script = 'printf "%s|%s" "$1" "$PASSWORD"'
    done = run(
        ["/bin/sh", "-c", script, "sh", b"-p" + Secret(b"\xffx")],
        env={"PASSWORD": "p" + Secret("ü y")},
        stdout=PIPE,
    )
    assert done.stdout == b"-p\xffx|p\xc3\xbc y"


def test_empty_secret_is_an_empty_argument() -> None:
    """Nothing, hidden, is an argument without characters."""
    assert run(["/usr/bin/printf", "[%s]", Secret("")], stdout=PIPE).stdout == b"[]"


def test_handle_and_result_show_the_secret() -> None:
    """``args`` of the handle has the Secret, that of the result is what was given."""
    with spawn(["/bin/true", "-p" + Secret(HIDDEN), "x"]) as process:
        assert process.args == (b"/bin/true", "-p" + Secret(HIDDEN), b"x")
    done = run(["/bin/true", Secret(HIDDEN)])

    assert HIDDEN not in repr(process.args) + repr(process) + repr(done) + repr(process.report)


def _raised(call: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    "call",
    [
        lambda s: run(["/bin/sh", "-c", "exec sleep 1000", s], timeout=0.01),
        lambda s: run(["/bin/sh", "-c", "exit 3", s], check=True),
        lambda s: run(["/no/such/program", s]),
        lambda s: run(["/bin/true", s], digest="sha256:" + "0" * 64),
        lambda s: run(["/bin/true", s], cwd="/no/such"),
        lambda s: run(["/bin/true", s], env={"A": s}, user="no-such-user"),
        lambda s: run([s, "x"]),
        lambda s: run(s),
        lambda s: run(["/bin/true"], executable=s),
        lambda s: run(["/bin/true"], env={s: "x"}),
        lambda s: run(["/bin/true"], env=[s]),
        lambda s: run(["/bin/true"], cwd=s),
        lambda s: run(["/bin/true"], user=s),
        lambda s: run(["/bin/true"], audit_tags={"a": s}),
        lambda s: run(["/bin/cat"], input=s),
        lambda s: run(["/bin/cat"], input=s, text=True),
        lambda s: run(["/bin/true", Secret(s.reveal() + "x" * 2**17)]),
        lambda s: run(["/bin/true"], env={"A": Secret(s.reveal() + "x" * 2**17)}),
        lambda s: run(["/bin/true", *[s] * 2**20]),
    ],
)
def test_exceptions_do_not_show_it(call: Callable[[Any], object]) -> None:
    """Whatever goes wrong, and wherever a Secret is given that cannot stand there, no message has the text."""
    problem = _raised(lambda: call(Secret(HIDDEN)))

    assert HIDDEN not in "".join(traceback.format_exception(problem))
    assert HIDDEN not in repr(vars(problem))


def test_timeout_names_the_command() -> None:
    """``cmd`` of the exceptions of subprocess is what was given, with the Secret in it."""
    words = ["/bin/sh", "-c", "exec sleep 1000", "-p" + Secret("x")]
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        run(words, timeout=0.01)
    assert caught.value.cmd is words


def test_input_tells_what_to_do() -> None:
    """A Secret as input is refused with the way out: what goes through a pipe is shown nowhere."""
    with pytest.raises(TypeError, match=r"Secret\('…'\).*reveal"):
        run(["/bin/cat"], input=Secret("x"))  # type: ignore[arg-type]
    assert run(["/bin/cat"], input=Secret(b"x").reveal(), stdout=PIPE).stdout == b"x"


def test_input_of_the_wrong_type_is_not_shown() -> None:
    """A password that was given as str where bytes are needed is not in the message."""
    with pytest.raises(TypeError, match="str .15 characters"):
        run(["/bin/cat"], input=HIDDEN)


def test_first_argument_cannot_be_secret() -> None:
    """It names the program, which every record tells."""
    with pytest.raises(TypeError, match=r"argv\[0\].*Secret\('…'\)"):
        run([Secret("/bin/true")])


def test_request_knows_which_arguments_are_secret() -> None:
    """The request has plain bytes for execve, and beside them the secrets by their index."""
    secret = "-p" + Secret("x")
    made = _checks.request(["a", "b", secret], {})

    assert made.argv == (b"a", b"b", b"-px")
    assert made.secrets == ((2, secret),)
    assert made.words == (b"a", b"b", secret)
    assert safespawn.Secret is Secret
