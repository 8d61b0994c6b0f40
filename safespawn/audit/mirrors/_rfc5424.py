"""Syslog messages as RFC 5424 has them, and their frames in a stream (RFC 6587). Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

#: Facilities that programs may use: table 1 of the RFC.
FACILITIES = {
    "user": 1,
    "daemon": 3,
    "auth": 4,
    "authpriv": 10,
    "audit": 13,
    **{f"local{i}": 16 + i for i in range(8)},
}

#: 32473 is the number that RFC 5612 sets aside for examples: we have none of our own.
SD_ID = "safespawn@32473"

_BOM = b"\xef\xbb\xbf"
_SD_NAME = re.compile(r"[!#-<>-\\^-~]{1,32}")


def _word(value: str, longest: int) -> bytes:
    """Return a field of the header: printable ASCII without blanks, or the NILVALUE."""
    kept = re.sub(r"[^!-~]", "", value)[:longest]
    return kept.encode("ascii") or b"-"


def _timestamp(time_ns: int) -> bytes:
    """Return the time in UTC; the RFC allows six digits of a second and no more."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    when = time.gmtime(seconds)
    return b"%s.%06dZ" % (time.strftime("%Y-%m-%dT%H:%M:%S", when).encode("ascii"), rest // 1000)


def _parameter(name: str, value: str) -> bytes:
    if not _SD_NAME.fullmatch(name):
        raise ValueError(f"no name of a parameter: {name!r}")
    escaped = re.sub(r'(["\\\]])', r"\\\1", value)  # section 6.3.3
    return f' {name}="{escaped}"'.encode()


def structured_data(values: Mapping[str, str]) -> bytes:
    """Return one element with our id. Raises ValueError for a name that the RFC refuses."""
    parameters = b"".join(_parameter(name, value) for name, value in values.items())
    return b"[%s%s]" % (SD_ID.encode("ascii"), parameters)


def message(
    text: bytes, *, priority: int, time_ns: int, host: str, app: str, process: int, kind: str, data: bytes
) -> bytes:
    """Return one message.

    ``priority`` is eight times the facility plus the severity. Text that is not all ASCII
    and is UTF-8 starts with a byte order mark, as section 6.4 demands. ASCII has none:
    three bytes before the record would make it another line at the receiver.
    """
    header = b" ".join(
        (
            b"<%d>1" % priority,
            _timestamp(time_ns),
            _word(host, 255),
            _word(app, 48),
            b"%d" % process,
            _word(kind, 32),
            data,
        )
    )
    return header + b" " + _mark(text) + text


def _mark(text: bytes) -> bytes:
    if text.isascii():
        return b""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return b""
    return _BOM


def frame(message: bytes) -> bytes:
    """Return it counted in octets, RFC 6587, section 3.4.1: no byte in it can end it."""
    return b"%d %s" % (len(message), message)
