"""Test vectors beside a model: test_data_set_K/{input,output}_N.pb, and how near is near enough.

The layout is ONNX's own: onnx's backend tests and ONNX Runtime's onnx_test_runner read it. Each
file is one serialized TensorProto whose `name` is that of the input or output.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast

import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from ..arrays import Array
from ..errors import ModelError
from ..file.disk import read_file

Kind = Literal["input", "output"]

MODEL = "model.onnx"
SET_PREFIX = "test_data_set_"


@dataclass(frozen=True)
class Tolerance:
    """`|result - expected| <= atol + rtol * |expected|`, for every number."""

    rtol: float
    atol: float

    def __str__(self) -> str:
        return f"rtol {self.rtol:g}, atol {self.atol:g}"


# What a change of summation order, or of exp and tanh, costs in each type; the figures are those
# at which this package and Keras are compared.
TOLERANCES = {
    "float16": Tolerance(2e-3, 2e-3),
    "bfloat16": Tolerance(1.6e-2, 1.6e-2),
    "float32": Tolerance(1e-5, 2e-6),
    "float64": Tolerance(1e-9, 1e-12),
}


class VectorSet(NamedTuple):
    """One test_data_set_K: what to feed, and what must come out, by name, in the file's order."""

    path: Path
    inputs: dict[str, Array]
    outputs: dict[str, Array]


def set_files(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, bytes]:
    """The files of one set by file name. Order is that of the model's inputs and outputs."""
    kinds: tuple[tuple[Kind, Mapping[str, Array]], ...] = (("input", inputs), ("output", outputs))
    return {
        f"{kind}_{number}.pb": tensor_bytes(name, array)
        for kind, arrays in kinds
        for number, (name, array) in enumerate(arrays.items())
    }


def tensor_bytes(name: str, array: Array) -> bytes:
    """A serialized TensorProto called `name`."""
    return numpy_helper.from_array(array, name).SerializeToString(deterministic=True)


def tolerance_files(tolerance: Tolerance) -> dict[str, bytes]:
    """The tolerance in both readers' formats, by file name.

    ONNX Runtime's onnx_test_runner reads `key: value` lines of config.txt beside the model, onnx's
    backend tests the keys rtol and atol of data.json.
    """
    config = (
        f"per_sample_tolerance: {tolerance.atol:g}\n"
        f"relative_per_sample_tolerance: {tolerance.rtol:g}\n"
        "post_processing: false\n"
    )
    data = json.dumps({"atol": tolerance.atol, "rtol": tolerance.rtol}, sort_keys=True) + "\n"
    return {"config.txt": config.encode(), "data.json": data.encode()}


def read_tolerance(folder: Path) -> Tolerance:
    """The tolerance stated in `folder`.

    Raises ModelError if config.txt or data.json is missing or damaged, or if they disagree.
    """
    data_path, config_path = folder / "data.json", folder / "config.txt"
    try:
        data = json.loads(read_file(data_path))
        from_data = Tolerance(float(data["rtol"]), float(data["atol"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{data_path} is damaged: expected JSON with rtol and atol") from error
    try:
        lines = read_file(config_path).decode().splitlines()
        values = {
            key.strip(): text.strip() for key, _, text in (line.partition(":") for line in lines)
        }
        from_config = Tolerance(
            float(values["relative_per_sample_tolerance"]), float(values["per_sample_tolerance"])
        )
    except (ValueError, KeyError) as error:
        raise ModelError(
            f"{config_path} is damaged: expected lines like 'per_sample_tolerance: 1e-5'"
        ) from error
    if from_data != from_config:
        raise ModelError(
            f"{config_path} states {from_config}, {data_path} states {from_data}: "
            "they must be the same"
        )
    if not all(0 <= bound < math.inf for bound in (from_data.rtol, from_data.atol)):
        raise ModelError(f"{data_path}: rtol and atol must be finite and not negative")
    return from_data


def read_sets(folder: Path) -> list[VectorSet]:
    """Every test_data_set_K of `folder`, in order of K.

    Raises ModelError if there is none, or a file of one is missing, unnamed or damaged.
    """
    numbered = {
        int(match[1]): path
        for path in folder.iterdir()
        if (match := re.fullmatch(rf"{SET_PREFIX}(\d+)", path.name)) and path.is_dir()
    }
    if not numbered:
        raise ModelError(
            f"{folder} has no test vectors: expected folders {SET_PREFIX}0, {SET_PREFIX}1, ... "
            "beside the model"
        )
    return [read_set(numbered[number]) for number in sorted(numbered)]


def read_set(folder: Path) -> VectorSet:
    """One set; raises ModelError if a file of it is missing, unnamed or damaged."""
    return VectorSet(folder, _read_tensors(folder, "input"), _read_tensors(folder, "output"))


def _read_tensors(folder: Path, kind: Kind) -> dict[str, Array]:
    found = {path.name for path in folder.glob(f"{kind}_*.pb")}
    expected = [f"{kind}_{number}.pb" for number in range(len(found))]
    if not found or found != set(expected):
        missing = next((name for name in expected if name not in found), f"{kind}_0.pb")
        raise ModelError(f"{folder} has no {missing}: files are numbered from 0 without gaps")
    arrays: dict[str, Array] = {}
    for name in expected:
        path = folder / name
        tensor, array = parse_tensor(read_file(path), path)
        if tensor in arrays:
            raise ModelError(f"{path}: {tensor} is there already, in a file before it")
        arrays[tensor] = array
    return arrays


def parse_tensor(data: bytes, path: Path) -> tuple[str, Array]:
    """Name and numbers of a serialized TensorProto; `path` is for the message.

    Raises ModelError if it is none, has no name, or keeps its numbers elsewhere.
    """
    try:
        tensor = onnx.TensorProto.FromString(data)
    except DecodeError as error:
        raise ModelError(f"{path} is damaged: it is no TensorProto") from error
    if not tensor.name:
        raise ModelError(f"{path} does not name its tensor")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ModelError(f"{path} keeps its numbers in another file; test vectors hold their own")
    try:
        return tensor.name, cast("Array", numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error
