"""A file of ours as a model of NVIDIA Triton: the folder and config.pbtxt that its server reads.

What Triton's ONNX Runtime backend asks of a configuration was read from its source (2026-06,
github.com/triton-inference-server/onnxruntime_backend, src/onnxruntime.cc and
onnxruntime_utils.cc); nothing of Triton is needed to write it, and no server has been run.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from .configuration import one_of
from .errors import InputError, ModelError
from .file.disk import as_path, read_file, write_file
from .file.metadata import read_metadata
from .version import __version__

# Names in Triton's model_config.proto.
TYPES: dict[int, str] = {
    onnx.TensorProto.BOOL: "TYPE_BOOL",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.BFLOAT16: "TYPE_BF16",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.DOUBLE: "TYPE_FP64",
}
KINDS: dict[str, str] = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}
# A name is a folder's, part of a URL, and goes into a regular expression of the backend.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
ANY = -1

OPTIONAL = (
    "inputs marked optional may be left out of a request, for which Triton must be 23.05 or newer"
)
SCALAR = (
    "a request sends {names}, without axes in the file, with the shape [1], for which Triton "
    "must be 23.10 or newer"
)
BFLOAT16 = (
    "Triton's ONNX Runtime backend loads no bfloat16 tensors yet "
    "(triton-inference-server/server#8464): export with dtype='float16' or 'float32' to serve today"
)
NO_BATCHES = "a mask [[true]] (shape [1, 1]) means no mask"
BATCHES = (
    "a request of b rows sends masks of b rows, [b, 1] (all true: no mask) or [b, length]; "
    "requests of equal shapes are joined, so pad lengths to a few sizes and say so in value_mask"
)
NO_BIAS = "a bias of zeros (shape {ones}) means no bias; one that all rows share has 1 row"
BIASES = (
    "a request of b rows sends a bias of b rows: Triton joins and counts its first axis as rows, "
    "and refuses 1 row beside others, so repeat a bias that all rows share, or serve with "
    "max_batch_size 0, where it has 1 row"
)


@dataclass(frozen=True)
class Tensor:
    """An input or output as the file has it; a free dim is -1."""

    name: str
    type: str
    dims: tuple[int, ...]
    first: str  # name of the first dim
    optional: bool = False


@dataclass(frozen=True)
class ServedModel:
    """A file and how Triton shall run it.

    Args:
        data: the file's bytes.
        where: what messages call it.
        name: the model's name in requests, and its folder.
        instances: sessions that answer at the same time.
        threads: threads inside an operator, of each instance.
        max_batch_size: most rows that the server joins; 0 lets it join nothing and clients send
            any batch.
        device: "cpu" or "cuda".

    Raises:
        ModelError: the bytes are no file of ours.
        InputError: a value is not possible, or the file cannot be batched by the server.
    """

    data: bytes
    where: str
    name: str
    instances: int = 1
    threads: int = 1
    max_batch_size: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise InputError(
                "a model's name in Triton has letters, digits, _ and -, and starts with a letter "
                f"or digit; received {self.name!r}. Give another with --name"
            )
        one_of("device", self.device, tuple(KINDS))
        for what, value, least in (
            ("instances", self.instances, 1),
            ("threads", self.threads, 1),
            ("max_batch_size", self.max_batch_size, 0),
        ):
            if type(value) is not int or value < least:
                raise InputError(f"{what} must be an integer from {least}; received {value!r}")
        if self.max_batch_size:
            for tensor in (*self.inputs, *self.outputs):
                self._check_batches(tensor)

    @cached_property
    def _graph(self) -> onnx.GraphProto:
        """The file's graph; raises ModelError if the file is not ours."""
        try:
            model = onnx.ModelProto.FromString(self.data)
        except DecodeError as error:
            raise ModelError(f"{self.where} is not an ONNX file, or is cut short") from error
        read_metadata({entry.key: entry.value for entry in model.metadata_props}, self.where)
        return model.graph

    @cached_property
    def inputs(self) -> list[Tensor]:
        """The inputs, in the file's order; those with an initializer are optional."""
        graph = self._graph
        defaults = {tensor.name for tensor in graph.initializer}
        return [_tensor(info, info.name in defaults) for info in graph.input]

    @cached_property
    def outputs(self) -> list[Tensor]:
        """The outputs, in the file's order."""
        return [_tensor(info) for info in self._graph.output]

    def _check_batches(self, tensor: Tensor) -> None:
        """Raise InputError unless Triton may cut `tensor` along its first axis."""
        fix = "Serve it with max_batch_size 0"
        if tensor.optional:
            raise InputError(
                f"{self.where}: input {tensor.name} may be left out, which Triton does not allow "
                f"where it joins requests. {fix}, or export it with inputs='required'"
            )
        if len(tensor.dims) < 2 or (tensor.dims[0] == ANY and not tensor.first.endswith("batch")):
            raise InputError(
                f"{self.where}: {tensor.name} has no batch axis, so Triton cannot join requests. "
                f"{fix}, or export it with scale='constant' and without training"
            )
        if tensor.dims[0] != ANY:
            raise InputError(
                f"{self.where}: {tensor.name} has its batch fixed at {tensor.dims[0]}, and Triton "
                f"joins requests along a free one. {fix}, or export it with the batch free"
            )

    @property
    def notes(self) -> list[str]:
        """What a client, or who runs the server, has to know of this file."""
        inputs = self.inputs
        found: list[str] = []
        if any(tensor.optional for tensor in inputs):
            found.append(OPTIONAL)
        scalars = [tensor.name for tensor in inputs if not tensor.dims]
        if scalars:
            found.append(SCALAR.format(names=" and ".join(scalars)))
        if any(tensor.name.endswith("_mask") for tensor in inputs):
            found.append(BATCHES if self.max_batch_size else NO_BATCHES)
        for bias in (tensor for tensor in inputs if tensor.name == "bias"):
            ones = NO_BIAS.format(ones=[1] * len(bias.dims))
            found.append(BIASES if self.max_batch_size else ones)
        if any(tensor.type == "TYPE_BF16" for tensor in inputs):
            found.append(BFLOAT16)
        return found

    @property
    def config(self) -> str:
        """config.pbtxt, in Protocol Buffers' text format."""
        lines = [f"# Written by onnx_attn {__version__} from {Path(self.where).name}."]
        lines += [f"# {note[0].upper()}{note[1:]}." for note in self.notes]
        lines += [
            f'name: "{self.name}"',
            'backend: "onnxruntime"',
            f"max_batch_size: {self.max_batch_size}",
            *self._tensors("input", self.inputs),
            *self._tensors("output", self.outputs),
            f"instance_group [ {{ kind: {KINDS[self.device]} count: {self.instances} }} ]",
            'parameters { key: "intra_op_thread_count" '
            f'value: {{ string_value: "{self.threads}" }} }}',
        ]
        if self.max_batch_size:
            lines.append("dynamic_batching { }")
        return "\n".join(lines) + "\n"

    def _tensors(self, kind: str, tensors: Iterable[Tensor]) -> list[str]:
        lines = [f"{kind} ["]
        for tensor in tensors:
            dims = tensor.dims[1:] if self.max_batch_size else tensor.dims
            shape = ", ".join(map(str, dims or (1,)))
            words = f'name: "{tensor.name}" data_type: {tensor.type} dims: [ {shape} ]'
            lines.append(f"  {{ {words}{' optional: true' * tensor.optional} }},")
        lines[-1] = lines[-1].removesuffix(",")  # the text format takes none behind the last
        return [*lines, "]"]


def _tensor(info: onnx.ValueInfoProto, optional: bool = False) -> Tensor:
    kind = info.type.tensor_type
    dims = kind.shape.dim
    return Tensor(
        info.name,
        TYPES[kind.elem_type],
        tuple(dim.dim_value if dim.HasField("dim_value") else ANY for dim in dims),
        dims[0].dim_param if dims else "",
        optional,
    )


def write_repository(
    file: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    name: str | None = None,
    *,
    instances: int = 1,
    threads: int = 1,
    max_batch_size: int = 0,
    device: str = "cpu",
) -> ServedModel:
    """Write REPOSITORY/NAME/config.pbtxt and REPOSITORY/NAME/1/model.onnx, both or nothing.

    `name` is the file's name without its ending if not given; the other arguments are those of
    `ServedModel`. The repository is made where it is missing.

    Raises:
        ModelError: the file is missing or not ours, or something cannot be written.
        InputError: the repository has a model of that name, or an argument does not fit.
    """
    data = read_file(file)
    name = as_path(file).stem if name is None else name
    served = ServedModel(data, str(as_path(file)), name, instances, threads, max_batch_size, device)
    text = served.config
    folder = as_path(repository)
    target = folder / name
    if os.path.lexists(target):
        raise InputError(
            f"{target} exists already, and is left as it is. Give another --name or repository, "
            "or remove it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Made under a name of its own, so that a server that watches sees all or nothing.
        made = folder / f".{name}.{os.urandom(8).hex()}.part"
        try:
            (made / "1").mkdir(parents=True)
            write_file(made / "1" / "model.onnx", data)
            write_file(made / "config.pbtxt", text.encode())
            made.rename(target)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ModelError(f"{folder} cannot be written: it is no folder") from error
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error.strerror or error}") from error
    return served
