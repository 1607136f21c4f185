"""Tools that come with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from .tool import Arrays, Call, Case, Product


def optimized(case: Case, folder: Path, level: str) -> Product:
    """The file a session writes to optimized_model_filepath at one level."""
    onnxruntime: Any = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    made = folder / "optimized.onnx"
    options.optimized_model_filepath = str(made)
    onnxruntime.InferenceSession(str(case.path), options, providers=["CPUExecutionProvider"])
    return Product(made, case.calls)


def ort_format(case: Case, folder: Path) -> Product:
    """Conversion to the .ort format, which ONNX Runtime opens."""
    converter: Any = import_module("onnxruntime.tools.convert_onnx_models_to_ort")
    styles = [converter.OptimizationStyle.Fixed]
    converter.convert_onnx_models_to_ort(case.path, folder, styles)
    return Product(folder / case.path.with_suffix(".ort").name, case.calls)


def fixed_shapes(case: Case, folder: Path) -> Product:
    """make_dynamic_shape_fixed: every dim by its name."""
    del folder
    onnx_model_utils: Any = import_module("onnxruntime.tools.onnx_model_utils")
    model = case.load()
    for name, size in case.sizes.items():
        onnx_model_utils.make_dim_param_fixed(model.graph, name, size)
    onnx_model_utils.fix_output_shapes(model)
    return Product(model, case.calls[:1])


def pre_process(case: Case, folder: Path) -> Product:
    """quant_pre_process with its defaults: symbolic shapes, optimisation, shape inference."""
    quantization: Any = import_module("onnxruntime.quantization.shape_inference")
    made = folder / "prepared.onnx"
    quantization.quant_pre_process(str(case.path), str(made))
    return Product(made, case.calls)


def dynamic(case: Case, folder: Path, everything: bool) -> Product:
    """quantize_dynamic with its defaults, or with every product and every body included."""
    quantization: Any = import_module("onnxruntime.quantization")
    made = folder / "quantized.onnx"
    extra = {"EnableSubgraph": True, "MatMulConstBOnly": False} if everything else {}
    quantization.quantize_dynamic(str(case.path), str(made), extra_options=extra)
    return Product(made, case.calls)


def static(case: Case, folder: Path) -> Product:
    """quantize_static to QDQ, calibrated on the calls it is then measured by."""
    quantization: Any = import_module("onnxruntime.quantization")
    made = folder / "quantized.onnx"
    quantization.quantize_static(str(case.path), str(made), _Calibration(case.calls))
    return Product(made, case.calls)


class _Calibration:
    """onnxruntime.quantization.CalibrationDataReader, by its one method."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._feeds = iter([call.feeds for call in calls])

    def get_next(self) -> Arrays | None:
        return next(self._feeds, None)
