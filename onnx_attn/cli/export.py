"""`onnx-attn export`: a layer's arguments, or a saved Keras model, to an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..configuration import DTYPES, ExportOptions
from ..errors import InputError
from .app import command, console

LAYER = "The layer"
FILE = "The file"
WEIGHTS = "The weights"
KERAS = "From Keras"

_DEFAULTS = vars(ExportOptions())


def _default(name: str) -> str:
    """The default of a file's option, for the help: a file from Keras may have another."""
    value = _DEFAULTS[name]
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


@command(
    "export",
    "onnx-attn export attention.onnx",
    "onnx-attn export attention.onnx --use-scale --scale-value 0.125 --causal --scores",
    "onnx-attn export decoder.onnx --no-key --masks none --dims batch=1,dim=64",
    "onnx-attn export additive.onnx --layer additive --scale-value scale.npy",
    "onnx-attn export attention.onnx --from-keras model.keras:attention",
)
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="File to write.")],
    layer: Annotated[
        str, typer.Option(help="attention or additive.", rich_help_panel=LAYER)
    ] = "attention",
    use_scale: Annotated[
        bool | None,
        typer.Option(
            "--use-scale/--no-use-scale",
            help="Multiply the scores by a weight.",
            show_default="no for attention, yes for additive",
            rich_help_panel=LAYER,
        ),
    ] = None,
    score_mode: Annotated[str, typer.Option(help="dot or concat.", rich_help_panel=LAYER)] = "dot",
    causal: Annotated[
        bool,
        typer.Option("--causal/--no-causal", help="Hide later keys.", rich_help_panel=LAYER),
    ] = False,
    dropout: Annotated[
        float, typer.Option(help="Rate in training, from 0 to below 1.", rich_help_panel=LAYER)
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Of the dropout.", rich_help_panel=LAYER)] = None,
    dtype: Annotated[
        str, typer.Option(help=f"One of {', '.join(DTYPES)}.", rich_help_panel=LAYER)
    ] = "float32",
    name: Annotated[
        str | None, typer.Option(help="Kept in the file.", rich_help_panel=LAYER)
    ] = None,
    scale_value: Annotated[
        str | None,
        typer.Option(
            help="The trained scale: a number, or a .npy file for additive.",
            show_default="1 for attention",
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    concat_score_weight_value: Annotated[
        float | None,
        typer.Option(
            "--concat-score-weight-value",
            "--concat-score-weight",
            help="The trained concat_score_weight.",
            show_default="1",
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    from_keras: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL[:LAYER]",
            help="Take layer and weights from a .keras, .h5 or .weights.h5 file.",
            rich_help_panel=KERAS,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Model config for a .weights.h5 file.", rich_help_panel=KERAS),
    ] = None,
    key: Annotated[
        bool | None,
        typer.Option(
            "--key/--no-key",
            help="Key as an input of its own.",
            show_default=_default("key"),
            rich_help_panel=FILE,
        ),
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(
            help="both, value, query or none.",
            show_default=_default("masks"),
            rich_help_panel=FILE,
        ),
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(
            help="required, or optional: masks, scale, training may be left out.",
            show_default=_default("inputs"),
            rich_help_panel=FILE,
        ),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            help="Weights as constant, or as input.",
            show_default=_default("scale"),
            rich_help_panel=FILE,
        ),
    ] = None,
    return_attention_scores: Annotated[
        bool | None,
        typer.Option(
            "--return-attention-scores/--no-return-attention-scores",
            "--scores/--no-scores",
            help="Add the output attention_scores.",
            show_default=_default("return_attention_scores"),
            rich_help_panel=FILE,
        ),
    ] = None,
    training: Annotated[
        bool | None,
        typer.Option(
            "--training/--no-training",
            help="Add the input training.",
            show_default=_default("training"),
            rich_help_panel=FILE,
        ),
    ] = None,
    heads: Annotated[
        bool | None,
        typer.Option(
            "--heads/--no-heads",
            help="An axis of heads.",
            show_default=_default("heads"),
            rich_help_panel=FILE,
        ),
    ] = None,
    bias: Annotated[
        bool | None,
        typer.Option(
            "--bias/--no-bias",
            help="Add the input bias, added to the scores.",
            show_default=_default("bias"),
            rich_help_panel=FILE,
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="How the scores are walked: auto, dense, tiled, fused.",
            show_default=_default("schedule"),
            rich_help_panel=FILE,
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(help="17 to 21.", show_default=_default("opset"), rich_help_panel=FILE),
    ] = None,
    dims: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SIZE", help="Sizes to fix, like batch=1,dim=64.", rich_help_panel=FILE
        ),
    ] = None,
) -> None:
    """Write an attention layer as one ONNX file."""
    options: dict[str, Any] = {
        "key": key,
        "masks": masks,
        "inputs": inputs,
        "scale": scale,
        "return_attention_scores": return_attention_scores,
        "training": training,
        "heads": heads,
        "bias": bias,
        "schedule": schedule,
        "opset": opset,
        "dims": _sizes(",".join(dims)) if dims else None,
    }
    if from_keras is not None:
        arguments = (layer, use_scale, score_mode, causal, dropout, seed, dtype, name)
        if arguments != ("attention", None, "dot", False, 0.0, None, "float32", None):
            raise InputError("--from-keras brings the layer's arguments: leave out those given")
        if scale_value is not None or concat_score_weight_value is not None:
            raise InputError("--from-keras brings the weights: leave out those given")
        from ..keras import load_layer

        made = load_layer(from_keras, config)
    elif config is not None:
        raise InputError("--config goes with --from-keras")
    else:
        from ..layer.attention import AdditiveAttention, Attention

        common: dict[str, Any] = {
            "causal": causal,
            "dropout": dropout,
            "seed": seed,
            "dtype": dtype,
            "name": name,
        }
        if use_scale is not None:
            common["use_scale"] = use_scale
        if layer == "attention":
            made = Attention(score_mode=score_mode, **common)
        elif layer == "additive":
            if scale_value is None and use_scale is not False:
                raise InputError("--layer additive needs --scale-value SCALE.npy or --no-use-scale")
            made = AdditiveAttention(**common)
        else:
            raise InputError(f"--layer must be attention or additive; received {layer!r}")
        _set_weights(made, scale_value, concat_score_weight_value)
    path = made.export(out, **{k: v for k, v in options.items() if v is not None})
    console.print(f"[green]wrote[/green] {path} ({path.stat().st_size:,} bytes)", highlight=False)


def _sizes(text: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in text.split(","):
        dim, equals, size = part.partition("=")
        if not equals or not size.strip().isdecimal():
            raise InputError(f"--dims must look like batch=1,dim=64; received {text!r}")
        sizes[dim.strip()] = int(size)
    return sizes


def _set_weights(layer: Any, scale: str | None, concat_score_weight: float | None) -> None:
    """Set the weights given on the command line; the others keep their first value."""
    if scale is None and concat_score_weight is None:
        return
    config = layer.get_config()
    if scale is not None and not config["use_scale"]:
        raise InputError("--scale-value needs --use-scale: this layer has no scale")
    if concat_score_weight is not None and config.get("score_mode") != "concat":
        raise InputError("--concat-score-weight-value needs --score-mode concat")
    weights: list[Any] = []
    if config["use_scale"]:
        weights.append(layer.get_weights()[0] if scale is None else _numbers(scale))
    if config.get("score_mode") == "concat":
        weights.append(1.0 if concat_score_weight is None else concat_score_weight)
    layer.set_weights(weights)


def _numbers(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        from .npz import read_npy

        return np.asarray(read_npy(Path(text)))
