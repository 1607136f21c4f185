"""The tools of the table, in its order."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

from ...errors import OnnxAttnError
from . import converters, graph_tools, onnxruntime_tools
from .tool import Tool

OPSETS = (18, 21, 23, 24)
LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")
# Largest absolute error that is still right, for outputs of about 1: float16 has 11 bits,
# int8 arithmetic over both products some six.
FLOAT16, INT8 = 2e-2, 2e-1

TOOLS: tuple[Tool, ...] = (
    Tool("onnxslim", graph_tools.slim, needs=("onnxslim",)),
    Tool("onnxsim", graph_tools.sim, needs=("onnxsim",)),
    Tool("onnxoptimizer", graph_tools.optimizer, needs=("onnxoptimizer",)),
    *(Tool(f"onnx to opset {v}", partial(converters.onnx_version, opset=v)) for v in OPSETS),
    *(
        Tool(f"onnxscript to opset {v}", partial(converters.onnxscript_version, opset=v))
        for v in OPSETS
    ),
    Tool("compose.add_prefix", graph_tools.prefix),
    Tool("compose: merged twice", graph_tools.merge_twice),
    Tool("compose: behind a fixed model", graph_tools.behind),
    Tool("compose: before a fixed model", graph_tools.before),
    Tool("extract_model", graph_tools.extract),
    Tool("infer_shapes, strict", graph_tools.infer),
    Tool("printer and parser", graph_tools.text),
    *(
        Tool(f"optimized file, {level}", partial(onnxruntime_tools.optimized, level=f"ORT_{level}"))
        for level in LEVELS
    ),
    Tool(".ort file", onnxruntime_tools.ort_format),
    Tool("make_dynamic_shape_fixed", onnxruntime_tools.fixed_shapes),
    Tool("quant_pre_process", onnxruntime_tools.pre_process, needs=("sympy",)),
    Tool("quantize_dynamic", partial(onnxruntime_tools.dynamic, everything=False), INT8),
    Tool("quantize_dynamic, all on", partial(onnxruntime_tools.dynamic, everything=True), INT8),
    Tool("quantize_static, QDQ", onnxruntime_tools.static, INT8),
    Tool(
        "float16, onnxconverter-common",
        converters.common_float16,
        FLOAT16,
        ("onnxconverter_common",),
    ),
    Tool("float16, onnxruntime", converters.onnxruntime_float16, FLOAT16),
    Tool("OpenVINO", converters.openvino, needs=("openvino",)),
)


def require(tools: tuple[Tool, ...]) -> None:
    """Raise OnnxAttnError if a package that a tool needs is not installed."""
    missing = sorted({name for tool in tools for name in tool.needs if find_spec(name) is None})
    if missing:
        raise OnnxAttnError(
            f"not installed: {', '.join(missing)}. Get the tools with "
            "pip install 'onnx_attn[tools]'"
        )
