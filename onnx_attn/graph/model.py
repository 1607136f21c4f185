"""A layer's whole graph: inputs, casts, one schedule, the last checks, outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript import GraphBuilder, optimizer

from ..configuration import IR_OF_OPSET, LayerConfig, LayerFile, TensorSpec
from .schedules.auto import auto
from .schedules.dense import dense
from .schedules.fused import DOMAIN, fused
from .schedules.tiled import tiled
from .steps import Steps, Tensors

SCHEDULES: Mapping[str, Callable[..., tuple[ir.Value, ...]]] = {
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
        given[name] = builder.input(name, kind, ir.Shape(weights[name].shape))
    op = builder.op
    steps = Steps(config, _tensors(op, config, given))
    results = SCHEDULES[options.schedule](op, steps, options.return_attention_scores)
    for spec, result in zip(specs.outputs.values(), results, strict=True):
        if steps.compute != ONNX_TYPES[spec.dtype]:
            result = op.Cast(result, to=ONNX_TYPES[spec.dtype])
        _declare(result, spec)
        builder.add_output(result, spec.name)
    model = _finish(ir.Model(graph, ir_version=IR_OF_OPSET[options.opset]))
    # Last, so that no pass takes a default for a constant, or a weight for another constant.
    values = {name: weights[name] for name in constants}
    for name, spec in specs.inputs.items():
        if spec.optional:
            values[name] = spec.default
    for name, array in values.items():
        given[name].const_value = ir.tensor(array, name=name)
        graph.register_initializer(given[name])
    for name in constants:
        graph.inputs.remove(given[name])
    return model


def _declare(value: ir.Value, spec: TensorSpec) -> None:
    value.name = spec.name
    value.dtype = ONNX_TYPES[spec.dtype]
    value.shape = ir.Shape(spec.dims)


def _tensors(op, config: LayerConfig, given: dict[str, ir.Value]) -> Tensors:
    """The given values, floats cast to the type of the arithmetic."""
    compute = ONNX_TYPES[config.floats.compute]

    def arithmetic(value: ir.Value) -> ir.Value:
        if value.dtype in (ir.DataType.BOOL, compute):
            return value
        return op.Cast(value, to=compute, _outputs=[f"{value.name}_{config.floats.compute}"])

    values = {name: arithmetic(value) for name, value in given.items()}
    values.setdefault("key", values["value"])
    return Tensors(**values)


def _finish(model: ir.Model) -> ir.Model:
    """Constants as initializers, nothing unused, and names that tell what a value is."""
    _settle_types(model)
    optimizer.fold_constants(
        model,
        onnx_shape_inference=False,
        should_fold=lambda node: (
            node.op_type == "Cast"
            and all(v is not None and v.producer() is not None for v in node.inputs)
        ),
    )
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.LiftSubgraphInitializersToMainGraphPass()(model)
    passes.DeduplicateInitializersPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    _rename(model)
    _leave_types_to_inference(model)
    return model


def _settle_types(model: ir.Model) -> None:
    """CastLike as Cast: the types are known here, and a cast of a constant can be folded."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "CastLike":
            node.op_type = "Cast"
            node.attributes["to"] = ir.AttrInt64("to", node.inputs[1].dtype)
            node.resize_inputs(1)


def _rename(model: ir.Model) -> None:
    """Values by what they hold, each name once in the whole model; nodes by rule or operator."""
    declared = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    used = set(declared)
    constants = {
        value: _constant_name(value)
        for value in model.graph.initializers.values()
        if value.name not in declared
    }

    def fresh(name: str) -> str:
        candidate, count = name, 1
        while candidate in used:
            count += 1
            candidate = f"{name}_{count}"
        used.add(candidate)
        return candidate

    for value, name in constants.items():
        value.name = fresh(name)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for output in node.outputs:
            if output.name not in declared:
                # Builder and inliner put paths and "v_" in front of the name we chose.
                output.name = fresh(output.name.rsplit("/", 1)[-1].removeprefix("v_"))
        if "_must_" in (node.name or ""):
            node.name = fresh(node.name.rsplit("/", 1)[-1])
        else:
            node.name = fresh(node.op_type)
        node.metadata_props.clear()


def _leave_types_to_inference(model: ir.Model) -> None:
    """No types of values between nodes: they follow from the declared ones, and are a quarter."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for output in node.outputs:
            if not output.is_graph_output():
                output.type = output.shape = None


def _constant_name(value: ir.Value) -> str:
    array = value.const_value.numpy()
    numbers = "_".join(f"{number:g}" for number in array.reshape(-1)[:4].astype(float))
    kind = "" if array.dtype.kind == "f" else f"_{array.dtype}"
    return f"constant_{numbers}{kind}".replace("-", "minus_").replace("+", "")
