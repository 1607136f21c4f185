"""The last work on a graph: constants where they are used, nothing unused, names that tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript import optimizer

from .builder import chosen_name
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
    _follow_what_bodies_read(model.graph)
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


def _follow_what_bodies_read(graph: ir.Graph) -> None:
    """What only bodies read of the main graph, as something that the nodes around them take.

    Tools that go from a node to its inputs, as `onnx.utils.extract_model` does, would leave it out.
    An empty part of its shape is joined to the shape of what the node around the body takes: no
    data moves.
    """
    followed = _nodes_before(output.producer() for output in graph.outputs)
    for node in reversed(list(graph)):
        if node not in followed:
            continue
        lost = [
            value
            for value in _read_by_bodies(node)
            if (producer := value.producer()) is not None
            and producer.graph is graph
            and producer not in followed
        ]
        if not lost:
            continue
        first = node.inputs[0]
        assert first is not None
        nothing = [ir.AttrInt64("start", 0), ir.AttrInt64("end", 0)]
        parts = [ir.Node("", "Shape", [value], nothing) for value in lost]
        if node.op_type != "If":  # whose condition is one bool
            parts.insert(0, ir.Node("", "Shape", [first]))
        whole = ir.Node(
            "", "Concat", [part.outputs[0] for part in parts], [ir.AttrInt64("axis", 0)]
        )
        allowzero = [ir.AttrInt64("allowzero", 1)]
        view = ir.Node("", "Reshape", [first, whole.outputs[0]], allowzero)
        for part in parts:
            part.outputs[0].name = "nothing_of_it" if part.attributes else "its_shape"
        whole.outputs[0].name, view.outputs[0].name = "shape_as_it_was", "as_it_was"
        graph.insert_before(node, [*parts, whole, view])
        node.replace_input_with(0, view.outputs[0])
        followed |= _nodes_before([view])


def _nodes_before(nodes: Iterable[ir.Node | None]) -> set[ir.Node]:
    """These nodes and all that they are computed with, bodies aside."""
    found, waiting = set[ir.Node](), list(nodes)
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [value.producer() for value in node.inputs if value is not None]
    return found


def _read_by_bodies(node: ir.Node) -> list[ir.Value]:
    """What the bodies of a node read, each value once."""
    read: dict[ir.Value, None] = {}
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            body = attribute.as_graph()
            for inner in ir.traversal.RecursiveGraphIterator(body):
                read |= dict.fromkeys(value for value in inner.inputs if value is not None)
            read |= dict.fromkeys(body.outputs)
    return list(read)


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
                output.name = fresh(chosen_name(output))
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
