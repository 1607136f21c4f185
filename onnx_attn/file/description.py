"""A file in words: what it computes and takes, and where it runs. The one place that says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..configuration import DTYPES
from ..contract import LayerFile, TensorSpec
from ..version import __version__

FUSED_OPERATOR = "com.microsoft.MultiHeadAttention"
KNOW_OPTIONAL = "C, C++, C#, Python, Rust, Go"
OPTIONAL_ELSEWHERE = (
    "Node ignores an override, web and Java refuse it, OpenVINO freezes the default, Triton takes "
    "no such inputs"
)


class Found(NamedTuple):
    """A tensor as a graph has it: ONNX dims are sizes, names or None."""

    dtype: str
    dims: tuple[str | int | None, ...]
    required: bool = True


def as_found(
    promised: Mapping[str, TensorSpec], found: Mapping[str, Found], kind: str
) -> tuple[dict[str, TensorSpec], list[str]]:
    """The promised tensors with the sizes that a tool has fixed since, and what is not as promised.

    Args:
        promised: inputs or outputs by the file's metadata.
        found: those of its graph.
        kind: "input" or "output", for the messages.

    Returns:
        The tensors by name; a line for each that is missing, unknown, or of another type or shape.
    """
    specs, differences = dict(promised), list[str]()
    for name, spec in promised.items():
        if name not in found:
            differences.append(f"{kind} {spec}, its graph has no {kind} {name}")
            continue
        dtype, dims, required = found[name]
        said = ", ".join("?" if dim is None else str(dim) for dim in dims)
        if dtype != spec.dtype or (dims and not _same_shape(spec.dims, dims)):
            differences.append(f"{kind} {spec}, its graph has {name} {dtype}[{said}]")
        elif required and spec.optional:
            differences.append(f"that {kind} {name} may be left out, its graph requires it")
        elif dims:
            fixed = zip(spec.dims, dims, strict=True)
            specs[name] = spec.with_dims(
                tuple(size if isinstance(size, int) else dim for dim, size in fixed)
            )
    differences += [
        f"no {kind} {name}, its graph has one"
        for name, tensor in found.items()
        if name not in promised and tensor.required
    ]
    return specs, differences


def _same_shape(promised: tuple[str | int, ...], dims: tuple[str | int | None, ...]) -> bool:
    """Whether shapes agree; a size where a name was promised is fixed since, and fits."""
    return len(promised) == len(dims) and all(
        not (isinstance(wanted, int) and isinstance(got, int)) or wanted == got
        for wanted, got in zip(promised, dims, strict=True)
    )


def changed(where: str, differences: list[str], found: Mapping[str, Found]) -> str:
    """The message for a graph that is not what its metadata promises."""
    fix = "Export it again"
    dtype = found["query"].dtype if "query" in found else ""
    if dtype in DTYPES and any(" query " in line for line in differences):
        fix = f"Export the layer with dtype={dtype!r} instead of converting the file"
    return (
        f"{where} was changed by another tool since its export: its metadata promises "
        f"{'; '.join(differences)}. {fix}"
    )


def where_it_runs(file: LayerFile) -> str:
    """The runtimes that give this file's numbers, in one line."""
    options = file.options
    optional = any(spec.optional for spec in file.contract.inputs.values())
    notes: list[str] = []
    if options.needs_onnxruntime:
        notes.append(f"for its operator {FUSED_OPERATOR}")
    if optional:
        notes.append(
            f"inputs that may be left out are overridable initializers: {OPTIONAL_ELSEWHERE}"
        )
    if file.config.floats.tensor == "bfloat16":
        notes.append("bindings that take bfloat16 arrays")
    if optional:
        runs = f"ONNX Runtime in {KNOW_OPTIONAL}"
    elif options.needs_onnxruntime:
        runs = "ONNX Runtime alone"
    else:
        tools = ", and most ONNX tools" if options.schedule == "dense" else ""
        runs = f"ONNX Runtime in every language{tools}; any runtime with opset {options.opset}"
        if not tools:
            runs += ", If and Scan"
    return f"{runs} ({'; '.join(notes)})" if notes else runs


def when_left_out(spec: TensorSpec) -> str:
    """What an input takes that a caller leaves out; a star where a session must fill it in."""
    if spec.name == "key":
        return "value*"
    if spec.default is None and not spec.optional:
        return "error"
    default = "no mask" if spec.name.endswith("_mask") else "the trained value"
    if spec.name in ("training", "bias"):
        default = "False" if spec.name == "training" else "nothing added"
    return default if spec.optional else f"{default}*"


def describe(file: LayerFile) -> str:
    """The file's contract for a human who opens it in a viewer."""
    config, options, specs = file.config, file.options, file.contract
    words = [f"tf.keras.layers.{config.layer} as written by onnx_attn {__version__}."]
    if config.layer == "AdditiveAttention":
        words.append("scores = sum_d scale_d * tanh(query + key)")
    elif config.score_mode == "concat":
        words.append("scores = concat_score_weight * sum_d tanh(scale * (query + key))")
    else:
        words.append(f"scores = {'scale * ' if config.use_scale else ''}query @ key^T")
    if options.bias:
        words.append("scores = scores + bias; a key with a bias of -9000 or less is hidden")
    rules = ["value_mask"] if "value_mask" in specs.inputs else []
    rules += ["causal (key j <= query i)"] if config.causal else []
    if rules:
        words.append(f"where not ({' and '.join(rules)}): score - 1e9, once")
    words.append("weights = softmax(scores) over the keys; output = weights @ value")
    if "query_mask" in specs.inputs:
        words.append("where query_mask is False the output row is 0")
    if options.training:
        words.append(f"training = True drops weights at rate {config.dropout:g}")
    if not options.key:
        words.append("value is also the key")
    if config.floats.compute != config.floats.tensor:
        words.append(f"computed in {config.floats.compute}")
    if options.needs_onnxruntime:
        words.append(f"needs ONNX Runtime, for its operator {FUSED_OPERATOR}")
    words.append("inputs: " + "; ".join(str(spec) for spec in specs.inputs.values()))
    words.append("outputs: " + "; ".join(str(spec) for spec in specs.outputs.values()))
    if {"query_mask", "value_mask"} & set(specs.inputs):
        words.append(
            "a mask is [batch or 1, length or 1], True where a position counts; "
            "[[True]] means no mask"
        )
    if options.bias:
        words.append("each axis of bias is 1 or that of the scores; a single 0 adds nothing")
    scalars = [spec for spec in specs.inputs.values() if not spec.dims]
    if scalars:
        words.append(
            f"{', '.join(spec.name for spec in scalars)}: a tensor of rank 0, in Python a 0-d "
            f"array like np.array(x, '{scalars[0].dtype}'); ONNX Runtime refuses NumPy's scalars"
        )
    optional = [spec.name for spec in specs.inputs.values() if spec.optional]
    if optional:
        words.append(
            f"{', '.join(optional)} may be left out where the binding knows overridable "
            f"initializers: {KNOW_OPTIONAL}; not Node, web, Java, OpenVINO, Triton"
        )
    return "\n".join(words)
