"""The auto schedule: one file that looks at its shapes and takes the dense or the tiled form."""

from __future__ import annotations

from .dense import dense
from .pieces import Steps, subgraph
from .thresholds import dense_suits
from .tiled import walk


def auto(op, steps: Steps, scores_wanted: bool):
    """The attended values and, where wanted, the weights: [batch, Tq, value_dim], [batch, Tq, Tv].

    All arithmetic is inside the branches: an If around a part of it would copy what passes.
    """

    def outputs(branch):
        declared = [steps.value_named(f"attended_{branch}", "batch", "Tq", "value_dim")]
        if scores_wanted:
            declared.append(steps.value_named(f"weights_{branch}", "batch", "Tq", "Tv"))
        return declared

    results = op.If(
        dense_suits(op, steps),
        then_branch=subgraph(op, lambda op: dense(op, steps, scores_wanted), outputs("dense")),
        else_branch=subgraph(op, lambda op: walk(op, steps, scores_wanted), outputs("tiled")),
        _outputs=["attended", "weights"] if scores_wanted else ["attended"],
    )
    return tuple(results) if scores_wanted else (results,)
