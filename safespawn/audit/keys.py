"""The keys of a host: the epoch key, the registry of chains, the redaction key.

docs/audit-format.md has the form of these files and how one key comes from another. The epoch key
itself is never seen by Python: C reads, uses and overwrites it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

from .. import _binding, _probe
from .._descriptors import LOW_FD
from .._errors import AuditError
from . import _files, _ids, _record
from ._core import File, check
from ._lines import LINE_MAX
from ._redact import RedactionKey

_LIB: Any = _binding.lib
_ffi = _binding.ffi

#: Where a host has its keys unless it is told otherwise.
DIRECTORY = "/var/lib/safespawn/audit"
#: The variable that tells otherwise; empty: there are to be none.
VARIABLE = "SAFESPAWN_AUDIT_KEYS"

#: Seconds that opening a ledger waits for another process that is opening one.
PATIENCE = 10.0

_EPOCH, _REGISTRY, _REDACTION = "epoch", "registry.jsonl", "redaction"
_NO_HASH = "0" * 64


def _named() -> str | None:
    """Return what the environment says, unless others chose that for us."""
    return None if _binding.is_secure() else os.environ.get(VARIABLE)


def default_directory() -> str:
    """Return where the keys are, by the environment if that says so; empty where there are to be none."""
    named = _named()
    return DIRECTORY if named is None else named


def initialise(
    directory: str | os.PathLike[str] | None = None, *, show: Callable[[str], None] | None = None
) -> str:
    """Make the keys of this host and return the verification key, which is kept nowhere.

    It is 64 hex digits; ``show`` gets it before anything is made, so that no host has keys whose
    verification key nobody has seen. ``directory`` is made with mode 700. Raises AuditError, EEXIST
    when there are keys already: making them anew would cut all chains off from what they can be checked with.
    """
    where = os.fspath(directory or default_directory())
    if not where:
        raise AuditError(
            errno.EINVAL, f"{VARIABLE} is empty, so there are to be no keys: name a directory", ""
        )
    _make_directory(where)
    if any(os.path.lexists(os.path.join(where, name)) for name in (_EPOCH, _REGISTRY, _REDACTION)):
        raise AuditError(errno.EEXIST, "there are keys in this directory, or parts of some", where)
    secret, registry = os.urandom(32), os.urandom(16)
    if show is not None:
        show(secret.hex())
    with _wiped() as epoch:
        _LIB.ss_epoch_begin(secret, registry, epoch)
        try:
            _create(where, _REDACTION, os.urandom(32))
            _create(where, _REGISTRY, _registered(epoch, _ids.text(registry), _NO_HASH, "registry.init", {}))
            with File().open(os.path.join(where, _EPOCH), os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
                check(_LIB.ss_epoch_write(file.raw, epoch))
            _files.flush_directory(where)
        except OSError as problem:
            raise AuditError(problem.errno, f"cannot make the keys: {problem.strerror}", where) from problem
    return secret.hex()


def find(directory: str | os.PathLike[str] | None) -> Keys | None:
    """Return the keys in a directory; None for the default one when there are none that we may use.

    A name that is empty, here or in the environment, asks for none. Raises AuditError for a directory that
    was named, here or there, and has none, and for damaged keys.
    """
    where = os.fspath(default_directory() if directory is None else directory)
    if not where:
        return None
    try:
        return Keys(where)
    except AuditError as problem:
        is_named = directory is not None or _named() is not None
        is_none = problem.errno in (errno.ENOENT, errno.ENOTDIR) and not _is_part(where)
        if is_named or not (is_none or problem.errno == errno.EACCES):
            raise
        return None


def _is_part(where: str) -> bool:
    """Whether some of the files are there, or nobody can say: then the others are missing."""
    return any(_may_be_there(os.path.join(where, name)) for name in (_EPOCH, _REGISTRY))


def _may_be_there(path: str) -> bool:
    try:
        os.lstat(path)
    except OSError as problem:
        return problem.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES)
    return True


class Keys:
    """The key directory of a host, opened once; usable as long as its files may be written."""

    def __init__(self, where: str) -> None:
        """Open it. Raises AuditError."""
        self.where = where
        _files.judge_directory(os.path.join(where, _EPOCH))
        self._epoch = _opened(where, _EPOCH)
        try:
            self._registry = _opened(where, _REGISTRY)
        except BaseException:
            self._epoch.close()
            raise

    def close(self) -> None:
        """Close its files; doing it twice is no error."""
        self._epoch.close()
        self._registry.close()

    @contextlib.contextmanager
    def opening(self, chain: str, ledger: str, origin: Any) -> Iterator[None]:
        """Give a chain its key. The body opens it and claims its slot; then it is registered.

        In that order: a slot of a chain that the registry does not know means nothing, a chain in
        the registry without a slot means that somebody has taken it away.
        """
        with self._locked(), _wiped() as epoch:
            self._check(_LIB.ss_epoch_read(self._epoch.raw, epoch))
            previous = self._catch_up(epoch)
            with _wiping(lambda: _ffi.memmove(origin.key, bytes(32), 32)):  # a chain that began has done that
                _LIB.ss_epoch_chain(epoch, origin)
                yield
            name = _ids.text(bytes(epoch.registry))
            told = {"chain": chain, "ledger": _record.path(os.fsencode(ledger)), "pid": os.getpid()}
            line = _registered(epoch, name, previous, "registry.chain", told)
            try:
                self._registry.append(line)
                self._registry.sync()
            except OSError as problem:
                raise self._error(problem.errno or errno.EIO) from problem
            self._check(_LIB.ss_epoch_write(self._epoch.raw, epoch))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                self._epoch.lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise self._error(errno.ETIMEDOUT) from None
                time.sleep(0.005)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # closed, in a child that was forked meanwhile
                self._epoch.lock(fcntl.LOCK_UN)

    def _catch_up(self, epoch: Any) -> str:
        """Return the hash of the registry's last line; step over an epoch that was used already.

        Whoever is killed after the registry was written, and before the epoch was, leaves that.
        """
        size = os.fstat(self._registry.fd).st_size
        start = max(0, size - 2 * LINE_MAX)
        tail = os.pread(self._registry.fd, size - start, start)
        if tail and not tail.endswith(b"\n"):  # killed within the write: that one does not count
            self._registry.append(b"?\n" if tail.endswith(b"}") else b"\n")
        whole = [line for line in tail.split(b"\n")[:-1] if _number(line) is not None]
        if not whole:
            raise self._error(errno.EBADMSG)
        last = whole[-1]
        number = _number(last)
        if number == epoch.index:
            self._step_over(epoch, last)
        elif number != epoch.index - 1:
            raise self._error(errno.EBADMSG)
        return hashlib.sha256(last).hexdigest()

    def _step_over(self, epoch: Any, line: bytes) -> None:
        body, _, rest = line.rpartition(b',"m":"')
        mac = _ffi.new("uint8_t[32]")
        _LIB.ss_epoch_mac(epoch, body, len(body), mac)
        if bytes(mac).hex().encode("ascii") + b'"}' != rest:
            raise self._error(errno.EBADMSG)
        _LIB.ss_epoch_step(epoch, mac)
        self._check(_LIB.ss_epoch_write(self._epoch.raw, epoch))

    def redaction(self) -> RedactionKey:
        """Return the host's key for MACs of what is not written. Raises AuditError."""
        with _opened(self.where, _REDACTION) as file:
            key = os.read(file.fd, 33)
        if len(key) != 32:
            raise self._error(errno.EBADMSG)
        return RedactionKey("hk1", key)

    def _check(self, answer: int) -> None:
        if answer < 0:
            raise self._error(-answer)

    def _error(self, number: int) -> AuditError:
        texts = {
            errno.EBADMSG: "the keys are damaged: restore the directory, or make new ones elsewhere",
            errno.ETIMEDOUT: f"another process has held the keys for {PATIENCE:g} s",
        }
        return AuditError(number, texts.get(number, os.strerror(number)), self.where)


def _number(line: bytes) -> int | None:
    """Return the number of a record; None for what is none, such as the first part of one."""
    head, _, rest = line.partition(b',"n":')
    digits = rest.partition(b",")[0]
    whole = head.startswith(_record.START) and line[-72:-66] == b',"m":"' and line.endswith(b'"}')
    return int(digits) if whole and digits.isdigit() else None


def _registered(epoch: Any, registry: str, previous: str, event: str, told: dict[str, Any]) -> bytes:
    """Return the registry's next line, and step the epoch on."""
    envelope = _record.envelope(registry, epoch.index, previous, event, None, "durable", _probe.boot_id())
    more = _record.members(told)
    body = envelope + (b"," + more if more else b"")
    mac = _ffi.new("uint8_t[32]")
    _LIB.ss_epoch_mac(epoch, body, len(body), mac)
    _LIB.ss_epoch_step(epoch, mac)
    return body + b',"m":"' + bytes(mac).hex().encode("ascii") + b'"}\n'


#: What a child must not have that is forked meanwhile, by another thread or by a signal handler: it may drop
#: its privileges, and whoever takes it over could read there how every chain to come begins.
#: Its files close themselves there (_core.File).
_wipes: list[Callable[[], object]] = []


def _forget() -> None:
    for wipe in _wipes:
        wipe()


os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def _wiping(wipe: Callable[[], object]) -> Iterator[None]:
    """Wipe something at the end, and in each child that is forked until then."""
    _wipes.append(wipe)
    try:
        yield
    finally:
        wipe()
        _wipes.remove(wipe)


@contextlib.contextmanager
def _wiped() -> Iterator[Any]:
    epoch = _ffi.new("struct ss_epoch *")
    with _wiping(lambda: _LIB.ss_epoch_wipe(epoch)):
        yield epoch


def _opened(where: str, name: str) -> File:
    path = os.path.join(where, name)
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_APPEND if name == _REGISTRY else 0)
    file = File()
    try:
        seen = os.fstat(file.open(path, flags).fd)
    except OSError as problem:
        file.close()
        raise AuditError(problem.errno, f"cannot open the keys: {problem.strerror}", path) from problem
    if not stat.S_ISREG(seen.st_mode) or seen.st_uid not in (0, os.geteuid()) or seen.st_mode & 0o077:
        file.close()
        raise AuditError(
            errno.EPERM,
            f"others can use these keys (uid {seen.st_uid}, mode {seen.st_mode & 0o7777:o})",
            path,
        )
    file.lift(LOW_FD)
    return file


def _make_directory(where: str) -> None:
    try:
        os.makedirs(os.path.dirname(os.path.abspath(where)), mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(where, 0o700)
        _files.judge_directory(os.path.join(where, _EPOCH))
    except AuditError:
        raise
    except OSError as problem:
        raise AuditError(problem.errno, f"cannot make the keys: {problem.strerror}", where) from problem


def _create(where: str, name: str, data: bytes) -> None:
    with File().open(os.path.join(where, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
        file.append(data)
        file.sync()
