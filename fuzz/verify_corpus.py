"""Makes the corpus of fuzz_verify.c anew: ``python fuzz/verify_corpus.py``, from the root of the repository.

A name says what is wrong, ``good`` that nothing is. ``SAID`` holds what the core must say of each, a letter
for a piece: F fits, B blank, T torn, G garbage, S stranger, A gap, R replay, M bad MAC, H bad hash. Strangers
and gaps that the target lets pass are judged again.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "fuzz" / "corpus" / "verify"
sys.path.insert(0, str(ROOT / "tests"))

import reference_ledger as form  # noqa: E402 - after its place is known

#: The key of every chain there, and chains that get it: the last byte of the id decides.
KEY = b"the key of every chain in here.\0"
ONE, OTHER, PLAIN, CHILD = (f"00000000-0000-7000-8000-0000000000{last}" for last in ("a0", "a4", "a2", "a8"))
SID = "0193c5a0-0000-7000-8000-000000000001"


def chain(name: str = ONE) -> form.Chain:
    """Return a chain at its beginning."""
    return form.Chain(name, None if name == PLAIN else KEY, None, boot="")


def written(made: form.Chain, event: str, fields: dict[str, object], sid: str | None = None) -> bytes:
    """Return the next record, and go on."""
    line = made.line(event, fields, sid)
    made.took(line)
    return line


def records(made: form.Chain, count: int) -> list[bytes]:
    """Return so many records, checkpoints among them."""
    lines = [written(made, "chain.open", {"who": {"pid": 1}, "keys": None})]
    while len(lines) < count:
        if len(lines) % 2:
            lines.append(
                written(made, "spawn.intent", {"what": {"argv": ["/bin/true", "\u2026"], "argc": 2}}, SID)
            )
        else:
            lines.append(written(made, "checkpoint", {"why": "count", "lost": 0, **made.aggregate()}))
    return lines


def made() -> dict[str, bytes]:
    """Return all files by name."""
    one, other = chain(), chain(OTHER)
    lines, others = records(one, 6), records(other, 4)
    next_line = one.line(
        "spawn.exit", {"exit": {"code": 0, "list": [-1, [], {}, None, True, False, "\\u0000"]}}
    )
    whole = b"".join(lines)
    parent = chain()
    child = parent.child(CHILD)
    fork = written(parent, "chain.fork", {"child": CHILD})
    born = written(child, "chain.open", {"keys": {"parent": ONE, "n": 0}})
    later = chain()
    late = records(later, 5)[3:]
    return {
        "good-one": whole,
        "good-two-mixed": b"".join(line for pair in zip(lines, others, strict=False) for line in pair),
        "good-plain": b"".join(records(chain(PLAIN), 4)),
        "good-fork": fork + born + written(child, "cred.change", {"change": {}}),
        "good-last-newline-missing": whole[:-1],
        "good-begins-late": b"".join(late),
        "evil-torn": whole + next_line[:250],
        "evil-torn-in-json": whole + next_line[:-90] + b"\n",
        "evil-struck": whole + next_line[:-1] + b"?\n",
        "evil-torn-then-another": whole + next_line[:250] + others[0],
        "evil-torn-so-little": whole + b'{"v":1,' + others[0],
        "evil-torn-twice": whole + next_line[:80] + b'{"v"' + others[0],
        "evil-gap": b"".join(lines[:2] + lines[3:]),
        "evil-swapped": b"".join([*lines[:2], lines[3], lines[2], *lines[4:]]),
        "evil-twice": b"".join([*lines[:4], lines[2], *lines[4:]]),
        "evil-changed": whole.replace(b"/bin/true", b"/bin/evil"),
        "evil-changed-plain": b"".join(records(chain(PLAIN), 4)).replace(b"/bin/true", b"/bin/evil"),
        "evil-blank": whole.replace(b"}\n", b"} \n"),
        "evil-empty-lines": whole.replace(b"\n", b"\n\n"),
        "evil-no-newlines": whole.replace(b"\n", b""),
        "evil-long": b"x" * 9000 + b"\n" + whole,
        "evil-long-then-start": b"y" * 7995 + whole,
        "evil-n-huge": whole.replace(b'"n":3', b'"n":18446744073709551614'),
        "evil-n-too-huge": whole.replace(b'"n":3', b'"n":18446744073709551616'),
        "evil-nested": lines[0][:-80] + b',"a":' + b"[" * 90 + b"\n",
        "evil-escape": lines[0][:-80] + b',"a":"\\u12',
        "full-many-chains": b"".join(
            records(chain(f"00000000-0000-7000-8000-00000000{n:02x}a0"), 1)[0] for n in range(12)
        ),
        "evil-short": b"x\n" + whole,
        "evil-plain-blank": b"".join(records(chain(PLAIN), 4)).replace(b'"argc":2', b'"argc": 2'),
        "evil-plain-escape": b"".join(records(chain(PLAIN), 4)).replace(b"u2026", b"x2026"),
        "script-short": b"M\x03\x00\x05\x00\x01\x01\x02\x00\x02\x03\x01\x07\x00\x00",
        "script-changed": b"M\x00" + b"\x00\x00\x01\x02" + b"\x01\x00\x20\x04" + b"\x05\x09",
        "script-long": b"M\x17" + bytes((7 * i) % 251 for i in range(200)) + b"\x00\x11\x00\x22",
    }


SAID = {
    "evil-blank": "GGGGGG",
    "evil-changed": "SFMFMFM",
    "evil-changed-plain": "SFFHF",
    "evil-empty-lines": "SFBFBFBFBFBFB",
    "evil-escape": "G",
    "evil-gap": "SFFAFFF",
    "evil-long": "GGSFFFFFF",
    "evil-long-then-start": "GSFFFFFF",
    "evil-n-huge": "SFFFARR",
    "evil-n-too-huge": "SFFFGAFF",
    "evil-nested": "G",
    "evil-no-newlines": "SFFFFFF",
    "evil-plain-blank": "SFGAFG",
    "evil-plain-escape": "SFGAFG",
    "evil-short": "GSFFFFFF",
    "evil-struck": "SFFFFFFT",
    "evil-swapped": "SFFAFRFF",
    "evil-torn": "SFFFFFFT",
    "evil-torn-in-json": "SFFFFFFT",
    "evil-torn-so-little": "SFFFFFFTSF",
    "evil-torn-then-another": "SFFFFFFTSF",
    "evil-torn-twice": "SFFFFFFTTSF",
    "evil-twice": "SFFFFRFF",
    "full-many-chains": "SFSFSFSFSFSFSFS",
    "good-begins-late": "SFF",
    "good-fork": "SFFF",
    "good-last-newline-missing": "SFFFFFF",
    "good-one": "SFFFFFF",
    "good-plain": "SFFFF",
    "good-two-mixed": "SFSFFFFFFF",
    "script-changed": "SM",
    "script-long": "SFSFFFSFFFFFFFFFFFFFFFFFFFF",
    "script-short": "SFSFFF",
}


if __name__ == "__main__":
    CORPUS.mkdir(parents=True, exist_ok=True)
    for name, data in made().items():
        (CORPUS / name).write_bytes(data)
