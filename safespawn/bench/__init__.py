"""Measurements of our ways to start a program beside those of others: ``safespawn bench``.

docs/measurements.md tells how they are made and what they do not say. Nothing here is needed to start
programs. The submodules need ``matplotlib`` for plots and ``tqdm`` for a progress bar (the extra
``safespawn[bench]``), and measure without them too.
"""

from __future__ import annotations

#: What is varied, by the name that the command line has for it.
AXES = {
    "size": "resident size of the parent, MiB",
    "threads": "threads of the parent",
    "user": "the child as another user, by size",
    "pages": "huge pages, and pages collapsed by prepare_fork(), by size",
    "spawners": "threads that spawn at once",
    "batch": "children that are started side by side",
    "question": "the figures that this package was asked to beat",
    "targets": "what else the targets of the design need: an exec that hangs, the lock, the ledger, flatness",
}
