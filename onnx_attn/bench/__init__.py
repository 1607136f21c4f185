"""The benchmark, `onnx-attn bench`: cells x candidates, results checked before they are timed.

`cells` says what is computed, `candidates` and `peers` who computes it. In `measure` a `worker` is
the process a candidate runs in and `turns` lets the workers take turns; `report` writes the tables.
"""
