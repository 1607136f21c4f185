"""Random files with random sizes fixed, run by plain ONNX Runtime at every optimisation level.

Child processes import this module by its name: ONNX Runtime has crashed on such files.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from onnx_attn.reference import attention
from oracle import MODES, close, make_layer, weights_for

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
SHORT = (*range(1, 71), 127, 128, 129, 255)
# Long enough for parts and blocks, which lengths that no power of 2 divides leave uneven.
LONG = (300, 301, 331, 333, 383, 512, 509, 643, 700, 703, 1001)


class File(NamedTuple):
    """A layer, how it is exported, and a call that fits."""

    layer: Any
    options: dict[str, Any]
    feeds: dict[str, np.ndarray]
    wanted: tuple[np.ndarray, np.ndarray]


def draw_file(seed: int) -> File:
    """The file with number `seed`."""
    rng = np.random.default_rng(seed)

    def one_of(*choices: Any) -> Any:
        return choices[int(rng.integers(len(choices)))]

    mode, dtype = one_of(*MODES, "dot", "dot"), one_of("float32", "float32", "float16", "float64")
    causal, use_scale = bool(one_of(False, True)), bool(one_of(False, True))
    fused = mode == "dot" and not causal and dtype != "float64"
    schedule = one_of("auto", "auto", "auto", "dense", "tiled", *(["fused"] if fused else []))
    batch, heads, dim, value_dim = (int(rng.integers(1, top)) for top in (5, 4, 17, 17))
    Tq, Tv = (int(one_of(*one_of(SHORT, SHORT, LONG))) for _ in range(2))
    if mode != "dot":  # these have Tq x Tv x dim features
        Tq, Tv = min(Tq, 130), min(Tv, 130)
    if one_of(False, True):
        Tv = Tq
    options: dict[str, Any] = {
        "key": bool(one_of(True, True, False)),
        "masks": one_of("both", "value", "query", "none"),
        "inputs": one_of("required", "optional"),
        "schedule": schedule,
        "return_attention_scores": schedule != "fused" and bool(one_of(False, True)),
        "heads": bool(one_of(False, False, True)),
        "bias": schedule != "fused" and bool(one_of(False, False, True)),
        "opset": one_of(17, 18, 21),
    }
    if not options["key"]:
        value_dim = dim
    outer = (batch, heads) if options["heads"] else (batch,)
    sizes = {"batch": batch, "Tq": Tq, "Tv": Tv, "dim": dim, "value_dim": value_dim}
    if options["heads"]:
        sizes["heads"] = heads
    weights = weights_for(mode, use_scale, dim, rng)
    layer = make_layer(mode, use_scale=use_scale, causal=causal, dtype=dtype)
    if weights:
        layer.set_weights(list(weights.values()))

    def floats(*shape: int) -> np.ndarray:
        return rng.uniform(-1.5, 1.5, shape).astype(dtype)

    feeds = {"query": floats(*outer, Tq, dim), "value": floats(*outer, Tv, value_dim)}
    if options["key"]:
        feeds["key"] = floats(*outer, Tv, dim)
    for mask, axis, length in (("query_mask", "Tq", Tq), ("value_mask", "Tv", Tv)):
        if options["masks"] in ("both", mask.removesuffix("_mask")):
            shape = (int(one_of(1, batch)), int(one_of(1, length)))
            feeds[mask] = rng.random(shape) < one_of(0.0, 0.6, 0.9, 1.0)
            sizes |= {f"{mask}_batch": shape[0], f"{mask}_{axis}": shape[1]}
    if options["bias"]:
        axes = [int(one_of(1, size)) for size in (*outer, Tq, Tv)]
        feeds["bias"] = floats(*axes)
        names = ("batch", "heads", "Tq", "Tv") if options["heads"] else ("batch", "Tq", "Tv")
        sizes |= {f"bias_{name}": size for name, size in zip(names, axes, strict=True)}
    fixed = one_of(0.3, 0.6, 1.0)
    options["dims"] = {name: size for name, size in sizes.items() if rng.random() < fixed} or None
    wanted = attention(
        feeds["query"],
        feeds["value"],
        feeds.get("key"),
        query_mask=feeds.get("query_mask"),
        value_mask=feeds.get("value_mask"),
        bias=feeds.get("bias"),
        score_mode=mode,
        causal=causal,
        compute="float64" if dtype == "float64" else "float32",
        **{name: weight.astype(dtype).astype(np.float64) for name, weight in weights.items()},
    )
    return File(layer, options, feeds, wanted)


def check(seed: int) -> None:
    """Raise unless file `seed` loads and gives the right numbers at every level."""
    file = draw_file(seed)
    model = file.layer.to_onnx(**file.options).SerializeToString()
    for level in LEVELS:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for got, wanted in zip(session.run(None, file.feeds), file.wanted, strict=False):
            close(got, wanted, file.layer.get_config()["dtype"])


def check_all(first: int, count: int) -> None:
    """Check `count` files from `first` on; the last line printed is the file at work."""
    for seed in range(first, first + count):
        print(seed, flush=True)  # noqa: T201
        check(seed)
