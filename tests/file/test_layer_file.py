"""LayerFile checks itself; its contract says what a left-out input takes; where files run."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_attn import Attention, InputError
from onnx_attn.configuration import ExportOptions, LayerConfig
from onnx_attn.contract import LayerFile
from onnx_attn.file.description import where_it_runs
from onnx_attn.file.export import make_model

SCALED = LayerConfig(use_scale=True)
ONE = np.ones((), np.float32)


@pytest.mark.parametrize(
    ("config", "options", "weights", "message"),
    [
        (LayerConfig(), ExportOptions(scale="input"), {}, "scale='input' needs a layer"),
        (LayerConfig(), ExportOptions(), {"scale": ONE}, "there is no weight 'scale'"),
        (SCALED, ExportOptions(), {"scale": np.ones(2, np.float32)}, r"float32\[\]; received"),
        (SCALED, ExportOptions(), {"scale": np.ones(())}, "received float64"),
        (
            LayerConfig("AdditiveAttention", use_scale=True),
            ExportOptions(dims={"dim": 3}),
            {"scale": np.ones(2, np.float32)},
            "dim=3, but the layer's scale has length 2",
        ),
    ],
)
def test_a_contradiction_is_refused(
    config: LayerConfig,
    options: ExportOptions,
    weights: dict[str, np.ndarray],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        LayerFile(config, options, weights)


def test_a_file_needs_its_weights() -> None:
    with pytest.raises(InputError, match="scale: a file needs the layer's weights"):
        make_model(LayerFile(SCALED))


def test_defaults_of_left_out_inputs() -> None:
    options = ExportOptions(
        scale="input", training=True, inputs="optional", dims={"value_mask_Tv": 4}
    )
    config = LayerConfig(use_scale=True, dropout=0.5)
    inputs = LayerFile(config, options, {"scale": ONE * 3}).contract.inputs
    assert {name for name, spec in inputs.items() if spec.default is not None} == {
        "query_mask", "value_mask", "scale", "training",
    }  # fmt: skip
    assert inputs["value_mask"].default.tolist() == [[True] * 4]  # pyright: ignore
    assert inputs["scale"].default == 3
    assert not inputs["training"].default


def test_without_key_value_dim_alone_fixes_dim() -> None:
    model = Attention().to_onnx(key=False, dims={"value_dim": 8})
    for tensor in model.graph.input[:2]:
        assert tensor.type.tensor_type.shape.dim[2].dim_value == 8
    with pytest.raises(InputError, match="received dim=4, value_dim=8"):
        Attention().to_onnx(key=False, dims={"dim": 4, "value_dim": 8})


def test_where_files_run() -> None:
    fused = LayerFile(LayerConfig(), ExportOptions(schedule="fused"))
    assert where_it_runs(fused).startswith("ONNX Runtime alone")
    assert "com.microsoft.MultiHeadAttention" in where_it_runs(fused)
    assert "any runtime" not in where_it_runs(fused)
    dense = LayerFile(LayerConfig(), ExportOptions(schedule="dense"))
    assert "most ONNX tools" in where_it_runs(dense)
    optional = LayerFile(LayerConfig(), ExportOptions(inputs="optional"))
    assert "Node ignores an override" in where_it_runs(optional)
