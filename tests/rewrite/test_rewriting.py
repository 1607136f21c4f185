"""rewrite_model: what it gives back, what it refuses and why, what it proves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from attention_spellings import DIM, Writer, attention
from model_pairs import Runner, feeds_of, small_blocks, walked, worst
from onnx_attn import InputError, ModelError, OnnxAttnError
from onnx_attn.rewrite import rewrite_model, splice
from onnx_attn.rewrite.external import write_result
from onnx_attn.rewrite.normal import read_source
from onnx_attn.rewrite.rewriting import Builder

__all__ = ["small_blocks"]


def test_result_says_what_was_done() -> None:
    result = rewrite_model(attention(order="trilu"), keep_all=True)
    assert result.model is not None
    onnx.checker.check_model(result.model, full_check=True)
    report = json.loads(json.dumps(result.report()))
    assert set(report) >= {"sites", "max_difference", "before", "after"}
    (site,) = report["sites"]
    assert site == {
        "name": "attention/Softmax",
        "rewritten": True,
        "reason": None,
        "mask": "mask by batch, queries, keys",
    }
    assert report["max_difference"] == 1e-4
    assert 0 <= report["difference"] <= 1e-5
    assert any("an empty row" in words for words in report["proven_on"])
    assert report["before"]["bytes"] > 0
    assert report["after"]["nodes"] > report["before"]["nodes"]


def test_user_inputs_are_part_of_the_proof() -> None:
    model = attention()
    result = rewrite_model(model, keep_all=True, inputs=feeds_of(model, 2, 170, "tails"))
    assert result.proof is not None
    assert result.proof.samples[0] == "the inputs given"


def test_a_model_of_several_layers_shares_its_masks() -> None:
    w = Writer()
    x = w.input("x", ir.DataType.FLOAT, "batch", "seq", DIM)
    flags = w.input("mask", ir.DataType.INT64, "batch", "seq")
    out = x
    for layer in range(3):
        q, k, v = (w.op.MatMul(out, w.weight(DIM, DIM)) for _ in range(3))
        scores = w.op.MatMul(q, w.op.Transpose(k, perm=[0, 2, 1]))
        shape = w.op.Shape(scores)
        by_key = w.op.Expand(w.op.Cast(w.op.Unsqueeze(flags, [1]), to=9), shape)
        scores = w.op.Add(scores, w.op.Where(by_key, w.constant(0.0), w.constant(-1e9)))
        out = w.op.MatMul(w.op.Softmax(scores, axis=-1, _name=f"layer {layer}"), v)
    model = w.model(out=(out, ("batch", "seq", DIM)))
    result = rewrite_model(model, keep_all=True)
    assert [site.name for site in result.sites] == [f"layer {n}" for n in range(3)]
    assert result.rewritten == 3
    assert result.model is not None
    ifs = [node for node in result.model.graph.node if node.op_type == "If"]
    assert len(ifs) == 4  # one for the facts of the mask they share
    assert not any(node.op_type == "Where" for node in result.model.graph.node)


# Refusals


def _site(write: Any) -> str | None:
    """The reason of the one site of a model: write(w, scores, v) -> output."""
    w = Writer()
    x = w.input("x", ir.DataType.FLOAT, "batch", "seq", DIM)
    q, k, v = (w.op.MatMul(x, w.weight(DIM, DIM)) for _ in range(3))
    scores = w.op.MatMul(q, w.op.Transpose(k, perm=[0, 2, 1]))
    model = w.model(out=(write(w, scores, v), ("batch", "seq", None)))
    (site,) = Builder(read_source(model), walk_from=1).sites
    return site.reason


def _softmax(w: Writer, scores: Any, v: Any) -> Any:
    return w.op.MatMul(w.op.Softmax(scores, axis=-1), v)


REFUSALS = {
    "Tanh": lambda w, s, v: _softmax(w, w.op.Tanh(s), v),
    "over axis 1": lambda w, s, v: w.op.MatMul(w.op.Softmax(s, axis=1), v),
    "is ReduceMean": lambda w, s, v: _softmax(
        w, w.op.Sub(s, w.op.ReduceMean(s, axes=[2], keepdims=1)), v
    ),
    "between its Softmax and the product with the value is Mul": lambda w, s, v: w.op.MatMul(
        w.op.Mul(w.op.Softmax(s, axis=-1), w.op.MatMul(v, w.op.Transpose(v, perm=[0, 2, 1]))), v
    ),
    "not by one product alone": lambda w, s, v: _twice(w, s, v),
    "scores are no product": lambda w, _, v: _softmax(w, w.op.Relu(v), w.weight(DIM, DIM)),
    "are FLOAT16": lambda w, s, v: w.op.Cast(
        w.op.MatMul(w.op.Softmax(w.op.Cast(s, to=10), axis=-1), w.op.Cast(v, to=10)), to=1
    ),
    "cast to FLOAT": lambda w, s, v: _softmax(w, w.op.Cast(w.op.Cast(s, to=10), to=1), v),
    "hides nothing": lambda w, s, v: _softmax(
        w, w.op.Where(w.op.Greater(v, w.constant(0.0)), s, w.constant(-5.0)), v
    ),
    "depends on its scores": lambda w, s, v: _softmax(
        w, w.op.Where(w.op.Greater(s, w.constant(0.0)), s, w.constant(-1e9)), v
    ),
    "Concat": lambda w, s, v: _softmax(w, w.op.Concat(s, s, axis=2), w.op.Concat(v, v, axis=1)),
    "scores are quantised": lambda w, s, v: _softmax(
        w,
        w.op.DequantizeLinear(
            w.op.QuantizeLinear(s, w.constant(0.1), w.constant(0, np.uint8)),
            w.constant(0.1),
            w.constant(0, np.uint8),
        ),
        v,
    ),
}


def _twice(w: Writer, s: Any, v: Any) -> Any:
    weights = w.op.Softmax(s, axis=-1)
    return w.op.Add(w.op.MatMul(weights, v), w.op.ReduceSum(weights, [2], keepdims=1))


@pytest.mark.parametrize("words", REFUSALS)
def test_every_refusal_has_its_reason(words: str) -> None:
    reason = _site(REFUSALS[words])
    assert reason is not None
    assert words in reason


def test_weights_that_are_an_output_stay() -> None:
    result = rewrite_model(attention(outputs=("out", "weights")), keep_all=True)
    assert result.model is None
    assert result.sites[0].reason == "its weights are an output of the model"


def test_attention_in_a_body_stays() -> None:
    inner = attention()
    for value in inner.graph.input:
        inner.graph.node.add(op_type="Identity", input=[value.name], output=[f"{value.name}_seen"])
    branch = onnx.GraphProto()
    branch.CopyFrom(inner.graph)
    inputs = list(branch.input)
    del branch.input[:]
    del branch.initializer[:]
    condition = onnx.helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, [])
    node = onnx.helper.make_node(
        "If", ["condition"], ["result"], then_branch=branch, else_branch=branch
    )
    out = onnx.helper.make_tensor_value_info("result", 1, ["batch", "seq", DIM])
    graph = onnx.helper.make_graph(
        [node], "if", [condition, *inputs], [out], initializer=list(inner.graph.initializer)
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    sites = Builder(read_source(model), walk_from=1).sites
    assert {site.reason for site in sites} == {"it is inside the body of an If, Loop or Scan"}
    assert len({site.name for site in sites}) == 2


# Traps


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("batches", [(1, 3, 3), (3, 1, 1), (3, 3, 1), (1, 1, 3), (3, 1, 3)])
def test_batches_that_broadcast(batches: tuple[int, int, int]) -> None:
    w = Writer()
    q, k, v = (
        w.input(name, ir.DataType.FLOAT, f"batch of {name}", 2, f"length of {name}", 4)
        for name in ("q", "k", "v")
    )
    scores = w.op.MatMul(q, w.op.Transpose(k, perm=[0, 1, 3, 2]))
    model = w.model(out=(_softmax(w, scores, v), (None, 2, None, 4)))
    random = np.random.default_rng(0)
    feeds = {
        name: random.standard_normal((batch, 2, 20, 4)).astype(np.float32)
        for name, batch in zip("qkv", batches, strict=True)
    }
    assert worst(Runner(model)(feeds), Runner(walked(model))(feeds)) <= 1e-5


def test_names_that_collide() -> None:
    model = attention()
    rewritten = walked(model)
    taken = [name for node in rewritten.graph.node for name in node.output if "attention" in name]
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.ones((1, 1, 1), np.float32), taken[0])
    )
    last = model.graph.node[-1]
    last.output[0] = "before"
    model.graph.node.add(op_type="Mul", input=["before", taken[0]], output=["out"], name=taken[1])
    again = walked(model)
    onnx.checker.check_model(again, full_check=True)
    feeds = feeds_of(model, 2, 20, "tails")
    assert worst(Runner(model)(feeds), Runner(again)(feeds)) <= 1e-5


def test_the_default_domain_by_its_other_name() -> None:
    model = attention()
    model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node:
        node.domain = "ai.onnx"
    assert rewrite_model(model, keep_all=True).rewritten == 1


def test_attention_in_a_function() -> None:
    inner = attention(mask=None)
    function = onnx.helper.make_function(
        "mine",
        "Attend",
        [value.name for value in inner.graph.input],
        ["out"],
        [*_constants(inner), *inner.graph.node],
        list(inner.opset_import),
    )
    node = onnx.helper.make_node("Attend", ["x"], ["out"], domain="mine")
    graph = onnx.helper.make_graph([node], "g", inner.graph.input, inner.graph.output)
    model = onnx.helper.make_model(
        graph,
        functions=[function],
        opset_imports=[*inner.opset_import, onnx.helper.make_opsetid("mine", 1)],
        ir_version=8,
    )
    assert rewrite_model(model, keep_all=True).rewritten == 1


def _constants(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [
        onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in model.graph.initializer
    ]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_weights_in_a_file_of_their_own_stay_there(tmp_path: Path, elsewhere: bool) -> None:
    model, path = attention(), tmp_path / "model.onnx"
    lifted = ir.from_proto(model)
    from onnx_ir.passes import common as passes

    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(lifted)
    ir.save(lifted, path, external_data="weights.bin", size_threshold_bytes=100)
    weights = (tmp_path / "weights.bin").read_bytes()
    assert weights
    result = rewrite_model(path, keep_all=True)
    assert result.model is not None
    folder = tmp_path / "other" if elsewhere else tmp_path
    folder.mkdir(exist_ok=True)
    out = write_result(result.model, path, folder / "out.onnx")
    assert (folder / "weights.bin").read_bytes() == weights
    assert len(out.read_bytes()) < result.after["bytes"]  # pyright: ignore
    feeds = feeds_of(model, 2, 200, "tails")
    assert worst(Runner(model)(feeds), Runner(str(out))(feeds)) <= 1e-5
    if elsewhere:
        (folder / "weights.bin").unlink()
        (folder / "weights.bin").write_bytes(b"another's")
        with pytest.raises(ModelError, match="in the way"):
            write_result(result.model, path, folder / "again.onnx")
        assert not (folder / "again.onnx").exists()


def test_a_proto_without_its_weight_file_is_refused(tmp_path: Path) -> None:
    lifted = ir.from_proto(attention())
    from onnx_ir.passes import common as passes

    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(lifted)
    ir.save(lifted, tmp_path / "m.onnx", external_data="w.bin", size_threshold_bytes=100)
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    with pytest.raises(InputError, match="path"):
        rewrite_model(proto)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"w\.bin"):
        rewrite_model(tmp_path / "m.onnx")


# Proof and race


def test_the_site_to_blame_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    w = Writer()
    out = w.input("x", ir.DataType.FLOAT, "batch", "seq", DIM)
    for layer in range(5):
        q, k, v = (w.op.MatMul(out, w.weight(DIM, DIM)) for _ in range(3))
        scores = w.op.MatMul(q, w.op.Transpose(k, perm=[0, 2, 1]))
        out = w.op.MatMul(w.op.Softmax(scores, axis=-1, _name=f"layer {layer}"), v)
    model = w.model(out=(out, ("batch", "seq", DIM)))
    right = splice.Splicer._either

    def wrong(self: Any, site: Any, *rest: Any) -> Any:
        found = right(self, site, *rest)
        return self.op.Mul(found, 1.001) if site.name == "layer 3" else found

    monkeypatch.setattr(splice.Splicer, "_either", wrong)
    with pytest.raises(OnnxAttnError, match="'layer 3'"):
        rewrite_model(model, keep_all=True)


def test_a_limit_below_rounding_is_taken_at_its_word() -> None:
    model = attention(mask="old bert", order="trilu", large=5.0)
    with pytest.raises(OnnxAttnError, match="attention/Softmax"):
        rewrite_model(model, keep_all=True, max_difference=1e-12)


def test_the_race_keeps_or_leaves_with_figures() -> None:
    model = attention(order="trilu")
    result = rewrite_model(model, at={"batch": 1, "seq": 400})
    assert any("times the speed" in note and "seq=400" in note for note in result.notes)
    assert result.before["milliseconds"] > 0
    assert result.before["memory_growth_bytes"] >= 0
    if result.model is None:
        assert "no clear gain" in (result.sites[0].reason or "")
        assert result.after is None
    else:
        assert result.after is not None
        assert result.after["load_seconds"] > 0


def test_lengths_known_to_be_short_are_left_alone() -> None:
    model = attention()
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = 20
    assert (rewrite_model(model).sites[0].reason or "").startswith("too short to gain: 20")
    assert rewrite_model(model, keep_all=True).rewritten == 1


# Bad input


def test_bad_arguments() -> None:
    model = attention()
    with pytest.raises(InputError, match=r"no input has a dim named 'sequence'.*batch, seq"):
        rewrite_model(model, at={"sequence": 4})
    with pytest.raises(InputError, match="positive"):
        rewrite_model(model, at={"seq": 0})
    with pytest.raises(InputError, match="max_difference"):
        rewrite_model(model, max_difference=0)
    with pytest.raises(InputError, match="mask is missing"):
        rewrite_model(model, inputs={"x": np.zeros((1, 4, DIM), np.float32)})
    feeds = feeds_of(model, 2, 4, "none")
    with pytest.raises(InputError, match="x must be float32"):
        rewrite_model(model, inputs=feeds | {"x": feeds["x"].astype(np.float64)})
    with pytest.raises(InputError, match="no input 'y'"):
        rewrite_model(model, inputs=feeds | {"y": feeds["x"]})
    with pytest.raises(InputError, match="does not run on them"):
        rewrite_model(model, inputs=feeds | {"mask": np.ones((2, 5), np.int64)})


def test_an_original_that_does_not_run_is_refused_with_the_words() -> None:
    model = attention()
    node = model.graph.node.add(op_type="Reshape", input=["x", "never"], output=["gone"])
    node.name = "impossible"
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array([3, 5, 7], np.int64), "never")
    )
    model.graph.output.append(onnx.helper.make_tensor_value_info("gone", 1, [3, 5, 7]))
    with pytest.raises(ModelError, match="impossible"):
        rewrite_model(model)
