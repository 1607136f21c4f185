"""Moves what a builder wrote into a model, under names that the model does not have."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
from onnxscript import GraphBuilder

from ..graph.finish import fresh_names


def new_builder(model: ir.Model) -> GraphBuilder:
    """A graph of its own to build in, with the opsets of `model`."""
    graph = ir.Graph([], [], nodes=[], opset_imports=dict(model.graph.opset_imports), name="new")
    return GraphBuilder(graph)


def move(
    builder: GraphBuilder, model: ir.Model, prefix: str, named: Iterable[ir.Value] = ()
) -> None:
    """What was built into the model, under names that it does not have."""
    graph, built = model.graph, builder.graph
    used = {value.name for value in graph.inputs} | set(graph.initializers)
    for node in ir.traversal.RecursiveGraphIterator(graph):
        used |= {value.name for value in node.outputs} | {node.name}
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                used |= {value.name for value in attribute.as_graph().inputs}
    kept, fresh = {*graph.outputs, *named}, fresh_names(used)

    def rename(nodes: Iterable[ir.Node]) -> None:
        for node in nodes:
            name = node.name or ""
            plain = f"{prefix}/{node.op_type}"
            node.name = fresh(name if name.endswith("/attention") else plain)
            node.metadata_props.clear()
            for output in node.outputs:
                if output not in kept:
                    output.name = fresh(f"{prefix}/{node.op_type}_result")
                output.metadata_props.clear()
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    body = attribute.as_graph()
                    for value in body.inputs:
                        value.name = fresh(f"{prefix}/{value.name}")
                    rename(body)

    for value in list(built.initializers.values()):
        built.initializers.pop(str(value.name))
        value.name = fresh(f"{prefix}/{str(value.name).rsplit('/', 1)[-1]}")
        graph.register_initializer(value)
    nodes = list(built)
    rename(nodes)
    built.remove(nodes)
    graph.extend(nodes)
    graph.sort()
