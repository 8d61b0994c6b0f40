"""Writes the committed files of a corpus."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path


def write(where: Path, files: Mapping[str, bytes]) -> None:
    """Write all files of ours; others in the directory (findings) stay."""
    where.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (where / name).write_bytes(data)
    sys.stdout.write(f"{len(list(where.iterdir()))} files in {where}\n")
