"""What NumPy makes of a caller's value, and how it is named in an error."""

from __future__ import annotations

import reprlib
import sys
from typing import Any, TypeAlias, cast

import numpy as np

from .errors import InputError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def to_array(name: str, expected: str, value: object) -> Array:
    """`value` as the ndarray NumPy makes of it; `expected` opens the message where it makes none.

    Raises InputError for masked arrays and for what NumPy cannot read.
    """
    if _is_masked_array(value):
        raise InputError(f"{expected}; received a masked array. {_masked_array_fix(name)}")
    try:
        return np.asarray(value)
    except Exception as error:  # __array__ of any class may raise anything
        raise InputError(
            f"{expected}; received {shown(value)}, which is no array. {_no_array_fix(name, value)}"
        ) from error


def shown(value: object) -> str:
    """A short text for any object, whatever its repr does."""
    plain = (str, bytes, int, float, complex, list, tuple, type(None))
    if isinstance(value, plain):
        return reprlib.repr(cast("object", value))
    return f"an object of type {type(value).__name__}"


def not_numbers_fix(name: str, dtype: str, value: object) -> str:
    """What to do with a value of which NumPy makes an array of objects or texts."""
    if _home(value) == "pandas":
        # Nullable dtypes ("boolean", "Float32") reach NumPy as objects, pandas.NA among them.
        missing = "False" if dtype == "bool" else "0"
        return f"Give {name}.to_numpy({dtype!r}, na_value={missing}): NumPy sees objects in it"
    return "Give an array of numbers"


def _no_array_fix(name: str, value: object) -> str:
    if _home(value) == "torch":
        # A tensor with gradients, on another device, or of a type that NumPy does not have.
        return f"Give {name}.detach().cpu().numpy()"
    if isinstance(value, list | tuple):
        return "Its rows differ in length: pad them, and say by a mask what is padding"
    return f"Give what np.asarray({name}) can read"


def _home(value: object) -> str:
    return type(value).__module__.partition(".")[0]


def _is_masked_array(value: object) -> bool:
    # numpy.ma costs some ms to import: without it there is no masked array.
    masked = sys.modules.get("numpy.ma")
    return masked is not None and isinstance(value, masked.MaskedArray)


def _masked_array_fix(name: str) -> str:
    if name in ("query", "value", "key"):
        mask = "query_mask" if name == "query" else "value_mask"
        return (
            f"Give {name}.filled(0), and say what is masked by {mask}, True where a position counts"
        )
    return f"Give {name}.filled()"
