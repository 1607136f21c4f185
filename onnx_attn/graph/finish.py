"""The last work on a graph: constants where they are used, nothing unused, names that tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript import optimizer

from .guards import RULE_KEY


def finish(model: ir.Model, weights: Iterable[ir.Value]) -> ir.Model:
    """Constants where they are used, nothing unused, and names that tell what a value is."""
    _settle_types(model)
    optimizer.fold_constants(
        model,
        onnx_shape_inference=False,
        should_fold=_is_cast_of_constants,
    )
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.LiftSubgraphInitializersToMainGraphPass()(model)
    passes.DeduplicateInitializersPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    _weights_by_a_node(model, weights)
    _constants_into_bodies(model)
    _rename(model)
    _leave_types_to_inference(model)
    return model


def _is_cast_of_constants(node: ir.Node) -> bool:
    return node.op_type == "Cast" and all(v and v.producer() for v in node.inputs)


def _weights_by_a_node(model: ir.Model, weights: Iterable[ir.Value]) -> None:
    """Weights that bodies read as what a node makes of them.

    `onnx.compose.add_prefix` renames that in bodies too, an initializer it does not.
    """
    for weight in weights:
        if all(use.node.graph is model.graph for use in weight.uses()):
            continue
        node = ir.Node("", "Identity", [weight])
        (copied,) = node.outputs
        copied.name = f"{weight.name}_of_layer"
        for use in list(weight.uses()):
            if use.node is not node:
                use.node.replace_input_with(use.idx, copied)
        model.graph.insert_before(model.graph[0], node)


def _constants_into_bodies(model: ir.Model) -> None:
    """Each constant as a node of every body that uses it: bodies then stand on their own.

    `onnx.compose.add_prefix` does not rename initializers in bodies, and `onnx.utils.extract_model`
    leaves out those that only bodies use.
    """
    for name, constant in list(model.graph.initializers.items()):
        del model.graph.initializers[name]
        constant.name = _constant_name(constant)
        homes: dict[ir.Graph, ir.Value] = {}
        for use in list(constant.uses()):
            home = use.node.graph
            if home is model.graph or not isinstance(home, ir.Graph):
                continue
            if home not in homes:
                tensor = constant.const_value
                assert tensor is not None
                node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)])
                node.outputs[0].name = constant.name
                home.insert_before(home[0], node)
                homes[home] = node.outputs[0]
            use.node.replace_input_with(use.idx, homes[home])
        if constant.uses():
            while constant.name in model.graph.initializers:
                constant.name += "_"
            model.graph.register_initializer(constant)


def _settle_types(model: ir.Model) -> None:
    """CastLike as Cast: the types are known here, and a cast of a constant can be folded."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "CastLike":
            like = node.inputs[1]
            assert like is not None
            assert like.dtype is not None
            node.op_type = "Cast"
            node.attributes["to"] = ir.AttrInt64("to", like.dtype)
            node.resize_inputs(1)


def _rename(model: ir.Model) -> None:
    """Values by what they hold, each name once in the whole model; nodes by rule or operator."""
    declared = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    fresh = fresh_names(declared)

    for value in list(model.graph.initializers.values()):
        value.name = fresh(value.name or "")
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for output in node.outputs:
            if output.name not in declared:
                # Builder and inliner put paths and "v_" in front of the name we chose.
                output.name = fresh((output.name or "").rsplit("/", 1)[-1].removeprefix("v_"))
        node.name = fresh(node.metadata_props.get(RULE_KEY, node.op_type))
        node.metadata_props.clear()


def fresh_names(taken: Iterable[str | None]) -> Callable[[str], str]:
    """What makes of a name one that is neither `taken` nor was made before: name, name_2, .."""
    used, counts = set(taken), Counter[str]()

    def fresh(name: str) -> str:
        candidate = name
        while candidate in used:
            counts[name] += 1
            candidate = f"{name}_{counts[name] + 1}"
        used.add(candidate)
        return candidate

    return fresh


def _leave_types_to_inference(model: ir.Model) -> None:
    """No types of values between nodes: they follow from the declared ones, and are a quarter."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for output in node.outputs:
            if not output.is_graph_output():
                output.type = output.shape = None


def _constant_name(value: ir.Value) -> str:
    """What it holds, as an identifier: onnx's parser reads no other name of a tensor."""
    assert value.const_value is not None
    array = value.const_value.numpy()
    exact = "d" if array.dtype.kind in "iub" else "g"
    numbers = "_".join(f"{number:{exact}}" for number in array.reshape(-1)[:4])
    kind = "" if array.dtype.kind == "f" else f"_{array.dtype}"
    plain = numbers.replace("-", "minus_").replace("+", "").replace(".", "_")
    return f"constant_{plain}{kind}"
