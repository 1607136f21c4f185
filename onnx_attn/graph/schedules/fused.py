"""The fused schedule: ONNX Runtime's own operator where it is exact and pays, auto elsewhere.

com.microsoft.MultiHeadAttention with one head computes softmax(query @ key^T) @ value in tiles that
stay in a core's cache. It does so without masks only, so everything that hides a key goes by auto.
"""

from __future__ import annotations

from ..builder import OpBuilder, Results
from ..guards import Rule, rule
from ..steps import Steps
from .auto import auto
from .dense import finished

DOMAIN = "com.microsoft"


def fused(op: OpBuilder, steps: Steps) -> Results:
    """The output [batch, Tq, value_dim]."""
    return auto(op, steps, long_plain=multi_head_attention)


def multi_head_attention(op: OpBuilder, steps: Steps) -> Results:
    """The output [batch, Tq, value_dim] where no key is hidden.

    The operator itself refuses batches, lengths and dims that differ.
    """
    steps = steps.in_arithmetic(op)
    tensors = steps.tensors
    attended = op.MultiHeadAttention(
        steps.prepare_query(op, tensors.query),
        tensors.key,
        tensors.value,
        num_heads=1,
        scale=1.0,
        _domain=DOMAIN,
        _version=1,
        _outputs=["attended"],
    )
    # Its inference is ONNX Runtime's, not ONNX's.
    attended.dtype = steps.compute
    return (finished(op, steps, rule(attended, "attended", Rule.FUSED)),)
