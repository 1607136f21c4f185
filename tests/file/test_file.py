"""Promise: portable. The file's contract, as a reader without Python sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnx_attn import AdditiveAttention, Attention, InputError, ModelError
from protos import dims_of, nodes_of

# Operators that ONNX Runtime (native, web, mobile), OpenVINO, TensorRT and the reference
# evaluator all know. Nothing random: those stand in training files only.
ALLOWED = {
    "Abs",
    "Add",
    "And",
    "ArgMax",
    "Cast",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Div",
    "Einsum",
    "Equal",
    "Expand",
    "Flatten",
    "Gather",
    "Gemm",
    "Greater",
    "GreaterOrEqual",
    "Identity",
    "If",
    "Less",
    "MatMul",
    "Max",
    "Min",
    "Mul",
    "NonZero",
    "Not",
    "Or",
    "Pad",
    "Range",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "Reshape",
    "Scan",
    "Shape",
    "Size",
    "Slice",
    "Softmax",
    "Split",
    "Squeeze",
    "Sub",
    "Tanh",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
}
TRAINING = {"RandomUniformLike"}


def layers() -> list[Any]:
    made: list[Any] = []
    for dtype in ("float32", "float64", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"):
        made.append(Attention(use_scale=True, dtype=dtype, dropout=0.5))
    for causal in (False, True):
        made.append(Attention(causal=causal, dropout=0.25, seed=1))
        made.append(Attention(use_scale=True, score_mode="concat", causal=causal, dropout=0.5))
        additive = AdditiveAttention(causal=causal, dropout=0.5)
        additive.build(8)
        made.append(additive)
    return made


def options_of(layer: Any) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [
        {
            "masks": masks,
            "inputs": inputs,
            "key": key,
            "return_attention_scores": scores,
            "training": training,
            "scale": "input" if layer.get_weights() and masks == "both" else "constant",
        }
        for masks in ("both", "value", "query", "none")
        for inputs in ("required", "optional")
        for key, scores, training in (
            (True, False, False),
            (False, True, False),
            (True, True, True),
        )
    ]
    made.append({"heads": True, "training": False})
    for schedule in ("auto", "tiled"):
        made.append({"heads": True, "bias": True, "training": True, "schedule": schedule})
    return made


def files() -> list[tuple[Any, dict[str, Any]]]:
    return [(layer, options) for layer in layers() for options in options_of(layer)]


def ids(entry: Any) -> str:
    layer, options = entry
    return "-".join(
        [type(layer).__name__, *(str(v) for v in layer.get_config().values()), str(options)]
    )


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: ids((layer, {})))
def test_every_file_passes_the_checker_and_strict_inference(layer: Any) -> None:
    for options in options_of(layer):
        model = layer.to_onnx(**options)
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        used = {node.op_type for node in nodes_of(model.graph)}
        allowed = ALLOWED | TRAINING if options["training"] else ALLOWED
        assert used <= allowed, ids((layer, options))
        assert {node.domain for node in nodes_of(model.graph)} == {""}
        assert not model.functions
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
        assert model.ir_version == 8
        names = [node.name for node in nodes_of(model.graph)]
        assert len(set(names)) == len(names)
        assert all(names)


@pytest.mark.parametrize("opset", range(17, 22))
def test_every_opset_passes_the_checker(opset: int) -> None:
    for layer in layers():
        model = layer.to_onnx(opset=opset, return_attention_scores=True, training=True)
        assert model.opset_import[0].version == opset
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def test_inputs_and_outputs_by_name_order_and_dims() -> None:
    layer = Attention(use_scale=True, score_mode="concat", dropout=0.5)
    model = layer.to_onnx(scale="input", training=True, return_attention_scores=True)
    inputs = {value.name: dims_of(value) for value in model.graph.input}
    assert list(inputs.items()) == [
        ("query", ["batch", "Tq", "dim"]),
        ("value", ["batch", "Tv", "value_dim"]),
        ("key", ["batch", "Tv", "dim"]),
        ("query_mask", ["query_mask_batch", "query_mask_Tq"]),
        ("value_mask", ["value_mask_batch", "value_mask_Tv"]),
        ("scale", []),
        ("concat_score_weight", []),
        ("training", []),
    ]
    outputs = {value.name: dims_of(value) for value in model.graph.output}
    assert list(outputs.items()) == [
        ("output", ["batch", "Tq", "value_dim"]),
        ("attention_scores", ["batch", "Tq", "Tv"]),
    ]
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    assert types["query_mask"] == types["value_mask"] == types["training"] == TensorProto.BOOL
    assert types["scale"] == TensorProto.FLOAT


@pytest.mark.parametrize(
    ("masks", "names"),
    [
        ("both", ["query_mask", "value_mask"]),
        ("value", ["value_mask"]),
        ("query", ["query_mask"]),
        ("none", []),
    ],
)
def test_masks_and_key_options(masks: str, names: list[str]) -> None:
    with_key = Attention().to_onnx(masks=masks)
    assert [v.name for v in with_key.graph.input] == ["query", "value", "key", *names]
    without = Attention().to_onnx(masks=masks, key=False)
    assert [v.name for v in without.graph.input] == ["query", "value", *names]
    assert dims_of(without.graph.input[1]) == ["batch", "Tv", "dim"]


@pytest.mark.parametrize(
    ("dtype", "tensor", "weight"),
    [
        ("float16", TensorProto.FLOAT16, TensorProto.FLOAT16),
        ("bfloat16", TensorProto.BFLOAT16, TensorProto.BFLOAT16),
        ("float32", TensorProto.FLOAT, TensorProto.FLOAT),
        ("float64", TensorProto.DOUBLE, TensorProto.DOUBLE),
        ("mixed_float16", TensorProto.FLOAT16, TensorProto.FLOAT),
        ("mixed_bfloat16", TensorProto.BFLOAT16, TensorProto.FLOAT),
    ],
)
def test_float_types(dtype: str, tensor: int, weight: int) -> None:
    layer = Attention(use_scale=True, dtype=dtype)
    model = layer.to_onnx(return_attention_scores=True)
    for value in (*model.graph.input[:3], *model.graph.output):
        assert value.type.tensor_type.elem_type == tensor
    (scale,) = [entry for entry in model.graph.initializer if entry.name == "scale"]
    assert scale.data_type == weight


@pytest.mark.parametrize("number", [0.0, 1.0, 2.0, -1e9, 0.125])
def test_scale_is_an_initializer_of_its_own(number: float) -> None:
    """A user may edit it in the file: no other constant may share its storage."""
    layer = Attention(use_scale=True)
    layer.set_weights([number])
    model = layer.to_onnx()
    (scale,) = [entry for entry in model.graph.initializer if entry.name == "scale"]
    assert numpy_helper.to_array(scale) == np.float32(number)
    readers = [node for node in nodes_of(model.graph) if "scale" in node.input]
    # One in the main graph; bodies read what it makes, which tools know to rename.
    assert [node.op_type for node in readers] == ["Identity"]


def test_optional_inputs_are_overridable_initializers() -> None:
    layer = Attention(use_scale=True, dropout=0.5)
    layer.set_weights([0.5])
    model = layer.to_onnx(inputs="optional", scale="input", training=True)
    defaults = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    optional = ["query_mask", "value_mask", "scale", "training"]
    assert [v.name for v in model.graph.input] == ["query", "value", "key", *optional]
    np.testing.assert_array_equal(defaults["query_mask"], [[True]])
    np.testing.assert_array_equal(defaults["value_mask"], [[True]])
    assert defaults["scale"] == np.float32(0.5)
    assert not defaults["training"]
    required = layer.to_onnx(inputs="required", scale="input", training=True)
    names = {t.name for t in required.graph.initializer}
    assert not names & set(optional)


def test_fixed_dims() -> None:
    model = Attention().to_onnx(dims={"batch": 1, "dim": 64, "Tv": 7}, return_attention_scores=True)
    dims = {value.name: dims_of(value) for value in (*model.graph.input, *model.graph.output)}
    assert dims["query"] == [1, "Tq", 64]
    assert dims["value"] == [1, 7, "value_dim"]
    assert dims["key"] == [1, 7, 64]
    assert dims["output"] == [1, "Tq", "value_dim"]
    assert dims["attention_scores"] == [1, "Tq", 7]
    onnx.checker.check_model(model, full_check=True)
    without_key = Attention().to_onnx(key=False, dims={"dim": 8})
    assert dims_of(without_key.graph.output[0]) == ["batch", "Tq", 8]


@pytest.mark.parametrize(
    "layer", [Attention(), Attention(causal=True), Attention(score_mode="concat")]
)
@pytest.mark.parametrize("form", [{}, {"heads": True}, {"bias": True}])
def test_numbers_of_dense_files_have_32_bits(layer: Any, form: dict[str, bool]) -> None:
    """OpenVINO and tract compute shapes in 32 bits: more came out as sizes that no tensor has."""
    model = layer.to_onnx(schedule="dense", **form)
    tensors = [*model.graph.initializer]
    for node in nodes_of(model.graph):
        tensors += [attribute.t for attribute in node.attribute if attribute.HasField("t")]
    numbers = [numpy_helper.to_array(t) for t in tensors if t.data_type == TensorProto.INT64]
    assert numbers
    assert all(abs(int(number)) < 2**31 for array in numbers for number in array.reshape(-1))


def test_weights_that_are_not_finite_are_json(tmp_path: Path) -> None:
    """As strings: most JSON readers refuse a bare NaN, and with it all weights."""

    def no_number(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    scale = np.array([np.nan, np.inf, -np.inf, 0.1, -0.0], np.float32)
    layer = AdditiveAttention()
    layer.build(5)
    layer.set_weights([scale])
    path = layer.export(tmp_path / "m.onnx", scale="input")
    metadata = {entry.key: entry.value for entry in onnx.load_model(path).metadata_props}
    written = json.loads(metadata["onnx_attn.weights"], parse_constant=no_number)["scale"]
    assert written == ["NaN", "Infinity", "-Infinity", float(np.float32(0.1)), -0.0]
    (read,) = AdditiveAttention.load(path).get_weights()
    assert read.tobytes() == scale.tobytes()


def test_metadata_and_texts() -> None:
    layer = Attention(use_scale=True, causal=True, name="decoder")
    model = layer.to_onnx(return_attention_scores=True)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["onnx_attn.format"] == "1"
    assert json.loads(metadata["onnx_attn.config"])["name"] == "decoder"
    assert json.loads(metadata["onnx_attn.export"])["return_attention_scores"] is True
    assert model.producer_name == "onnx_attn"
    assert model.producer_version
    for word in ("scale * query @ key^T", "value_mask and causal", "[[True]] means no mask"):
        assert word in model.doc_string


def test_load_gives_layer_and_bytes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, (layer, options) in enumerate(files()):
        # Seven shares no factor with the options' periods: each value of each comes up.
        if number % 7:
            continue
        layer.set_weights([rng.uniform(-1, 1, w.shape) for w in layer.get_weights()])
        first = layer.export(tmp_path / "first.onnx", **options)
        loaded = type(layer).load(first)
        assert loaded.get_config() == layer.get_config()
        for ours, theirs in zip(loaded.get_weights(), layer.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        second = loaded.export(tmp_path / "second.onnx")
        assert second.read_bytes() == first.read_bytes(), ids((layer, options))


def test_loaded_layer_can_export_otherwise(tmp_path: Path) -> None:
    path = Attention(use_scale=True).export(tmp_path / "a.onnx", masks="none", opset=19)
    model = Attention.load(path).to_onnx(masks="value")
    assert model.opset_import[0].version == 19
    assert [v.name for v in model.graph.input][-1] == "value_mask"


@pytest.mark.parametrize(
    ("layer", "options", "word"),
    [
        (Attention(), {"masks": "some"}, "masks"),
        (Attention(), {"scale": "input"}, "use_scale"),
        (Attention(), {"training": True}, "dropout"),
        (Attention(), {"opset": 16}, "17"),
        (Attention(), {"opset": 22}, "21"),
        (Attention(), {"opset": "17"}, "opset"),
        (Attention(), {"dims": {"length": 3}}, "length"),
        (Attention(), {"dims": {"batch": 0}}, "positive"),
        (Attention(), {"dims": {"batch": 2, "value_mask_batch": 3}}, "value_mask_batch"),
        (Attention(), {"key": False, "dims": {"dim": 2, "value_dim": 3}}, "value_dim"),
        (Attention(), {"inputs": "maybe"}, "inputs"),
        (Attention(), {"schedule": "fastest"}, "schedule"),
        (Attention(), {"mask": "both"}, "options"),
        (Attention(), {"key": 1}, "key"),
        (AdditiveAttention(), {}, "build"),
    ],
)
def test_conflicting_and_unknown_options(layer: Any, options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        layer.to_onnx(**options)


def test_export_never_leaves_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(InputError):
        Attention().export(path, masks="nonsense")
    assert path.read_bytes() == b"old"
    with pytest.raises(ModelError, match="cannot be written"):
        Attention().export(tmp_path / "missing" / "model.onnx")
    with pytest.raises(ModelError, match="cannot be written"):
        Attention().export(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.onnx"]


def edited(path: Path, **changes: str | None) -> Path:
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    for name, value in changes.items():
        metadata[f"onnx_attn.{name}"] = value
    del model.metadata_props[:]
    for name, value in metadata.items():
        if value is not None:
            model.metadata_props.add(key=name, value=value)
    onnx.save(model, path)
    return path


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ModelError, match=r"model\.onnx"):
        Attention.load(path)
    path.write_bytes(b"not an onnx file at all")
    with pytest.raises(ModelError, match=r"model\.onnx"):
        Attention.load(path)
    whole = Attention(use_scale=True).export(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"model\.onnx"):
        Attention.load(path)
    for changes, word in (
        ({"format": "2"}, "format 2"),
        ({"format": None}, "not one that onnx_attn wrote"),
        ({"format": "one"}, "damaged"),
        ({"config": "{}"}, "metadata was changed since the export"),
        ({"config": "{}", "metadata_digest": None}, "damaged"),
        ({"config": "nonsense", "metadata_digest": None}, "damaged"),
        ({"export": None, "metadata_digest": None}, "damaged"),
    ):
        Attention(use_scale=True).export(path)
        with pytest.raises(ModelError, match=word):
            Attention.load(edited(path, **changes))
    AdditiveAttention(use_scale=False).export(path)
    with pytest.raises(InputError, match=r"AdditiveAttention\.load"):
        Attention.load(path)
