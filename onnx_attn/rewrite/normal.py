"""Anybody's model in one form: one file's worth of standard operators, opset 17 or later, typed.

What is done here changes how a model is written, never what it computes: functions are inlined,
constants become initializers, what is computed twice is computed once, casts to the type a value
already has and dropout (which does nothing outside training) go.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import version_converter
from onnx_ir.passes import common as passes

from ..errors import InputError, ModelError
from ..file.disk import as_path, read_file

OLDEST_OPSET = 17  # of the walk's operators
OLDEST_IR = 8
# Initializers above this many bytes stay out of what ONNX's C++ code is handed.
SMALL_TENSOR = 1024


@dataclass(frozen=True)
class Source:
    """A model as it came.

    proto: with references where weights lie in files of their own; folder: where those files are
    (None: there are none); where: what to call the model in messages; size: bytes, those of its
    weight files included.
    """

    proto: onnx.ModelProto
    folder: Path | None
    where: str
    size: int
    path: Path | None = None


def read_source(model: onnx.ModelProto | str | os.PathLike[str]) -> Source:
    """The model in a file or in memory. Raises ModelError for what is no whole ONNX model."""
    if isinstance(model, onnx.ModelProto):
        if _external(model):
            raise InputError(
                "model: its weights lie in files of their own, and a ModelProto does not say "
                "where. Give the path of the model instead"
            )
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
        where = f"the model {proto.graph.name!r}"
        source = Source(proto, None, where, proto.ByteSize())
    else:
        path = as_path(model)
        if not path.exists():
            raise ModelError(f"{path} does not exist")
        data = read_file(path)
        try:
            proto = onnx.ModelProto.FromString(data)
        except DecodeError as error:
            raise ModelError(f"{path} is not an ONNX file, or is cut short") from error
        folder, size = None, len(data)
        if _external(proto):
            folder = path.absolute().parent
            for name in external_locations(proto):
                try:
                    size += (folder / name).stat().st_size
                except OSError as error:
                    raise ModelError(
                        f"{path}: its weights are in {name}, which is not beside it"
                    ) from error
        source = Source(proto, folder, str(path), size, path)
    if not proto.graph.node or not proto.opset_import:
        raise ModelError(f"{source.where} is not an ONNX file: it holds no graph")
    return source


def _external(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [t for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]


def external_locations(proto: onnx.ModelProto) -> list[str]:
    """The files beside a model that hold its weights."""
    found = {
        entry.value
        for tensor in _external(proto)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted(found)


def normal_form(source: Source) -> ir.Model:
    """The model of `source` in the form that sites are looked for in.

    Raises ModelError where the model cannot be brought to opset 17.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    _one_default_domain(proto)
    version = next((entry.version for entry in proto.opset_import if entry.domain == ""), None)
    if version is None:
        raise ModelError(f"{source.where} uses no standard operators")
    if version < OLDEST_OPSET:
        proto = _converted(proto, version, source.where)
    try:
        model = ir.from_proto(proto)
        if source.folder is not None:
            ir.external_data.set_base_dir(model.graph, source.folder)
        passes.InlinePass()(model)
    except Exception as error:
        raise ModelError(f"{source.where} cannot be read: {_one_line(error)}") from error
    model.ir_version = max(model.ir_version, OLDEST_IR)
    _without_optional_constants(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    infer(model)
    _drop_idle_nodes(model)
    passes.DeduplicateInitializersPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    return model


def infer(model: ir.Model) -> None:
    """Types and shapes of all values, as far as they can be told."""
    logger = logging.getLogger("onnx_ir.passes.common.shape_inference")
    before, logger.disabled = logger.disabled, True  # it warns of models it leaves as they are
    try:
        passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    finally:
        logger.disabled = before


def _one_default_domain(proto: onnx.ModelProto) -> None:
    """`ai.onnx` is another name of the default domain ``."""
    imports = {entry.domain: entry.version for entry in proto.opset_import}
    if "ai.onnx" not in imports:
        return
    imports[""] = max(imports.pop("ai.onnx"), imports.get("", 0))
    del proto.opset_import[:]
    for domain, version in imports.items():
        proto.opset_import.add(domain=domain, version=version)
    graphs = [proto.graph.node, *(function.node for function in proto.functions)]
    while graphs:
        for node in graphs.pop():
            if node.domain == "ai.onnx":
                node.domain = ""
            for attribute in node.attribute:
                graphs += [graph.node for graph in (attribute.g, *attribute.graphs) if graph.node]


def _converted(proto: onnx.ModelProto, version: int, where: str) -> onnx.ModelProto:
    """The model at opset 17, its large weights untouched."""
    kept = [t for t in proto.graph.initializer if t.ByteSize() > SMALL_TENSOR]
    kept += [t for t in _external(proto) if t.ByteSize() <= SMALL_TENSOR]
    names = {tensor.name for tensor in kept}
    small = [t for t in proto.graph.initializer if t.name not in names]
    inputs = {value.name for value in proto.graph.input}
    light = onnx.ModelProto()
    light.CopyFrom(proto)
    del light.graph.initializer[:]
    light.graph.initializer.extend(small)
    added = [tensor for tensor in kept if tensor.name not in inputs]
    light.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in added
    )
    light.ir_version = max(light.ir_version, OLDEST_IR)
    try:
        light = version_converter.convert_version(light, OLDEST_OPSET)
    except Exception as error:  # C++ assertions among them
        raise ModelError(
            f"{where} is of opset {version} and cannot be converted to {OLDEST_OPSET}: "
            f"{_one_line(error)}"
        ) from error
    gone = {tensor.name for tensor in added}
    inputs_left = [value for value in light.graph.input if value.name not in gone]
    del light.graph.input[:]
    light.graph.input.extend(inputs_left)
    light.graph.initializer.extend(kept)
    light.ir_version = max(proto.ir_version, OLDEST_IR)
    return light


def _without_optional_constants(model: ir.Model) -> None:
    """Initializers that are inputs too, as old files list them all, become plain constants.

    From IR version 4 on an input with a default may be overridden, and stays what it is.
    """
    for value in list(model.graph.inputs):
        if value.name in model.graph.initializers and not value.uses():
            model.graph.inputs.remove(value)


def _drop_idle_nodes(model: ir.Model) -> None:
    """Nodes that change nothing.

    Identities, casts to the type a value has, dropout outside training, and masks joined with
    themselves.
    """
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.domain != "" or node.graph is None:
            continue
        source = node.inputs[0] if node.inputs else None
        if source is None:
            continue
        if node.op_type == "Cast":
            idle = source.dtype is not None and int(source.dtype) == _int(node, "to")
        elif node.op_type == "Identity":
            idle = True
        elif node.op_type == "Dropout":
            idle = not _in_training(node) and not (len(node.outputs) > 1 and _used(node.outputs[1]))
        elif node.op_type in ("And", "Or"):  # Keras joins the masks of what it adds
            idle = source is node.inputs[1]
        else:
            continue
        output = node.outputs[0]
        if not idle or output.is_graph_output():
            continue
        output.replace_all_uses_with(source)
        cast("Any", node.graph).remove(node, safe=True)


def _in_training(node: ir.Node) -> bool:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    known = constant(node.inputs[2])
    return known is None or bool(np.any(known))


def _used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _int(node: ir.Node, name: str) -> int | None:
    attribute = node.attributes.get(name)
    return None if attribute is None else attribute.as_int()


def constant(value: ir.Value | None) -> Any:
    """What a value is known to hold, as an array; None where it depends on the model's inputs."""
    if value is None or value.is_graph_input():
        return None
    tensor = value.const_value
    if tensor is None:
        tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
