"""A file knows whether it was changed, and says by name what is not as it promises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_attn import Attention, AttentionSession, ModelError
from onnx_attn.file.inspection import describe_file
from onnx_attn.file.metadata import CONFIG_KEY, DIGEST_KEY, EXPORT_KEY, METADATA_DIGEST_KEY

QUERY = np.arange(6, dtype=np.float32).reshape(1, 2, 3)


def exported(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = Attention(use_scale=True).to_onnx()
    change(model)
    onnx.save(model, path)
    return path


def nothing(model: onnx.ModelProto) -> None:
    """Read and written again, as any tool does."""
    model.CopyFrom(onnx.ModelProto.FromString(model.SerializeToString()))
    model.metadata_props.add(key="somebody.elses", value="note")


def rename_nodes(model: onnx.ModelProto) -> None:
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"


def fix_batch(model: onnx.ModelProto) -> None:
    for tensor in (*model.graph.input, *model.graph.output):
        if tensor.type.tensor_type.shape.dim[0].dim_param == "batch":
            tensor.type.tensor_type.shape.dim[0].dim_value = 1


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.node.add(op_type="Identity", input=["output"], output=["result"])
    model.graph.output[0].name = "result"


def set_property(model: onnx.ModelProto, key: str, value: str | None) -> None:
    (entry,) = (entry for entry in model.metadata_props if entry.key == key)
    if value is None:
        model.metadata_props.remove(entry)
    else:
        entry.value = value


def property_of(model: onnx.ModelProto, key: str) -> str:
    return next(entry.value for entry in model.metadata_props if entry.key == key)


def test_a_file_written_again_unchanged_is_as_exported(tmp_path: Path) -> None:
    path = exported(tmp_path / "a.onnx", nothing)
    assert describe_file(path)["graph"] == "as exported"
    assert Attention.load(path).get_config()["use_scale"]


@pytest.mark.parametrize("change", [rename_nodes, fix_batch])
def test_a_changed_file_runs_and_does_not_load(
    change: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    path = exported(tmp_path / "a.onnx", change)
    assert describe_file(path)["graph"] == "changed by another tool since"
    with pytest.raises(ModelError, match="was changed by another tool since its export"):
        Attention.load(path)
    whole = AttentionSession(Attention(use_scale=True).to_onnx().SerializeToString(), device="cpu")
    session = AttentionSession(path, device="cpu")
    np.testing.assert_array_equal(session(QUERY, QUERY), whole(QUERY, QUERY))


def test_sizes_that_a_tool_fixed_are_known(tmp_path: Path) -> None:
    session = AttentionSession(exported(tmp_path / "a.onnx", fix_batch), device="cpu")
    assert session.inputs["query"].dims == (1, "Tq", "dim")


def test_what_is_not_as_promised_is_named(tmp_path: Path) -> None:
    path = exported(tmp_path / "a.onnx", rename_output)
    with pytest.raises(ModelError, match=r"no output output; no output result.*Export it again"):
        AttentionSession(path, device="cpu")
    assert any("no output output" in line for line in describe_file(path)["differences"])


def test_another_type_is_named_with_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    half = Attention(dtype="float16").to_onnx()
    del half.metadata_props[:]
    half.metadata_props.extend(Attention().to_onnx().metadata_props)
    onnx.save(half, path)
    with pytest.raises(
        ModelError,
        match=r"query float32\[batch, Tq, dim\], its graph has query float16.*"
        r"dtype='float16' instead of converting",
    ):
        AttentionSession(path, device="cpu")


@pytest.mark.parametrize(("key", "value"), [("causal", True), ("use_scale", False)])
def test_a_config_that_contradicts_the_graph_is_found(
    key: str, value: bool, tmp_path: Path
) -> None:
    def contradict(model: onnx.ModelProto) -> None:
        config = json.loads(property_of(model, CONFIG_KEY))
        set_property(model, CONFIG_KEY, json.dumps({**config, key: value}, sort_keys=True))

    path = exported(tmp_path / "a.onnx", contradict)
    for read in (Attention.load, describe_file, AttentionSession):
        with pytest.raises(ModelError, match="metadata was changed since the export"):
            read(path)


def test_the_metadata_of_another_layer_is_found(tmp_path: Path) -> None:
    def swap(model: onnx.ModelProto) -> None:
        other = Attention(use_scale=True, causal=True).to_onnx().metadata_props
        del model.metadata_props[:]
        model.metadata_props.extend(other)

    with pytest.raises(ModelError, match="was changed by another tool"):
        Attention.load(exported(tmp_path / "a.onnx", swap))


def old_file(model: onnx.ModelProto) -> None:
    for key in (DIGEST_KEY, METADATA_DIGEST_KEY):
        set_property(model, key, None)


def test_files_of_before_the_digest_load(tmp_path: Path) -> None:
    path = exported(tmp_path / "a.onnx", old_file)
    assert describe_file(path)["graph"].startswith("unknown")
    assert Attention.load(path).get_config()["use_scale"]


def test_an_unknown_option_is_a_newer_version(tmp_path: Path) -> None:
    def newer(model: onnx.ModelProto) -> None:
        old_file(model)
        options = json.loads(property_of(model, EXPORT_KEY))
        set_property(model, EXPORT_KEY, json.dumps({**options, "windows": 3}))

    path = exported(tmp_path / "a.onnx", newer)
    with pytest.raises(ModelError, match="uses 'windows', which this onnx_attn does not know"):
        AttentionSession(path, device="cpu")


def test_a_file_in_onnxruntimes_format_says_so() -> None:
    with pytest.raises(ModelError, match=r"own format \(\.ort\)\. Give the \.onnx file"):
        AttentionSession(b"\x1c\x00\x00\x00ORTM" + bytes(64), device="cpu")
