"""Tools that rewrite a graph: simplifiers, onnx's composing, extracting, inferring, printing."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from .cases import SMALL, answer
from .tool import Array, Call, Case, Product


def slim(case: Case, folder: Path) -> Product:
    """onnxslim with its defaults."""
    del folder
    return Product(_package("onnxslim").slim(case.load()), case.calls)


def sim(case: Case, folder: Path) -> Product:
    """onnxsim with its defaults."""
    del folder
    made, right = _package("onnxsim").simplify(case.load())
    if not right:
        raise ValueError("onnxsim says that its own check failed")
    return Product(made, case.calls)


def optimizer(case: Case, folder: Path) -> Product:
    """onnxoptimizer with its default passes."""
    del folder
    return Product(_package("onnxoptimizer").optimize(case.load()), case.calls)


def prefix(case: Case, folder: Path) -> Product:
    """onnx.compose.add_prefix."""
    del folder
    calls = tuple(_renamed(call, "a_") for call in case.calls)
    return Product(_checked(compose.add_prefix(case.load(), "a_")), calls)


def merge_twice(case: Case, folder: Path) -> Product:
    """Two copies of the file in one model, each with its prefix and its inputs."""
    del folder
    made = compose.merge_models(case.load(), case.load(), io_map=[], prefix1="a_", prefix2="b_")
    calls: list[Call] = []
    for call in case.calls:
        first = _renamed(call, "a_")
        feeds = {
            name: -array if array.dtype == np.float32 else array
            for name, array in call.feeds.items()
        }
        second = _renamed(Call(feeds, (answer(feeds, case.causal),)), "b_")
        calls.append(Call(first.feeds | second.feeds, first.wanted + second.wanted))
    return Product(_checked(made), tuple(calls))


def behind(case: Case, folder: Path) -> Product:
    """The file behind an encoder of fixed sizes: query, value and key are its outputs."""
    del folder
    names = ("query", "value", "key")
    kernels = {name: _kernel(seed) for seed, name in enumerate(names)}
    encoder = _neighbour("words", {f"{name}_made": kernels[name] for name in names}, case)
    io_map = [(f"{name}_made", name) for name in names]
    made = compose.merge_models(encoder, case.load(), io_map=io_map)
    call = case.calls[0]
    words = call.feeds["query"]
    masks = {name: array for name, array in call.feeds.items() if name not in names}
    inner = masks | {name: words.astype(np.float64) @ kernels[name] for name in names}
    wanted = (answer(inner, case.causal),)
    return Product(_checked(made), (Call({"words": words} | masks, wanted),))


def before(case: Case, folder: Path) -> Product:
    """The file before a model of fixed sizes that takes its output."""
    del folder
    kernel = _kernel(3)
    decoder = _neighbour("hidden", {"logits": kernel}, case)
    made = compose.merge_models(case.load(), decoder, io_map=[("output", "hidden")])
    call = case.calls[0]
    return Product(_checked(made), (Call(call.feeds, (call.wanted[0] @ kernel,)),))


def extract(case: Case, folder: Path) -> Product:
    """onnx.utils.extract_model from the file's inputs to its output."""
    import onnx.utils

    made = folder / "extracted.onnx"
    onnx.utils.extract_model(str(case.path), str(made), list(case.calls[0].feeds), ["output"])
    return Product(made, case.calls)


def infer(case: Case, folder: Path) -> Product:
    """Strict shape inference with data propagation; the result is run."""
    del folder
    model = case.load()
    made = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )
    return Product(_checked(made), case.calls)


def text(case: Case, folder: Path) -> Product:
    """onnx.printer and onnx.parser, there and back."""
    del folder
    from onnx import parser, printer

    return Product(_checked(parser.parse_model(printer.to_text(case.load()))), case.calls)


def _package(name: str) -> Any:
    # Packages of the extra `tools`, without types.
    return import_module(name)


def _checked(model: onnx.ModelProto) -> onnx.ModelProto:
    # The checker knows no operators of ONNX Runtime's own domain, but skips them.
    onnx.checker.check_model(model)
    return model


def _renamed(call: Call, prefix: str) -> Call:
    return Call({prefix + name: array for name, array in call.feeds.items()}, call.wanted)


def _kernel(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((8, 8)).astype(np.float32) / 4


def _neighbour(source: str, kernels: dict[str, Array], case: Case) -> onnx.ModelProto:
    """A model of fixed sizes: `source` times each kernel, of the case's opset and IR."""
    shape = [SMALL["batch"], SMALL["Tq"], SMALL["dim"]]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", [source, f"{name}_kernel"], [name], name=f"{name}_matmul")
            for name in kernels
        ],
        "neighbour",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in kernels],
        [numpy_helper.from_array(kernel, f"{name}_kernel") for name, kernel in kernels.items()],
    )
    ours = case.load()
    return helper.make_model(graph, opset_imports=ours.opset_import, ir_version=ours.ir_version)
