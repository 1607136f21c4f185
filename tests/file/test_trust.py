"""A model file is data: what is not ours, points elsewhere or is broken is refused by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_attn import Attention, AttentionSession, InputError, ModelError
from onnx_attn.file.metadata import FORMAT_KEY
from onnx_attn.file.protobuf import external_files, metadata_of, weight_shape

QUERY = np.ones((1, 2, 3), np.float32)
SCALED = Attention(use_scale=True)
SCALED.set_weights([2.0])


def opened(model: object) -> AttentionSession:
    return AttentionSession(model, device="cpu", threads=1)  # pyright: ignore[reportArgumentType]


def with_external_scale(location: str) -> bytes:
    """A file of ours whose scale lies in another file."""
    model = SCALED.to_onnx()
    (scale,) = (tensor for tensor in model.graph.initializer if tensor.name == "scale")
    for name in ("raw_data", "float_data"):
        scale.ClearField(name)
    scale.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        scale.external_data.add(key=key, value=value)
    return model.SerializeToString()


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/secret", "a\0b"])
@pytest.mark.parametrize("kind", ["bytes", "path"])
def test_external_data_is_refused(kind: str, location: str, tmp_path: Path) -> None:
    # Beside the file as anywhere else: no file of ours has any.
    (tmp_path / "weights.bin").write_bytes(np.float32(2.0).tobytes())
    data, path = with_external_scale(location), tmp_path / "a.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="keeps tensors in another file"):
        opened(data if kind == "bytes" else path)
    with pytest.raises(ModelError, match="keeps tensors in another file"):
        Attention.load(path)


def hide_in_attribute(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.node.add(op_type="Constant", output=["c"]).attribute.add(
        name="value", type=onnx.AttributeProto.TENSOR
    ).t.CopyFrom(tensor)


def hide_in_subgraph(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    branch = model.graph.node.add(op_type="If").attribute.add(
        name="then_branch", type=onnx.AttributeProto.GRAPH
    )
    branch.g.initializer.append(tensor)


def hide_in_function(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    function = model.functions.add(name="f", domain="d")
    function.node.add(op_type="Constant").attribute.add(name="value").t.CopyFrom(tensor)


def hide_in_sparse(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)


def hide_in_training(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.training_info.add().initialization.initializer.append(tensor)


@pytest.mark.parametrize(
    "hide",
    [hide_in_attribute, hide_in_subgraph, hide_in_function, hide_in_sparse, hide_in_training],
)
def test_external_data_is_found_wherever_a_tensor_can_be(
    hide: Callable[[onnx.ModelProto, onnx.TensorProto], None],
) -> None:
    model = Attention().to_onnx()
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value="/etc/secret")
    hide(model, tensor)
    data = model.SerializeToString()
    assert external_files(data, "it") == ["/etc/secret"]
    with pytest.raises(ModelError, match="keeps tensors in another file"):
        opened(data)


def test_metadata_is_read_as_onnx_reads_it() -> None:
    model = SCALED.to_onnx(scale="input", return_attention_scores=True)
    wanted = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata_of(model.SerializeToString(), "it") == wanted
    assert external_files(model.SerializeToString(), "it") == []


def not_ours() -> bytes:
    model = Attention().to_onnx()
    del model.metadata_props[:]
    return model.SerializeToString()


def newer() -> bytes:
    model = Attention().to_onnx()
    for entry in model.metadata_props:
        if entry.key == FORMAT_KEY:
            entry.value = "2"
    return model.SerializeToString()


def other_graph() -> bytes:
    model = Attention().to_onnx()
    model.graph.output[0].name = "result"
    for node in model.graph.node:
        node.output[:] = ["result" if name == "output" else name for name in node.output]
    return model.SerializeToString()


def other_type() -> bytes:
    """Its metadata says float32, its graph is float64's."""
    model = Attention(dtype="float64").to_onnx()
    del model.metadata_props[:]
    model.metadata_props.extend(Attention().to_onnx().metadata_props)
    return model.SerializeToString()


def custom_operator() -> bytes:
    model = Attention().to_onnx()
    model.opset_import.add(domain="somebody.elses", version=1)
    model.graph.node.add(
        op_type="RunThis", domain="somebody.elses", input=["query"], output=["unused"]
    )
    return model.SerializeToString()


def deeply_nested() -> bytes:
    """A file of ours with a graph in a graph in a graph, 1,000 deep."""

    def field(number: int, payload: bytes) -> bytes:
        size, digits = len(payload), b""
        while size > 0x7F:
            digits += bytes([size & 0x7F | 0x80])
            size >>= 7
        return bytes([number << 3 | 2]) + digits + bytes([size]) + payload

    inner = b""
    for _ in range(1000):
        inner = field(1, field(5, field(6, inner)))  # node, attribute, graph
    return Attention().to_onnx().SerializeToString() + field(7, inner)


WHOLE = Attention().to_onnx().SerializeToString()

REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "text": (b"Hello, this is a README and no model.", "not an ONNX file"),
    "a zip": (b"PK\x03\x04" + bytes(100), "not an ONNX file"),
    "cut in the graph": (WHOLE[: len(WHOLE) // 2], "is cut short or damaged"),
    "cut at the end": (WHOLE[:-1], "is cut short or damaged"),
    "not ours": (not_ours(), "not one that onnx_attn wrote.*Export one with Attention"),
    "newer": (newer(), "has format 2; this onnx_attn reads format 1. Update onnx_attn"),
    "another graph": (
        other_graph(),
        "was changed by another tool.*promises output output float32.*no output output",
    ),
    "another type": (other_type(), "query float32.*its graph has.*query float64"),
    "custom operator": (custom_operator(), "cannot be loaded by ONNX Runtime.*somebody.elses"),
    "ONNX Runtime's own format": (b"\x08\x00\x00\x00ORTM" + bytes(64), "not an ONNX file"),
    "deeply nested": (
        deeply_nested(),
        "cannot be loaded by ONNX Runtime.*Its graph is not as exported",
    ),
}


@pytest.mark.parametrize("kind", ["bytes", "path"])
@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused_by_name(kind: str, name: str, tmp_path: Path) -> None:
    data, message = REFUSED[name]
    path = tmp_path / "a.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=message) as raised:
        opened(data if kind == "bytes" else path)
    assert ("the model" if kind == "bytes" else str(path)) in str(raised.value)


def test_ort_files_by_name_are_read_as_onnx(tmp_path: Path) -> None:
    # ONNX Runtime takes a name that ends so for its own, unchecked format.
    (tmp_path / "a.ort").write_bytes(WHOLE)
    assert opened(tmp_path / "a.ort")(QUERY, QUERY).shape == (1, 2, 3)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.onnx does not exist\. Write it with Attention"):
        opened(tmp_path / "nothing.onnx")
    with pytest.raises(ModelError, match="is no file, but a folder"):
        opened(tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        opened("a\0b.onnx")
    for model in (None, 3, Attention().to_onnx(), bytearray(WHOLE)):
        with pytest.raises(InputError, match="model: expected the path of a file or its bytes"):
            opened(model)


@pytest.mark.skipif(os.name == "nt", reason="Windows says that such a path does not exist")
def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = Attention().export(tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="cannot be read: Not a directory"):
        opened(path / "b.onnx")


def test_load_refuses_what_the_session_refuses(tmp_path: Path) -> None:
    for name, message in (
        ("text", "not an ONNX file"),
        ("cut at the end", "ONNX"),
        ("newer", "format 2"),
    ):
        (tmp_path / "a.onnx").write_bytes(REFUSED[name][0])
        with pytest.raises(ModelError, match=message):
            Attention.load(tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="does not exist"):
        Attention.load(tmp_path / "b.onnx")


def test_shape_of_a_weight_in_the_file() -> None:
    for array in (np.ones(300, np.float32), np.ones((), np.float32)):
        model = SCALED.to_onnx()
        (scale,) = (tensor for tensor in model.graph.initializer if tensor.name == "scale")
        scale.CopyFrom(onnx.numpy_helper.from_array(array, "scale"))
        assert weight_shape(model.SerializeToString(), "scale", "it") == array.shape
    assert weight_shape(Attention().to_onnx().SerializeToString(), "scale", "it") is None
