"""The public surface: what users may import, and nothing by accident."""

from __future__ import annotations

from importlib import import_module

import pytest

PUBLIC = {
    "onnx_attn": {
        "AdditiveAttention", "Attention", "AttentionSession", "DeviceError", "InputError",
        "ModelError", "OnnxAttnError", "__version__",
    },
    "onnx_attn.keras": {
        "describe_layers", "export_from_keras", "from_layer", "load_layer", "load_layers",
        "split_spec",
    },
}  # fmt: skip


@pytest.mark.parametrize("module", [*PUBLIC, "onnx_attn.graph"])
def test_public_names(module: str) -> None:
    home = import_module(module)
    assert len(set(home.__all__)) == len(home.__all__)
    if module in PUBLIC:
        assert set(home.__all__) == PUBLIC[module]
    for name in home.__all__:
        public = getattr(home, name)
        assert name == "__version__" or public.__doc__, name
