"""Checks a ledger: whether records were changed, taken out or cut off since they were written.

The form is that of docs/audit-format.md; docs/audit-verify.md tells what each finding means and what to do.
Everything is only read, and may be written meanwhile: a live ledger gives no false finding, nor does one
whose processes were killed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from .. import _probe
from .._errors import AuditError
from . import (
    _verify_births,
    _verify_registry,
    _verify_repeats,
    _verify_retired,
    _verify_segments,
    _verify_state,
    _verify_summary,
    _verify_tails,
    _verify_witnessed,
)
from ._verify_done import Done
from ._verify_findings import EXPLAINED, STATE, TAMPERED, Collector, Finding, Verification, plain
from ._verify_keys import Epochs
from ._verify_registry import Registry
from ._verify_scan import Scanner
from ._verify_state import State
from ._verify_walk import Means, Walk
from ._verify_witness import Witness

__all__ = ["EXPLAINED", "TAMPERED", "Finding", "Verification", "key_from", "key_of_file", "plain", "verify"]

StrPath = str | os.PathLike[str]
KEY_BYTES = 32
#: A key is 64 digits; nothing of that kind is longer.
KEY_FILE_BYTES = 4096


def key_from(text: bytes) -> bytes:
    """Return the verification key that a file holds: 64 hex digits with any blanks, or 32 raw bytes.

    Raises ValueError for anything else; its message does not show the key.
    """
    if len(text) == KEY_BYTES:
        return text
    try:
        key = bytes.fromhex("".join(text.decode("ascii").split()))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        what = f"these {len(text)} bytes are none" if text.strip() else "it is empty"
        raise ValueError(f"{what}: a verification key has {2 * KEY_BYTES} hex digits")
    return key


def key_of_file(path: StrPath) -> bytes:
    """Return the verification key in a regular file; a FIFO that nobody writes to must not hold us up.

    Raises OSError for a file that cannot be read or is of another kind, ValueError as :func:`key_from`.
    """
    return key_from(_verify_segments.read_whole(os.fspath(path), KEY_FILE_BYTES))


def verify(
    path: StrPath,
    *,
    key: bytes | None = None,
    without_key: bool = False,
    state: StrPath | bool = True,
    registry: StrPath | None = None,
    witness: Sequence[StrPath] = (),
    dedupe: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Check the ledger at ``path`` with all its segments.

    ``key`` is the verification key, 32 bytes. Without it a ledger whose chains have keys is checked only
    ``without_key``: by the hash chain, which holds against nobody who can write the files. ``state`` is the
    state file, True for ``PATH.state``, False where there is none, as for a copy. ``registry`` is the key
    directory. ``witness`` are files of lines that were collected elsewhere, any part of the ledger's.
    ``dedupe`` takes equal lines that come again, as a collector's file may have them. ``progress`` is
    called with the bytes that were read and all there are.

    Raises AuditError when nothing can be said (no ledger, no record in it, no key, no key directory, too
    many chains), OSError when a file cannot be read.
    """
    if key is not None and len(key) != KEY_BYTES:
        raise ValueError(f"the verification key must be {KEY_BYTES} bytes, not {len(key)}")
    path = os.fspath(path)
    if os.path.islink(path):  # segments and state lie beside the file itself
        path = os.path.realpath(path)
    state_path = None if state is False else f"{path}.state" if state is True else os.fspath(state)
    epochs = None if key is None else Epochs(key)
    findings, notices = Collector("in this chain"), Collector("like it")
    # In this order, because they are written in this order: what was read first cannot be ahead.
    known = (
        None if registry is None else _verify_registry.read(os.fspath(registry), epochs, findings, notices)
    )
    slots = _state(state_path, findings)
    seen = Witness(tuple(os.fspath(one) for one in witness)) if witness else None
    means = Means(epochs, without_key, known, slots, seen)
    with Scanner() as scanner, _verify_segments.opened(path) as segments:
        if not segments and not (slots and slots.slots):
            raise AuditError(errno.ENOENT, "cannot verify: no ledger is there", path)
        for slot in slots.slots.values() if slots else ():
            scanner.expect(slot.chain, slot.records, slot.seal)
        walk = Walk(segments, scanner, means, findings, notices)
        walk.go(progress)
        done = Done(walk, path, state_path)
        _compare(done, dedupe=dedupe)
        made = _verify_summary.of(done)
    if made.ok and not made.counts["records"] and not _is_begun(made, key):
        raise AuditError(errno.ENODATA, "cannot verify: no record is here", path)
    return made


def _is_begun(made: Verification, key: bytes | None) -> bool:
    """Whether it is proven why there is no record: a process has just registered its chain."""
    return key is not None and any(notice.reason == "chain-empty" for notice in made.notices)


def _state(path: str | None, findings: Collector) -> State | None:
    if path is None:
        return None
    try:
        state = _verify_state.read(path)
    except FileNotFoundError:
        return None
    for byte, text in state.faults:
        told = Finding(path, 0, byte, None, None, "state-garbage", text)
        findings.add("state-garbage", (STATE, 0, byte), told)
    return state


def _compare(done: Done, *, dedupe: bool) -> None:
    """Hold what was read against itself and everything else."""
    known, witness, boot = done.means.registry, done.means.witness, _probe.boot_id()
    _verify_retired.judge(done)
    _verify_repeats.tell(done, dedupe=dedupe)
    _verify_births.segments(done)
    _verify_tails.hold(done, boot)
    _verify_births.unkeyed(done)
    _verify_births.forks(done)
    if known is not None:
        _verify_births.registry(done, known)
        _verify_births.unregistered(done, _still_strangers(done, known))
    now = None if done.state_path is None else _state(done.state_path, Collector(""))
    _verify_tails.hold_again(done, now, boot)
    _verify_retired.hold(done, now)
    _verify_tails.intents(done)
    if witness is not None:
        _verify_witnessed.tell(done, witness)


def _still_strangers(done: Done, known: Registry) -> list[bytes]:
    """Chains may have been opened since the registry was read: look once more for those it did not have."""
    strangers = _verify_births.strangers(done, known)
    if not strangers:
        return []
    again = _verify_registry.read(
        os.path.dirname(known.path), done.means.epochs, Collector(""), Collector("")
    )
    return [chain for chain in strangers if chain not in again.chains]
