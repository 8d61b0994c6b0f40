"""Faults that are seeded into a run, for the test that the judge finds them. Each is done now and then."""

from __future__ import annotations

import os
import tempfile

import safespawn

from book import Book

_kept: list[bytearray] = []


def descriptor(book: Book) -> None:
    """Leave a descriptor open."""
    os.open("/dev/null", os.O_RDONLY)


def memfd(book: Book) -> None:
    """Leave a memfd open."""
    os.memfd_create("left")


def zombie(book: Book) -> None:
    """Leave a child that has ended."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)


def temporary(book: Book) -> None:
    """Leave a file."""
    os.close(tempfile.mkstemp()[0])


def memory(book: Book) -> None:
    """Keep 256 KiB."""
    _kept.append(bytearray(b"x" * (256 << 10)))


def absent(book: Book) -> None:
    """Tell of a spawn that is in no ledger."""
    book.end(book.begin("seeded"), "code:0")


def stranger(book: Book) -> None:
    """Start a program that nobody tells of."""
    safespawn.run(["/bin/true", "stranger"])


def otherwise(book: Book) -> None:
    """Tell of another end than there was."""
    token = book.begin("seeded")
    safespawn.run(["/bin/true", token])
    book.end(token, "code:1")


FAULTS = {
    each.__name__: each
    for each in (descriptor, memfd, zombie, temporary, memory, absent, stranger, otherwise)
}
