"""The tour that `onnx-attn demo` gives."""
