"""Running a file: a thin wrapper on ONNX Runtime's InferenceSession.

Needs numpy and onnxruntime only; onnx and onnxscript are never imported from here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime

from .checks import Array, as_array, as_mapping, check_shapes, known_names
from .configuration import Metadata, TensorSpec, contract, numpy_dtype, read_metadata
from .device import available_threads, provider_of, providers_for
from .errors import InputError, ModelError, OnnxAttnError

# Validated shapes remembered per session: enough for bucketed lengths, bounded for random ones.
REMEMBERED_SHAPES = 1024
BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


class AttentionSession:
    """A file that `Attention.export` wrote, ready to run.

    Args:
        model: path of the file, or its bytes.
        device: "cpu", "cuda", "cuda:1", or "auto" (CUDA if it really starts, else CPU).
        threads: threads inside one operator; None takes those the process may use.

    Raises:
        ModelError: the file is missing, broken, not ours, or newer than this package.
        DeviceError: the device is not there.
        InputError: an argument is no possible value.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        where = "the model" if isinstance(model, bytes) else os.fspath(model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = available_threads() if threads is None else threads
        self.ort_session = _open(model, where, options, providers_for(device))
        self.device = provider_of(self.ort_session)
        metadata = read_metadata(dict(self.ort_session.get_modelmeta().custom_metadata_map), where)
        specs = contract(metadata.config, metadata.options)
        self.inputs: dict[str, TensorSpec] = specs.inputs
        self.outputs: dict[str, TensorSpec] = specs.outputs
        _check_names(self.ort_session, specs.inputs, specs.outputs, where)
        self._metadata = metadata
        self._defaults = _defaults(metadata, specs.inputs)
        self._seen: set[tuple[tuple[str, tuple[int, ...]], ...]] = set()
        self._output_names = list(specs.outputs)
        self._bfloat16 = metadata.config.floats.tensor == "bfloat16"

    @property
    def config(self) -> dict[str, Any]:
        """The layer's configuration: its class under "layer", then Keras's arguments."""
        return dict(vars(self._metadata.config))

    @property
    def export_options(self) -> dict[str, Any]:
        """The options the file was exported with."""
        return dict(vars(self._metadata.options))

    def __call__(
        self,
        query: object,
        value: object,
        key: object = None,
        *,
        query_mask: object = None,
        value_mask: object = None,
        scale: object = None,
        training: object = None,
    ) -> Array | tuple[Array, ...]:
        """Run the file by Keras's words.

        Args:
            query: float[batch, Tq, dim] in the file's dtype.
            value: float[batch, Tv, value_dim].
            key: float[batch, Tv, dim]; None takes `value`.
            query_mask: bool[batch or 1, Tq or 1]; None means all True.
            value_mask: bool[batch or 1, Tv or 1]; None means all True.
            scale: scalar, if the file takes it as an input; None takes the trained one.
            training: bool, if the file takes it; None means False.

        Returns:
            output float[batch, Tq, value_dim]; with attention_scores float[batch, Tq, Tv] in a
            tuple where the file returns them.

        Raises:
            InputError: a tensor does not fit the file or the others.
        """
        feeds = {"query": query, "value": value}
        for name, given in (
            ("key", key),
            ("query_mask", query_mask),
            ("value_mask", value_mask),
            ("scale", scale),
            ("training", training),
        ):
            if given is not None:
                feeds[name] = given
        results = self.run(feeds)
        if len(results) == 1:
            return results["output"]
        return tuple(results.values())

    def run(
        self, feeds: Mapping[str, object], outputs: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Run the file by its own names.

        Args:
            feeds: arrays by input name, as `.inputs` lists them. A missing key is fed `value`;
                missing masks, scale and training take their defaults.
            outputs: names of the outputs wanted, in that order; None means all.

        Returns:
            The arrays by output name.

        Raises:
            InputError: a name is unknown or missing, or a tensor does not fit.
        """
        arrays = self._feeds(as_mapping(feeds))
        names = self._output_names if outputs is None else self._wanted(outputs)
        try:
            if self._bfloat16:
                results = self._run_bound(names, arrays)
            else:
                results = cast("list[Array]", self.ort_session.run(names, arrays))
        except Exception as error:
            raise OnnxAttnError(f"ONNX Runtime failed on this file: {error}") from error
        return dict(zip(names, results, strict=True))

    def _feeds(self, feeds: Mapping[str, object]) -> dict[str, Array]:
        known_names(feeds, self.inputs, "input")
        arrays: dict[str, Array] = {}
        for name, spec in self.inputs.items():
            given = feeds.get(name)
            if given is not None:
                arrays[name] = as_array(spec, given)
            elif name == "key" and "value" in arrays:
                arrays[name] = arrays["value"]
            elif name in self._defaults:
                arrays[name] = self._defaults[name]
            elif not spec.optional:
                raise InputError(
                    f"{name} is missing: expected {spec}; given: {', '.join(feeds) or 'nothing'}"
                )
        shapes = tuple((name, array.shape) for name, array in arrays.items())
        if shapes not in self._seen:
            check_shapes(self.inputs, dict(shapes))
            if len(self._seen) >= REMEMBERED_SHAPES:
                self._seen.clear()
            self._seen.add(shapes)
        return arrays

    def _wanted(self, outputs: Iterable[str]) -> list[str]:
        if isinstance(outputs, str):
            outputs = [outputs]
        names = list(outputs)
        known_names(dict.fromkeys(names), self.outputs, "output")
        if not names:
            raise InputError(f"outputs is empty; outputs of this file: {', '.join(self.outputs)}")
        return names

    def _run_bound(self, names: list[str], arrays: dict[str, Array]) -> list[Array]:
        """bfloat16 reaches ONNX Runtime only as bits under a stated type, both ways."""
        binding = self.ort_session.io_binding()
        sizes: dict[str | int, int] = {}
        for name, array in arrays.items():
            spec = self.inputs[name]
            sizes.update(zip(spec.dims, array.shape, strict=True))
            binding.bind_ortvalue_input(name, _ort_value(array, spec))
        if "key" not in self.inputs:
            sizes["value_dim"] = sizes["dim"]
        results: list[Array] = []
        for name in names:
            spec = self.outputs[name]
            shape = [dim if isinstance(dim, int) else sizes[dim] for dim in spec.dims]
            results.append(np.empty(shape, numpy_dtype(spec.dtype)))
            binding.bind_ortvalue_output(name, _ort_value(results[-1], spec))
        self.ort_session.run_with_iobinding(binding)
        return results


def _ort_value(array: Array, spec: TensorSpec) -> onnxruntime.OrtValue:
    if spec.dtype == "bfloat16":
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
            array.view(np.uint16), BFLOAT16
        )
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _open(
    model: str | os.PathLike[str] | bytes,
    where: str,
    options: onnxruntime.SessionOptions,
    providers: list[Any],
) -> onnxruntime.InferenceSession:
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise ModelError(f"{where} is no file. Export one with Attention(...).export(path)")
    source = model if isinstance(model, bytes) else os.fspath(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=providers)
    except Exception as error:
        raise ModelError(
            f"{where} cannot be loaded by ONNX Runtime: it is not an ONNX file, is cut short, or "
            f"is newer than onnxruntime {onnxruntime.__version__}. ONNX Runtime says: {error}"
        ) from error


def _check_names(
    session: onnxruntime.InferenceSession,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
    where: str,
) -> None:
    required = [entry.name for entry in session.get_inputs()]
    overridable = {entry.name for entry in session.get_overridable_initializers()}
    found = [entry.name for entry in session.get_outputs()]
    plain = [name for name, spec in inputs.items() if not spec.optional]
    optional = {name for name, spec in inputs.items() if spec.optional}
    if required != plain or not optional <= overridable or found != list(outputs):
        raise ModelError(
            f"{where} is damaged: its metadata promises inputs {list(inputs)} and outputs "
            f"{list(outputs)}, its graph has {required + sorted(overridable)} and {found}"
        )


def _defaults(metadata: Metadata, inputs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    """Values for the required inputs a caller may leave out."""
    defaults: dict[str, Array] = {}
    for name, spec in inputs.items():
        if spec.optional:
            continue
        if name in metadata.weights:
            defaults[name] = metadata.weights[name]
        elif name == "training":
            defaults[name] = np.array(False)
        elif name in ("query_mask", "value_mask"):
            defaults[name] = np.ones(
                [dim if isinstance(dim, int) else 1 for dim in spec.dims], np.bool_
            )
    return defaults
