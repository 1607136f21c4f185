"""What a session wants to know of a model file before the runtime reads it.

ONNX files are Protocol Buffers; this walks the few fields it needs (onnx.proto, stable since
IR 3) so that running a file needs no onnx package, and a file that is not ours, or that points
at other files of the disk, never reaches the runtime.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from ..errors import ModelError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

# Field numbers of onnx.proto.
MODEL_GRAPH, MODEL_OPSETS, MODEL_METADATA, MODEL_TRAINING, MODEL_FUNCTIONS = 7, 8, 14, 20, 25
TRAINING_INITIALIZATION, TRAINING_ALGORITHM = 1, 2
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_SPARSE_INITIALIZER = 1, 5, 15
FUNCTION_NODE, FUNCTION_ATTRIBUTE = 7, 11
NODE_ATTRIBUTE = 5
ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH, ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS = 5, 6, 10, 11
ATTRIBUTE_SPARSE_TENSOR, ATTRIBUTE_SPARSE_TENSORS = 22, 23
SPARSE_VALUES, SPARSE_INDICES = 1, 2
TENSOR_DIMS, TENSOR_NAME, TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION = 1, 8, 13, 14
KEY, VALUE = 1, 2

# Which fields of a message lead to tensors, and to what kind of message.
LEADS: dict[str, dict[int, str]] = {
    "model": {MODEL_GRAPH: "graph", MODEL_TRAINING: "training", MODEL_FUNCTIONS: "function"},
    "training": {TRAINING_INITIALIZATION: "graph", TRAINING_ALGORITHM: "graph"},
    "graph": {
        GRAPH_NODE: "node",
        GRAPH_INITIALIZER: "tensor",
        GRAPH_SPARSE_INITIALIZER: "sparse",
    },
    "function": {FUNCTION_NODE: "node", FUNCTION_ATTRIBUTE: "attribute"},
    "node": {NODE_ATTRIBUTE: "attribute"},
    "attribute": {
        ATTRIBUTE_TENSOR: "tensor",
        ATTRIBUTE_TENSORS: "tensor",
        ATTRIBUTE_GRAPH: "graph",
        ATTRIBUTE_GRAPHS: "graph",
        ATTRIBUTE_SPARSE_TENSOR: "sparse",
        ATTRIBUTE_SPARSE_TENSORS: "sparse",
    },
    "sparse": {SPARSE_VALUES: "tensor", SPARSE_INDICES: "tensor"},
}
# ONNX Runtime's own format is a FlatBuffer, which has its name behind the first offset.
ORT_MAGIC = b"ORTM"
# Protocol Buffers libraries refuse deeper messages; ours are 8 deep.
DEEPEST = 100


class _BrokenError(Exception):
    """The bytes are no Protocol Buffers message."""


def metadata_of(data: bytes, where: str) -> dict[str, str]:
    """The metadata_props of a serialized ModelProto.

    Raises ModelError, naming `where`, if the bytes are no ONNX file or are cut short.
    """
    if not data:
        raise ModelError(f"{where} is empty. Export it again")
    if data[4:8] == ORT_MAGIC:
        raise ModelError(
            f"{where} is not an ONNX file, but one in ONNX Runtime's own format (.ort). Give the "
            ".onnx file that it was made from, or run it with onnxruntime itself"
        )
    try:
        entries: dict[str, str] = {}
        for number, value in _fields(memoryview(data)):
            if number == MODEL_METADATA and isinstance(value, memoryview):
                entry = _strings(value)
                entries[entry.get(KEY, "")] = entry.get(VALUE, "")
        return entries
    except (_BrokenError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{where} is not an ONNX file, or is cut short or damaged. "
            "Export it again, or compare its checksum with the original's"
        ) from error


def graph_digest(data: bytes, where: str) -> str:
    """SHA-256, in hex, of what a serialized ModelProto computes; its metadata is left out.

    Hashed are the graph, the operator sets it imports and the functions, in this order, as they
    are serialized. Protocol Buffers libraries write fields in the order of their numbers, so that
    a file read and written again unchanged has the same digest.

    Raises ModelError, naming `where`, if the bytes are no ONNX file or are cut short.
    """
    hashed = hashlib.sha256()
    try:
        parts = list(_fields(memoryview(data)))
    except _BrokenError as error:
        raise ModelError(f"{where} is not an ONNX file, or is cut short or damaged") from error
    for wanted in (MODEL_GRAPH, MODEL_OPSETS, MODEL_FUNCTIONS):
        for number, part in parts:
            if number == wanted and isinstance(part, memoryview):
                hashed.update(f"{number} {len(part)} ".encode())
                hashed.update(part)
    return hashed.hexdigest()


def external_files(data: bytes, where: str) -> list[str]:
    """Locations of the files that a serialized ModelProto's tensors lie in; [] for one file.

    Raises ModelError, naming `where`, if the bytes are no ONNX file or are cut short.
    """
    if b"location" not in data:
        return []  # the key under which any of them would stand
    try:
        return list(_locations(memoryview(data), "model", 0))
    except (_BrokenError, UnicodeDecodeError) as error:
        raise ModelError(f"{where} is not an ONNX file, or is cut short or damaged") from error


def refuse_external_files(data: bytes, where: str) -> None:
    """Raise ModelError if a tensor of a serialized ModelProto lies in another file.

    No file of ours has such tensors, and one that a stranger made could point at any file.
    """
    locations = external_files(data, where)
    if locations:
        raise ModelError(
            f"{where} keeps tensors in another file ({locations[0]!r}). That is refused: a model "
            "must not read other files. Export it again: a file of ours is one file"
        )


def weight_shape(data: bytes, name: str, where: str) -> tuple[int, ...] | None:
    """Shape of the initializer `name` of a serialized ModelProto, None if it has none.

    Raises ModelError, naming `where`, if the bytes are no ONNX file or are cut short.
    """
    try:
        return _initializer_shape(memoryview(data), name.encode())
    except _BrokenError as error:
        raise ModelError(f"{where} is not an ONNX file, or is cut short or damaged") from error


def _initializer_shape(model: memoryview, name: bytes) -> tuple[int, ...] | None:
    for number, graph in _fields(model):
        if number != MODEL_GRAPH or not isinstance(graph, memoryview):
            continue
        for kind, tensor in _fields(graph):
            if kind == GRAPH_INITIALIZER and isinstance(tensor, memoryview):
                dims = list(_fields(tensor))
                if (TENSOR_NAME, name) in dims:
                    return tuple(_integers(value for kind, value in dims if kind == TENSOR_DIMS))
    return None


def _integers(values: Iterable[memoryview | int]) -> Iterator[int]:
    """Repeated integers, packed into bytes or one by one."""
    for value in values:
        if isinstance(value, int):
            yield value
            continue
        position = 0
        while position < len(value):
            number, position = _varint(value, position)
            yield number


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > DEEPEST:
        raise _BrokenError("too deep")
    leads = LEADS.get(kind, {})
    external = stored_outside = False
    for number, value in _fields(message):
        if kind == "tensor":
            if number == TENSOR_EXTERNAL_DATA and isinstance(value, memoryview):
                entry = _strings(value)
                if entry.get(KEY) == "location":
                    external = True
                    yield entry.get(VALUE, "")
            stored_outside |= number == TENSOR_DATA_LOCATION and value == 1
        elif number in leads and isinstance(value, memoryview):
            yield from _locations(value, leads[number], depth + 1)
    if stored_outside and not external:
        raise _BrokenError("external tensor without a location")


def _strings(message: memoryview) -> dict[int, str]:
    return {
        number: bytes(value).decode("utf-8")
        for number, value in _fields(message)
        if isinstance(value, memoryview)
    }


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Field number and value of each field of a message."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise _BrokenError("field 0")
        if kind == VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if kind == BYTES:
            size, position = _varint(message, position)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise _BrokenError(f"wire type {kind}")
        end = position + size
        if end > len(message):
            raise _BrokenError("cut short")
        yield number, message[position:end]
        position = end


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise _BrokenError("varint")
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
