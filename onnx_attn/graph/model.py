"""A layer's whole graph: inputs, casts, one schedule, the last checks, outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import onnx_ir as ir
from onnxscript import GraphBuilder

from ..configuration import IR_OF_OPSET, ExportOptions, LayerConfig
from ..contract import LayerFile, TensorSpec
from .builder import OpBuilder, Results
from .finish import finish
from .guards import checked_scalar, of_features
from .heads import as_rows, folded, unfolded
from .schedules.auto import auto
from .schedules.biased import BIASED
from .schedules.dense import dense
from .schedules.fused import DOMAIN, fused
from .schedules.tiled import tiled
from .steps import AXES, Steps, Tensors

SCHEDULES: Mapping[str, Callable[[OpBuilder, Steps], Results]] = {
    "auto": auto,
    "dense": dense,
    "tiled": tiled,
    "fused": fused,
}

ONNX_TYPES = {
    "bool": ir.DataType.BOOL,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "float32": ir.DataType.FLOAT,
    "float64": ir.DataType.DOUBLE,
}


def build_model(file: LayerFile) -> ir.Model:
    """The flat model of a layer, with its weights as trained values.

    Same arguments, same model: nothing depends on the run. Metadata and texts are the exporter's.
    """
    config, options, weights, specs = file.config, file.options, file.weights, file.contract
    graph = ir.Graph(
        name="attention" if config.layer == "Attention" else "additive_attention",
        inputs=[],
        outputs=[],
        nodes=[],
        opset_imports={"": options.opset} | ({DOMAIN: 1} if options.needs_onnxruntime else {}),
    )
    builder = GraphBuilder(graph)
    given = {
        name: builder.input(name, ONNX_TYPES[spec.dtype], ir.Shape(spec.dims))
        for name, spec in specs.inputs.items()
    }
    constants = [name for name in config.weight_names if name not in given]
    for name in constants:
        kind = ONNX_TYPES[config.floats.weight]
        # Without its shape, or the builder would fold its size: see `Steps.tied`.
        given[name] = builder.input(name, kind)
    op = OpBuilder(builder.op)
    scalars = {
        name: checked_scalar(op, given[name], name)
        for name, spec in specs.inputs.items()
        if not spec.dims
    }
    elements = {name: weights[name].size for name in constants}
    steps = _steps(config, options, given | scalars, elements)
    schedule = SCHEDULES[options.schedule]
    if options.bias:
        results = BIASED[options.schedule](op, as_rows(steps) if options.heads else steps)
        if options.heads:
            results = unfolded(op, steps.tensors.query, results)
    elif options.heads:
        results = unfolded(
            op, steps.tensors.query, schedule(op, of_features(op, folded(op, steps)))
        )
    else:
        results = schedule(op, of_features(op, steps))
    for spec, value in zip(specs.outputs.values(), results, strict=True):
        result = value
        if steps.compute != ONNX_TYPES[spec.dtype]:
            result = cast("ir.Value", op.Cast(value, to=ONNX_TYPES[spec.dtype]))
        _declare(result, spec)
        builder.add_output(result, spec.name)
    model = ir.Model(graph, ir_version=IR_OF_OPSET[options.opset])
    finish(model, [given[name] for name in constants])
    # Last, so that no pass takes a default for a constant, or a weight for another constant.
    values = {name: weights[name] for name in constants}
    for name, spec in specs.inputs.items():
        if spec.optional:
            assert spec.default is not None
            values[name] = spec.default
    for name, array in values.items():
        given[name].const_value = ir.tensor(array, name=name)
        graph.register_initializer(given[name])
    for name in constants:
        given[name].shape = ir.Shape(weights[name].shape)
        graph.inputs.remove(given[name])
    return model


def _declare(value: ir.Value, spec: TensorSpec) -> None:
    value.name = spec.name
    value.dtype = ONNX_TYPES[spec.dtype]
    value.shape = ir.Shape(spec.dims)


def _steps(
    config: LayerConfig,
    options: ExportOptions,
    given: dict[str, ir.Value],
    elements: Mapping[str, int],
) -> Steps:
    """The layer's steps on the given values, and the sizes that are fixed in the file.

    `elements`: how many each trained weight has.
    """
    found = Tensors(**({"key": given["value"]} | given))
    known = {dim: size for dim, size in options.sizes.items() if dim in (*AXES, "heads")}
    weights = tuple((given[name], count) for name, count in elements.items())
    return Steps(config, found, options.return_attention_scores, known, weights, options.heads)
