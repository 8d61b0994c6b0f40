"""A strategy for records that are not what they should be, and for objects that are none."""

from __future__ import annotations

import copy
import json
from typing import Any

from golden import make
from hypothesis import strategies as st

RECORDS = [json.loads(line) for line in make.lines()]
NAMES = sorted(
    {
        name
        for record in RECORDS
        for group in (record, *(part for part in record.values() if isinstance(part, dict)))
        for name in group
    }
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(2**62, 2**66), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
keys = st.one_of(st.sampled_from([*NAMES, "hex", "cut_bytes"]), st.text())
values = st.recursive(
    st.one_of(scalars, st.sampled_from(["deny", "00ff", "zz", "1fffeffffff", "4755"])),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)
events = st.sampled_from(sorted({record["ev"] for record in RECORDS}))


@st.composite
def records(draw: st.DrawFn) -> dict[str, Any]:
    """Return any object, or a real record in which some members are anything."""
    if draw(st.booleans()):
        return draw(st.dictionaries(keys, values, max_size=8)) | draw(st.fixed_dictionaries({}, optional={"ev": events}))
    record = copy.deepcopy(draw(st.sampled_from(RECORDS)))
    for _ in range(draw(st.integers(1, 4))):
        group = record
        while (inner := [name for name, part in group.items() if isinstance(part, dict)]) and draw(st.booleans()):
            group = group[draw(st.sampled_from(inner))]
        if not group:
            break
        name = draw(st.sampled_from(sorted(group)))
        if draw(st.booleans()):
            group[name] = draw(values)
        else:
            del group[name]
    return record
