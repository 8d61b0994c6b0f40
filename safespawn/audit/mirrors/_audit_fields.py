"""The text of a record for the kernel's audit, which auditd and ausearch read safely. Pure."""

from __future__ import annotations

import hashlib
import re

from ._line import Envelope

#: Longest text that we send, in bytes. The kernel cuts at 8560 (AUDIT_MESSAGE_TEXT_MAX) and
#: acknowledges all the same; auditd and ausearch have room for 8970 with the prefix.
BODY_MAX = 8000

_NAME = re.compile(r"ss_[a-z0-9_]{1,20}")
#: Printable, without blank and quotes: those end a value, or the msg='…' around all of them.
_PLAIN = re.compile(rb"[!#-&(-~]*")


def field(name: str, value: bytes) -> bytes:
    """Return one ``name=value``.

    Names start with ``ss_``, and the value is in double quotes or, if a byte in it could
    end it, in upper-case hex without quotes. With ``key=value`` unquoted, auditd 3.0.9
    dies; and ausearch -i decodes every unquoted value that looks like hex. Raises
    ValueError for another name.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"no name of ours for an audit field: {name!r}")
    if _PLAIN.fullmatch(value):
        return b'%s="%s"' % (name.encode("ascii"), value)
    return b"%s=%s" % (name.encode("ascii"), value.hex().upper().encode("ascii"))


def body(line: bytes, about: Envelope) -> bytes:
    """Return the text for a record.

    It has the whole line where that fits, in hex (about 3800 bytes of it); its size and
    SHA-256 in any case, by which it is found in the ledger.
    """
    fields = [
        field("ss_ev", about.event.encode("ascii")),
        field("ss_c", about.chain.encode("ascii")),
        field("ss_n", b"%d" % about.number),
    ]
    if about.sid is not None:
        fields.append(field("ss_sid", about.sid.encode("ascii")))
    fields.append(field("ss_bytes", b"%d" % len(line)))
    fields.append(field("ss_sha256", hashlib.sha256(line).hexdigest().encode("ascii")))
    short = b" ".join(fields)
    whole = short + b" " + field("ss_rec", line)
    return whole if len(whole) <= BODY_MAX else short
