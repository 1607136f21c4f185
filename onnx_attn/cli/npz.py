"""Arrays from and to .npy and .npz files, with errors that name the file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..arrays import Array
from ..errors import InputError
from ..file.disk import read_file, write_file


def read_npy(path: Path) -> Array:
    """The array of a .npy file; raises InputError if it is none."""
    array = _load(path)
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} holds several arrays (.npz); expected one .npy array")
    return cast("Array", array)


def read_npz(path: Path) -> dict[str, Array]:
    """The arrays of a .npz file by name; raises InputError if it is none."""
    arrays = _load(path)
    if isinstance(arrays, np.ndarray):
        raise InputError(
            f"{path} holds one array (.npy); expected an .npz with query, value, ... by name"
        )
    try:
        with arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zipfile, zlib and NumPy each have their own for damaged bytes
        _refuse_objects(path, error)
        raise InputError(f"{path} is damaged: {error}") from error


def _load(path: Path) -> Any:
    data = read_file(path)
    try:
        # From memory: where an archive is damaged, np.load leaves a file it opened open.
        return np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # as above
        _refuse_objects(path, error)
        raise InputError(
            f"{path} is not a .npy or .npz file of plain arrays, or is cut short"
        ) from error


def _refuse_objects(path: Path, error: Exception) -> None:
    # NumPy would have to unpickle them, which runs code from the file.
    if isinstance(error, ValueError) and str(error).startswith("Object arrays"):
        raise InputError(
            f"{path} holds an array of Python objects, which is not read: save arrays of numbers "
            "or booleans, of one shape in each row"
        ) from error


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays as one .npz, whole or not at all; raises ModelError if it cannot be.

    bfloat16 has no NumPy type of its own: such arrays are stored as float32, without loss.
    """
    plain = {
        name: array.astype(np.float32) if array.dtype.name == "bfloat16" else array
        for name, array in arrays.items()
    }
    stream = io.BytesIO()
    np.savez(stream, **cast("Any", plain))
    write_file(path, stream.getvalue())
