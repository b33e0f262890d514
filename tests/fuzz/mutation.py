"""Valid JSON values with a few changes, as a broken or hostile peer might send."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from hypothesis import strategies as st

SPECIAL = np.array([np.nan, np.inf, 1.0, -0.0], np.float32).tobytes()
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.sampled_from([2**31, 2**32, 2**64, -(10**400), 10**400, 1e-400, 1e39, 1e300, 1e308]),
    st.floats(),
    st.text(max_size=9),
    st.sampled_from(["f", "1.5", "nan", "море", "\ud800", "=" * 5, "A" * 64]),
    st.binary(max_size=40).map(lambda raw: base64.b64encode(raw).decode()),
    st.just(base64.b64encode(SPECIAL).decode()),
)


def _deep(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"shape": value}
    return value


odd_values = st.one_of(
    scalars,
    st.recursive(
        scalars,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    st.sampled_from([_deep(99), _deep(120)]),
)


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """Replace, remove, duplicate or move up to three parts of `value`."""
    for _ in range(draw(st.integers(0, 3))):
        value = _changed(draw, value)
    return value


def _changed(draw: st.DrawFn, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 9)) == 0:
        return draw(odd_values)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    how = draw(st.sampled_from(["inside"] * 5 + ["remove", "double", "swap"]))
    if how == "inside":
        copy[key] = _changed(draw, value[key])
    elif how == "remove":
        del copy[key]
    elif how == "double" and isinstance(copy, list):
        copy.append(copy[key])
    else:
        copy[key] = copy[draw(st.sampled_from(keys))]
    return copy


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Remove, duplicate or replace up to three slices of `content`."""
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 20)))
        middle = draw(
            st.one_of(
                st.binary(max_size=8),
                st.just(content[start:end] * 2),
                st.sampled_from([b"\n", b"[" * 100_000, b'{"a":' * 120, b"9" * 5000, b"\xff\xfe"]),
            )
        )
        content = content[:start] + middle + content[end:]
    return content
