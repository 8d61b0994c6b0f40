"""Exporters: records of a ledger as OCSF events, ECS documents or OpenTelemetry log records.

A converter is pure and loses nothing: the line goes along as it is, and every member that
has no place in the target goes along by its name. docs/audit-exporters.md has the mapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from . import ecs, ocsf, otel
from ._joined import Joined

__all__ = ["FORMATS", "Converter", "Joined"]


class Converter(Protocol):
    """One record and its line to one object of the target. Raises ValueError if the line is not ASCII."""

    def __call__(
        self,
        record: Mapping[str, Any],
        line: bytes,
        *,
        intent: Mapping[str, Any] | None = None,
        host: str | None = None,
    ) -> dict[str, Any]:
        """Convert. ``intent``: what :meth:`Joined.intent_of` gave; ``host``: who wrote the ledger."""
        ...


FORMATS: dict[str, Converter] = {"ocsf": ocsf.convert, "ecs": ecs.convert, "otel": otel.convert}
