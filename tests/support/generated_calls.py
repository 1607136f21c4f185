"""Generated calls, good and bad: shapes, dtypes, names, masks, orders, huge and zero dims, odd
numbers, odd objects; and what is right for each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnx_attn.reference import attention

FLOATS = ("query", "value", "key")
OTHER_DTYPES = ("float64", "float16", "int32", "int64", "uint8", "bool", "complex64", "<U2", "O")
SPECIAL = (np.nan, np.inf, -np.inf, 1e-42, -0.0, 3e38, 1e9, -1e9)
SIZES = (0, 1, 2, 3, 5, 8)
# Above this a score snaps to multiples of 64 or more, and only Keras's own rounding is right.
LARGEST_SCORE = 1e5


class Junk:
    """No array."""


@dataclass
class Call:
    """The tensors of one call by name, and what was done to them."""

    feeds: dict[str, Any]
    done: list[str] = field(default_factory=list)


def good_call(rng: np.random.Generator, dtype: str = "float32") -> Call:
    """Tensors that fit each other; masks and key sometimes left out."""
    batch, rows, columns, dim, value_dim = (int(rng.choice(SIZES)) for _ in range(5))
    feeds: dict[str, Any] = {
        "query": rng.uniform(-2, 2, (batch, rows, dim)).astype(dtype),
        "value": rng.uniform(-2, 2, (batch, columns, value_dim)).astype(dtype),
        "key": rng.uniform(-2, 2, (batch, columns, dim)).astype(dtype),
    }
    if rng.random() < 0.3:
        del feeds["key"]
        feeds["value"] = rng.uniform(-2, 2, (batch, columns, dim)).astype(dtype)
    for name, length in (("query_mask", rows), ("value_mask", columns)):
        if rng.random() < 0.6:
            shape = (batch if rng.random() < 0.7 else 1, length if rng.random() < 0.8 else 1)
            feeds[name] = rng.random(shape) < 0.6
    return Call(feeds)


def damage(call: Call, rng: np.random.Generator) -> None:
    """One change to `call`, drawn at random: harmless, or one that no call may have."""
    kinds = (dtype_of, rank_of, size_of, drop, rename, add, swap, numbers_of, layout_of, junk_for)
    kind = kinds[int(rng.integers(len(kinds)))]
    names = list(call.feeds)
    if not names:
        return
    name = names[int(rng.integers(len(names)))]
    if isinstance(call.feeds[name], np.ndarray) or kind in (drop, rename, add, swap):
        kind(call.feeds, name, rng)
        call.done.append(f"{kind.__name__} {name}")


def dtype_of(feeds: dict[str, Any], name: str, rng: np.random.Generator) -> None:
    if feeds[name].dtype.kind in "cVOU":
        return
    with np.errstate(all="ignore"):
        feeds[name] = feeds[name].astype(str(rng.choice(OTHER_DTYPES)))


def rank_of(feeds: dict[str, Any], name: str, rng: np.random.Generator) -> None:
    array = feeds[name]
    if rng.random() < 0.5 and array.ndim and array.shape[0]:
        feeds[name] = array[0]
    else:
        feeds[name] = np.expand_dims(array, int(rng.integers(array.ndim + 1)))


def size_of(feeds: dict[str, Any], name: str, rng: np.random.Generator) -> None:
    array = feeds[name]
    if not array.ndim:
        return
    shape = list(array.shape)
    axis = int(rng.integers(len(shape)))
    size = int(rng.choice([0, 1, 2, 4, 7, 9]))
    if 0 in shape[:axis] + shape[axis + 1 :] and rng.random() < 0.3:
        size = int(rng.choice([2**40, 2**42]))  # costs nothing: another dim is 0
    shape[axis] = size
    # NumPy counts the dims beside a 0 too.
    if math.prod(shape) < 100_000 and math.prod(max(size, 1) for size in shape) < 2**55:
        feeds[name] = np.resize(array, shape) if array.size else np.zeros(shape, array.dtype)


def drop(feeds: dict[str, Any], name: str, rng: np.random.Generator) -> None:
    if rng.random() < 0.5:
        del feeds[name]
    else:
        feeds[name] = None


def rename(feeds: dict[str, Any], name: str, rng: np.random.Generator) -> None:
    others = ("Query", "queries", "mask", "scale", "training", "", "output", "value ")
    feeds[str(rng.choice(others))] = feeds.pop(name)


def add(feeds: dict[str, Any], name: str, rng: np.random.Generator) -> None:
    feeds[str(rng.choice(["extra", "scale", "attention_scores"]))] = feeds[name]


def swap(feeds: dict[str, Any], name: str, rng: np.random.Generator) -> None:
    other = str(rng.choice(list(feeds)))
    feeds[name], feeds[other] = feeds[other], feeds[name]


def numbers_of(feeds: dict[str, Any], name: str, rng: np.random.Generator) -> None:
    array = feeds[name]
    if array.dtype.kind == "f" and array.size:
        array = array.copy()
        with np.errstate(over="ignore"):
            array.flat[int(rng.integers(array.size))] = rng.choice(SPECIAL)
        feeds[name] = array


def layout_of(feeds: dict[str, Any], name: str, rng: np.random.Generator) -> None:
    array = feeds[name]
    kind = int(rng.integers(5))
    if kind == 0:
        feeds[name] = np.asfortranarray(array)
    elif kind == 1:
        feeds[name] = np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array
    elif kind == 2:
        feeds[name] = np.ascontiguousarray(array[::-1])[::-1] if array.ndim else array
    elif kind == 3 and array.dtype.kind == "f":
        feeds[name] = array.astype(array.dtype.newbyteorder(">"))
    else:
        feeds[name] = array.copy()
        feeds[name].flags.writeable = False


def junk_for(feeds: dict[str, Any], name: str, rng: np.random.Generator) -> None:
    array = feeds[name]
    choices: list[Any] = [
        "text",
        3,
        2.5,
        True,
        {},
        object(),
        Junk,
        b"bytes",
        [[1.0], [2.0, 3.0]],
        np.ma.masked_array(array, np.zeros(array.shape, np.bool_)),
        np.zeros((), array.dtype),
        np.zeros(3, "f4,i4"),
    ]
    feeds[name] = choices[int(rng.integers(len(choices)))]


def legal(feeds: dict[str, Any], dtype: str = "float32") -> bool:
    """Whether a session must take `feeds`: what DESIGN says of the file, written anew."""
    given = {name: value for name, value in feeds.items() if value is not None}
    known = {*FLOATS, "query_mask", "value_mask"}
    if not set(feeds) <= known or not {"query", "value"} <= set(given):
        return False
    for name, value in given.items():
        wanted = np.dtype(dtype if name in FLOATS else "bool")
        if type(value) is not np.ndarray or value.dtype.newbyteorder("=") != wanted:
            return False
        if value.ndim != (3 if name in FLOATS else 2):
            return False
    query, value = given["query"].shape, given["value"].shape
    key = given["key"].shape if "key" in given else value
    if not (query[0] == value[0] == key[0] and value[1] == key[1] and query[2] == key[2] > 0):
        return False
    for name, owner in (("query_mask", query), ("value_mask", value)):
        if name in given:
            shape = given[name].shape
            if shape[0] not in (1, owner[0]) or shape[1] not in (1, owner[1]):
                return False
    return True


def check(
    results: tuple[Any, Any], feeds: dict[str, Any], dtype: str = "float32", causal: bool = False
) -> bool:
    """Assert shapes, dtypes and numbers of a call that was taken; whether numbers were compared.

    Beyond Keras's promise (infinities, NaN, scores that round) only shapes and dtypes are.
    """
    given = {name: value for name, value in feeds.items() if value is not None}
    query, value = given["query"], given["value"]
    key = given.get("key", value)
    output, scores = results
    assert output.shape == (*query.shape[:2], value.shape[2])
    assert scores.shape == (*query.shape[:2], value.shape[1])
    assert output.dtype == scores.dtype == np.dtype(dtype)
    if max(*query.shape, *value.shape) >= 2**40:
        return False  # the reference would need the memory of a causal mask
    if not all(np.isfinite(array).all() for array in (query, value, key)):
        return False
    exact = np.float64
    with np.errstate(all="ignore"):
        largest = np.abs(query.astype(exact) @ key.astype(exact).swapaxes(1, 2)).max(initial=0)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == "float32" else {"rtol": 1e-2, "atol": 1e-2}
    if largest > LARGEST_SCORE or np.abs(value.astype(exact)).max(initial=0) > 1e30:
        return False
    # A fully masked row rounds score - 1e9 to multiples of 64: near a half, either side is right.
    wanted, wanted_scores = attention(
        query,
        value,
        key,
        query_mask=given.get("query_mask"),
        value_mask=given.get("value_mask"),
        causal=causal,
    )
    rows = see_a_key(query, value, given.get("value_mask"), causal)
    if largest < 30:
        rows[...] = True
    np.testing.assert_allclose(output[rows].astype(exact), wanted[rows], **tolerance)
    np.testing.assert_allclose(scores[rows].astype(exact), wanted_scores[rows], **tolerance)
    return True


def see_a_key(query: Any, value: Any, mask: Any, causal: bool) -> np.ndarray:
    """Rows that are not fully masked: bool[batch, Tq]."""
    seen = np.ones((*query.shape[:2], value.shape[1]), np.bool_)
    if mask is not None:
        seen &= mask[:, None, :]
    if causal:
        seen &= np.tri(*seen.shape[1:], dtype=np.bool_)
    return seen.any(axis=2)
