"""`onnx-attn triton`: what the configuration says is what the file says.

Plain tests read the text with Protocol Buffers' own parser, by a description of the few fields
that are written (SCHEMA). Tests marked serving read it by the description that Triton's client
ships, which refuses every field and type that Triton does not have. No server is run.
"""

from __future__ import annotations

import errno
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from typer.testing import CliRunner

from onnx_attn import AdditiveAttention, Attention, InputError, ModelError
from onnx_attn.cli import load_commands
from onnx_attn.triton import ServedModel, write_repository

MODELS_FOLDER = Path(__file__).resolve().parents[2] / "models"

F = descriptor_pb2.FieldDescriptorProto
# Message: fields as name, type (a message's name for its own), repeated. The names are those of
# triton-inference-server/common, protobuf/model_config.proto.
SCHEMA: dict[str, list[tuple[str, int | str, bool]]] = {
    "Config": [
        ("name", F.TYPE_STRING, False),
        ("backend", F.TYPE_STRING, False),
        ("max_batch_size", F.TYPE_INT32, False),
        ("input", "Tensor", True),
        ("output", "Tensor", True),
        ("instance_group", "Group", True),
        ("parameters", "Parameter", True),
        ("dynamic_batching", "Batching", False),
    ],
    "Tensor": [
        ("name", F.TYPE_STRING, False),
        ("data_type", ".triton.DataType", False),
        ("dims", F.TYPE_INT64, True),
        ("optional", F.TYPE_BOOL, False),
    ],
    "Group": [("kind", ".triton.Kind", False), ("count", F.TYPE_INT32, False)],
    "Parameter": [("key", F.TYPE_STRING, False), ("value", "Value", False)],
    "Value": [("string_value", F.TYPE_STRING, False)],
    "Batching": [],
}
ENUMS = {
    "DataType": ["TYPE_INVALID", "TYPE_BOOL", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_BF16"],
    "Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU"],
}
ONNX_TYPE = {
    "TYPE_BOOL": onnx.TensorProto.BOOL,
    "TYPE_FP16": onnx.TensorProto.FLOAT16,
    "TYPE_BF16": onnx.TensorProto.BFLOAT16,
    "TYPE_FP32": onnx.TensorProto.FLOAT,
    "TYPE_FP64": onnx.TensorProto.DOUBLE,
}

FILES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (Attention(), {}),
    "no masks, no key": (Attention(), {"masks": "none", "key": False}),
    "optional": (Attention(use_scale=True), {"inputs": "optional", "scale": "input"}),
    "scalars": (
        Attention(use_scale=True, score_mode="concat", dropout=0.5),
        {"scale": "input", "training": True, "return_attention_scores": True},
    ),
    "fixed dims": (Attention(causal=True), {"dims": {"batch": 2, "Tq": 8, "dim": 64}}),
    "fused": (Attention(), {"schedule": "fused"}),
    "float16": (Attention(dtype="float16"), {}),
    "bfloat16": (Attention(dtype="bfloat16"), {}),
    "float64": (Attention(dtype="float64"), {}),
    "bias": (Attention(), {"bias": True}),
    "heads": (Attention(causal=True), {"heads": True, "dims": {"heads": 8}}),
    "heads, bias": (Attention(), {"heads": True, "bias": True, "return_attention_scores": True}),
    "optional bias": (Attention(dtype="float16"), {"bias": True, "inputs": "optional"}),
    "one bias": (Attention(), {"bias": True, "dims": {"bias_batch": 1}}),
}
MODELS = {
    name: layer.to_onnx(**options).SerializeToString() for name, (layer, options) in FILES.items()
}
BATCHED = (
    *("plain", "no masks, no key", "fused", "float16", "float64"),
    *("bias", "heads", "heads, bias"),
)


def config_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="c.proto", package="triton", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for number, (field, kind, repeated) in enumerate(fields, 1):
            made = message.field.add(
                name=field,
                number=number,
                label=F.LABEL_REPEATED if repeated else F.LABEL_OPTIONAL,
            )
            if isinstance(kind, int):
                made.type = kind
            elif kind.startswith("."):
                made.type, made.type_name = F.TYPE_ENUM, kind
            else:
                made.type, made.type_name = F.TYPE_MESSAGE, f".triton.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("triton.Config"))


@pytest.fixture(params=["ours", pytest.param("tritonclient", marks=pytest.mark.serving)])
def config(request: pytest.FixtureRequest) -> Any:
    """The message that a configuration is."""
    if request.param == "ours":
        return config_class()
    return import_module("tritonclient.grpc.model_config_pb2").ModelConfig


def served(name: str, **arguments: Any) -> ServedModel:
    return ServedModel(MODELS[name], f"{name}.onnx", "attention", **arguments)


def check_against_file(parsed: Any, model: onnx.ModelProto, config: Any) -> None:
    """Names, types, shapes and what may be left out: the file's own."""
    defaults = {tensor.name for tensor in model.graph.initializer}
    batching = parsed.max_batch_size > 0
    types = {value: name for name, value in _data_types(config).items()}
    for kind, wanted in (("input", model.graph.input), ("output", model.graph.output)):
        found = list(getattr(parsed, kind))
        assert [tensor.name for tensor in found] == [info.name for info in wanted]
        for tensor, info in zip(found, wanted, strict=True):
            tensor_type = info.type.tensor_type
            assert ONNX_TYPE[types[tensor.data_type]] == tensor_type.elem_type
            dims = [dim.dim_value or -1 for dim in tensor_type.shape.dim]
            if batching:
                assert dims.pop(0) == -1
            # Scalars of the file have no axes; Triton's requests always have one.
            assert list(tensor.dims) == (dims or [1])
            if kind == "input":
                assert tensor.optional == (tensor.name in defaults)


def _data_types(config: Any) -> dict[str, int]:
    field = config.DESCRIPTOR.fields_by_name["input"].message_type.fields_by_name["data_type"]
    return {value.name: value.number for value in field.enum_type.values}


@pytest.mark.parametrize("name", MODELS)
def test_the_configuration_is_the_files(name: str, config: Any) -> None:
    parsed = text_format.Parse(served(name, instances=3, threads=2).config, config())
    check_against_file(parsed, onnx.ModelProto.FromString(MODELS[name]), config)
    assert (parsed.name, parsed.backend, parsed.max_batch_size) == ("attention", "onnxruntime", 0)
    (group,) = parsed.instance_group
    assert group.count == 3
    kinds = type(group).DESCRIPTOR.fields_by_name["kind"].enum_type.values_by_name
    assert group.kind == kinds["KIND_CPU"].number
    assert not parsed.HasField("dynamic_batching")
    assert _parameters(parsed) == {"intra_op_thread_count": "2"}


def _parameters(parsed: Any) -> dict[str, str]:
    found = parsed.parameters  # Triton's is a map, ours a list of its entries
    if hasattr(found, "items"):
        return {key: value.string_value for key, value in found.items()}
    return {entry.key: entry.value.string_value for entry in found}


@pytest.mark.parametrize("name", BATCHED)
def test_a_batching_server_drops_the_first_axis(name: str, config: Any) -> None:
    parsed = text_format.Parse(served(name, max_batch_size=16, device="cuda").config, config())
    check_against_file(parsed, onnx.ModelProto.FromString(MODELS[name]), config)
    assert parsed.max_batch_size == 16
    assert parsed.HasField("dynamic_batching")
    group = parsed.instance_group[0]
    kinds = type(group).DESCRIPTOR.fields_by_name["kind"].enum_type.values_by_name
    assert group.kind == kinds["KIND_GPU"].number


@pytest.mark.parametrize(
    "path", sorted(MODELS_FOLDER.glob("*/model.onnx")), ids=lambda path: path.parent.name
)
def test_every_model_of_the_catalogue(path: Path, config: Any, tmp_path: Path) -> None:
    write_repository(path, tmp_path, "m")
    text = (tmp_path / "m" / "config.pbtxt").read_text()
    check_against_file(text_format.Parse(text, config()), onnx.load(path), config)


def test_this_check_can_fail(config: Any) -> None:
    text = served("plain").config
    model = onnx.ModelProto.FromString(MODELS["plain"])
    for old, new in (
        ('"query"', '"Query"'),
        ("TYPE_BOOL", "TYPE_FP32"),
        ("[ -1, -1 ]", "[ -1, 7 ]"),
        ("dims: [ -1, -1 ]", "optional: true dims: [ -1, -1 ]"),
    ):
        with pytest.raises(AssertionError):
            check_against_file(text_format.Parse(text.replace(old, new), config()), model, config)
    for old, new in (("data_type", "datatype"), ("TYPE_FP32", "FP32"), ("KIND_CPU", "CPU")):
        with pytest.raises(text_format.ParseError):
            text_format.Parse(text.replace(old, new), config())


# ---- notes


def test_notes_say_what_the_server_and_the_client_must_know() -> None:
    assert served("no masks, no key").notes == []
    assert served("plain").notes == ["a mask [[true]] (shape [1, 1]) means no mask"]
    (note,) = served("plain", max_batch_size=4).notes
    assert "masks of b rows, [b, 1]" in note
    optional, scalar, _ = served("optional").notes
    assert "23.05" in optional
    assert "sends scale, without axes" in scalar
    assert "scale and concat_score_weight and training" in served("scalars").notes[0]
    assert "bfloat16" in served("bfloat16").notes[-1]
    assert "a bias of zeros (shape [1, 1, 1]) means no bias" in served("bias").notes[-1]
    assert "(shape [1, 1, 1, 1])" in served("heads, bias").notes[-1]
    batched = served("heads, bias", max_batch_size=4).notes[-1]
    assert "refuses 1 row beside others, so repeat a bias that all rows share" in batched
    for name in MODELS:
        made = served(name)
        assert made.config.count("\n# ") == len(made.notes)


# ---- on disk


def onnx_attn(*arguments: object) -> Any:
    return CliRunner().invoke(load_commands(), [str(argument) for argument in arguments])


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "attention.onnx"
    path.write_bytes(MODELS["plain"])
    return path


def test_the_command_writes_the_folder(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "repository"
    result = onnx_attn("triton", file, "--out", out, "--instances", 2, "--threads", 1)
    assert result.exit_code == 0, result.stderr
    assert tree(out) == [
        "attention",
        "attention/1",
        "attention/1/model.onnx",
        "attention/config.pbtxt",
    ]
    assert (out / "attention" / "1" / "model.onnx").read_bytes() == MODELS["plain"]
    assert "count: 2" in (out / "attention" / "config.pbtxt").read_text()
    assert "note: a mask [[true]]" in result.stdout
    assert onnx_attn("triton", file, "--out", out, "--name", "second").exit_code == 0
    assert {path.name for path in out.iterdir()} == {"attention", "second"}


def test_a_model_that_is_there_is_left_alone(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    (out / "attention").mkdir(parents=True)
    (out / "attention" / "config.pbtxt").write_text("mine")
    result = onnx_attn("triton", file, "--out", out)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {out / 'attention'} exists already")
    assert result.stderr.count("\n") == 1
    assert tree(out) == ["attention", "attention/config.pbtxt"]
    assert (out / "attention" / "config.pbtxt").read_text() == "mine"


@pytest.mark.parametrize("failing", ["model.onnx", "config.pbtxt", "rename"])
def test_nothing_is_half_written(
    failing: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "rename":
        monkeypatch.setattr(Path, "rename", full)
    else:
        replace = os.replace

        def fail(source: Any, target: Any) -> None:
            if Path(target).name == failing:
                full()
            replace(source, target)

        monkeypatch.setattr(os, "replace", fail)
    out = tmp_path / "repository"
    with pytest.raises(ModelError, match="cannot be written: No space left on device"):
        write_repository(file, out)
    assert tree(out) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--name", "a/b"], "a model's name in Triton has letters, digits"),
        (["--name", ""], "a model's name in Triton has letters, digits"),
        (["--instances", 0], "instances must be an integer from 1; received 0"),
        (["--threads", -1], "threads must be an integer from 1; received -1"),
        (["--max-batch-size", -1], "max_batch_size must be an integer from 0; received -1"),
        (["--device", "tpu"], "device must be one of 'cpu', 'cuda'; received 'tpu'"),
    ],
)
def test_bad_arguments_write_nothing(
    arguments: list[Any], words: str, file: Path, tmp_path: Path
) -> None:
    result = onnx_attn("triton", file, "--out", tmp_path / "repository", *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("optional", "query_mask may be left out, which Triton does not allow where it joins"),
        ("scalars", "scale has no batch axis, so Triton cannot join requests"),
        ("fixed dims", "query has its batch fixed at 2"),
        ("one bias", "bias has its batch fixed at 1"),
        ("optional bias", "query_mask may be left out"),
    ],
)
def test_files_that_a_server_cannot_batch(name: str, words: str) -> None:
    with pytest.raises(InputError) as raised:
        served(name, max_batch_size=8)
    assert words in str(raised.value)
    assert "max_batch_size 0" in str(raised.value)


def test_heads_and_bias_by_name() -> None:
    shapes = {tensor.name: tensor.dims for tensor in served("heads, bias").inputs}
    assert shapes["query"] == shapes["bias"] == (-1,) * 4
    assert shapes["value_mask"] == (-1, -1)
    text = served("heads", max_batch_size=4).config
    assert 'name: "query" data_type: TYPE_FP32 dims: [ 8, -1, -1 ]' in text
    bias = 'name: "bias" data_type: TYPE_FP32 dims: [ -1, -1, -1 ] }'
    assert bias in served("bias").config
    assert bias in served("heads, bias", max_batch_size=4).config
    assert "TYPE_FP16 dims: [ -1, -1, -1 ] optional: true" in served("optional bias").config


@pytest.mark.parametrize("dims", [None, {"dim": 5}])
def test_a_scale_vector_is_no_batch(dims: dict[str, int] | None) -> None:
    layer = AdditiveAttention()
    layer.build(5)
    model = layer.to_onnx(scale="input", dims=dims).SerializeToString()
    with pytest.raises(InputError, match="scale has no batch axis"):
        ServedModel(model, "a.onnx", "a", max_batch_size=8)


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("text")
    other = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    onnx.save(other, tmp_path / "other.onnx")
    for name, words in (
        ("none.onnx", "does not exist"),
        ("text.onnx", "is not an ONNX file"),
        ("other.onnx", "not one that onnx_attn wrote"),
    ):
        result = onnx_attn("triton", tmp_path / name, "--out", tmp_path / "repository")
        assert result.exit_code == 2
        assert words in " ".join(result.stderr.split())
        assert not (tmp_path / "repository").exists()
    (tmp_path / "plain").write_text("")
    result = onnx_attn(
        "triton", MODELS_FOLDER / "plain" / "model.onnx", "--out", tmp_path / "plain"
    )
    assert result.exit_code == 2
    assert "is no folder" in " ".join(result.stderr.split())
