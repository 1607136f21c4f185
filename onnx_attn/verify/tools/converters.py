"""Converters: opset versions, float16, OpenVINO."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .tool import Array, Arrays, Case, Product


def onnx_version(case: Case, folder: Path, opset: int) -> Product:
    """onnx's version converter."""
    del folder
    from onnx import version_converter

    return Product(version_converter.convert_version(case.load(), opset), case.calls)


def onnxscript_version(case: Case, folder: Path, opset: int) -> Product:
    """onnxscript's version converter, which asks onnx's for opsets under 18."""
    del folder
    import onnx_ir

    converter: Any = import_module("onnxscript.version_converter")

    # Given a ModelProto it leaves the opset import as it was.
    model = onnx_ir.from_proto(case.load())
    converter.convert_version(model, opset, fallback=True)
    made = model.opset_imports[""]
    if made != opset:
        raise ValueError(f"left the file at opset {made}, asked for {opset}")
    return Product(onnx_ir.to_proto(model), case.calls)


def common_float16(case: Case, folder: Path) -> Product:
    """float16 by onnxconverter-common."""
    del folder
    float16: Any = import_module("onnxconverter_common.float16")
    return Product(float16.convert_float_to_float16(case.load()), case.calls)


def onnxruntime_float16(case: Case, folder: Path) -> Product:
    """float16 by onnxruntime.transformers."""
    del folder
    float16: Any = import_module("onnxruntime.transformers.float16")
    return Product(float16.convert_float_to_float16(case.load()), case.calls)


def openvino(case: Case, folder: Path) -> Product:
    """OpenVINO's convert_model and save_model; OpenVINO runs what was saved."""
    ov: Any = import_module("openvino")

    saved = folder / "saved.xml"
    ov.save_model(ov.convert_model(str(case.path)), str(saved), compress_to_fp16=False)
    return Product(saved, case.calls, _run_openvino)


def _run_openvino(path: Path, feeds: Sequence[Arrays]) -> list[list[Array]]:
    ov: Any = import_module("openvino")

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled: Any = ov.Core().compile_model(str(path), "CPU", settings)
    return [[np.array(output) for output in compiled(feed).values()] for feed in feeds]
