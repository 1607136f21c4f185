"""Running a file: a thin wrapper on ONNX Runtime's InferenceSession.

Needs numpy and onnxruntime only; onnx and onnxscript are never imported from here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Self, cast

import numpy as np
import onnxruntime

from ..arrays import Array, shown
from ..configuration import numpy_dtype
from ..contract import TensorSpec
from ..device.start import Device, device_of, require_runtime, start
from ..errors import InputError, OnnxAttnError
from ..file.disk import as_path, read_file
from ..file.metadata import DIGEST_KEY, read_metadata
from ..file.protobuf import graph_digest, metadata_of, refuse_external_files, weight_shape
from .feeds import as_array, as_mapping, check_shapes, known_names
from .runtime import (
    ORT_TYPES,
    check_graph,
    open_file,
    run_error,
    session_options,
    thread_count,
)

# Validated shapes remembered per session: enough for bucketed lengths, bounded for random ones.
REMEMBERED_SHAPES = 1024
EXPORT_IT = "Write it with Attention(...).export(path)"
BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


class AttentionSession:
    """A file that `Attention.export` wrote, ready to run; safe to call from many threads.

    It can be pickled and sent to other processes (the path or the bytes and these arguments go,
    the file is opened again there), and is a context manager that closes at its end.

    Args:
        model: path of the file, or its bytes.
        device: "cpu", "cuda", "cuda:1", or "auto" (CUDA if it really starts, else the CPU, said
            once on the logger "onnx_attn"). `.device` tells what runs.
        threads: CPU threads inside one operator, 1 to 1024; None takes what the CPU affinity and
            the cgroup quota of this process grant.
        spin: let worker threads spin for some ms after a call (True), or sleep (False). Measured
            with 2 threads: 1x128x128x64 takes 0.05 ms spinning and 0.09 asleep, 1x512x512x64
            0.38 and 0.45; but one call every 50 ms keeps 0.8 of a core busy spinning, 0.02
            asleep. Without spinning where processes or sessions share cores. With threads=1
            nothing spins.
        use_tf32: let CUDA round float32 products to 10 bits of mantissa: faster, errors of about
            1e-3 relative instead of 1e-6.
        memory_limit: most bytes that CUDA may hold for this session; it grows by what is asked
            for instead of by powers of two.

    Raises:
        ModelError: the file is missing, broken, not ours, newer than this package, keeps data in
            other files, or has other tensors than its metadata promises. A file that a tool has
            changed runs as long as its inputs and outputs are those; sizes may be fixed since.
        DeviceError: the device is not there; says what is missing.
        InputError: an argument is no possible value.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        device: str = "auto",
        threads: int | None = None,
        *,
        spin: bool = True,
        use_tf32: bool = False,
        memory_limit: int | None = None,
    ) -> None:
        self._session: onnxruntime.InferenceSession | None = None
        if not isinstance(spin, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"spin must be True or False; received {shown(spin)}")
        require_runtime()
        wanted = Device.parse(device, use_tf32, memory_limit)
        if not isinstance(model, bytes):
            try:
                model = os.fspath(as_path(model).absolute())
            except InputError as error:
                raise InputError(
                    f"model: expected the path of a file or its bytes; received {shown(model)}"
                ) from error
        where = "the model" if isinstance(model, bytes) else model
        data = model if isinstance(model, bytes) else read_file(model, EXPORT_IT)
        properties = metadata_of(data, where)
        self._file = read_metadata(properties, where)
        refuse_external_files(data, where)
        options = session_options(thread_count(threads), spin)

        def as_exported() -> bool | None:
            written = properties.get(DIGEST_KEY)
            return None if written is None else written == graph_digest(data, where)

        self._session = start(
            lambda providers: open_file(data, where, options, providers, as_exported), wanted
        )
        specs = check_graph(self._session, self._file.contract, where)
        #: Where the file runs, read back from the runtime: "cpu", "cuda:0", ...
        self.device: str = device_of(self._session, wanted.number)
        #: Inputs and outputs by name, in the file's order.
        self.inputs: dict[str, TensorSpec] = specs.inputs
        self.outputs: dict[str, TensorSpec] = specs.outputs
        self._arguments: dict[str, Any] = {
            "model": model,
            "device": device,
            "threads": threads,
            "spin": spin,
            "use_tf32": use_tf32,
            "memory_limit": memory_limit,
        }
        self._dtypes = {name: numpy_dtype(spec.dtype) for name, spec in specs.inputs.items()}
        self._defaults = {
            name: spec.default
            for name, spec in specs.inputs.items()
            if spec.default is not None and not spec.optional
        }
        scale = weight_shape(data, "scale", where)
        # AdditiveAttention's scale is a vector: a file that holds it fits one dim.
        self._fixed_dim = scale[0] if scale else None
        self._seen: set[tuple[tuple[int, ...] | None, ...]] = set()
        self._output_names = list(specs.outputs)
        # bfloat16 reaches ONNX Runtime only as bits under a stated type.
        self._bfloat16 = self._file.config.floats.tensor == "bfloat16"

    @property
    def config(self) -> dict[str, Any]:
        """The layer's configuration: its class under "layer", then Keras's arguments."""
        return dict(vars(self._file.config))

    @property
    def export_options(self) -> dict[str, Any]:
        """The options the file was exported with."""
        return dict(vars(self._file.options))

    @property
    def ort_session(self) -> onnxruntime.InferenceSession:
        """ONNX Runtime's own session, for all it can do; raises OnnxAttnError once closed."""
        session = self._session
        if session is None:
            raise OnnxAttnError("this session is closed; open the file again to run it")
        return session

    def close(self) -> None:
        """Let go of the runtime's session and its memory; calls that are running finish."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self._arguments, "closed": self._session is None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        arguments = dict(state)
        closed = arguments.pop("closed")
        self.__init__(**arguments)
        if closed:
            self.close()

    def __repr__(self) -> str:
        model = self._arguments["model"]
        shown_model = f"<{len(model)} bytes>" if isinstance(model, bytes) else repr(model)
        where = repr(self.device) if self._session is not None else "closed"
        return f"AttentionSession({shown_model}, device={where})"

    def __call__(
        self,
        query: object,
        value: object,
        key: object = None,
        *,
        query_mask: object = None,
        value_mask: object = None,
        scale: object = None,
        concat_score_weight: object = None,
        training: object = None,
        bias: object = None,
    ) -> Array | tuple[Array, ...]:
        """Run the file by Keras's words.

        Args:
            query: float[batch, Tq, dim] in the file's dtype; [batch, heads, Tq, dim] where it was
                exported with heads=True, and so on.
            value: float[batch, Tv, value_dim].
            key: float[batch, Tv, dim]; None takes `value`.
            query_mask: bool[batch or 1, Tq or 1]; None means all True.
            value_mask: bool[batch or 1, Tv or 1]; None means all True.
            scale: scalar (AdditiveAttention: [dim]), if the file takes it as an input; None takes
                the trained one.
            concat_score_weight: scalar, as `scale`.
            training: bool, if the file takes it; None means False.
            bias: float[batch or 1, Tq or 1, Tv or 1], with heads [batch or 1, heads or 1, ..], if
                the file takes it; None adds nothing.

        Returns:
            output float[batch, Tq, value_dim]; with attention_scores float[batch, Tq, Tv] in a
            tuple where the file returns them.

        Raises:
            InputError: a tensor does not fit the file or the others.
            OnnxAttnError: the runtime failed (memory above all), or the session is closed.
        """
        feeds = {"query": query, "value": value}
        for name, given in (
            ("key", key),
            ("query_mask", query_mask),
            ("value_mask", value_mask),
            ("scale", scale),
            ("concat_score_weight", concat_score_weight),
            ("training", training),
            ("bias", bias),
        ):
            if given is not None:
                feeds[name] = given
        results = self.run(feeds)
        if len(results) == 1:
            return results["output"]
        return tuple(results.values())

    def run(
        self,
        feeds: Mapping[str, object],
        outputs: Iterable[str] | None = None,
        *,
        ort_values: bool = False,
    ) -> dict[str, Any]:
        """Run the file by its own names.

        Args:
            feeds: arrays or `onnxruntime.OrtValue`s by input name, as `.inputs` lists them. A
                missing key is fed `value`; missing masks, scale, training and bias take
                their defaults. onnx_attn.session.feeds says which arrays are taken.
            outputs: names of the outputs wanted, in that order; None means all.
            ort_values: return OrtValues that stay on the session's device, not arrays.

        Returns:
            The arrays (or OrtValues) by output name.

        Raises:
            InputError: a name is unknown or missing, or a tensor does not fit.
            OnnxAttnError: the runtime failed (memory above all), or the session is closed.
        """
        session = self._session or self.ort_session  # which says that it is closed
        arrays, needs_binding = self._feeds(as_mapping(feeds))
        names = self._output_names if outputs is None else self._wanted(outputs)
        try:
            if needs_binding or ort_values:
                results = self._run_bound(session, names, arrays, ort_values)
            else:
                results = session.run(names, arrays)
        except Exception as error:
            raise run_error(error, self.device) from error
        return dict(zip(names, results, strict=True))

    def _feeds(self, feeds: Mapping[str, object]) -> tuple[dict[str, Any], bool]:
        """The tensors of every input, and whether they need IOBinding to come in."""
        arrays: dict[str, Any] = {}
        shapes: list[tuple[int, ...] | None] = []
        found, needs_binding = 0, self._bfloat16
        for name, dtype in self._dtypes.items():
            given: Any = feeds.get(name)
            if given is None:
                if name == "key" and "value" in arrays:
                    given = arrays["value"]
                    shape = shapes[1]
                elif name in self._defaults:
                    given = self._defaults[name]
                    shape = given.shape
                elif self.inputs[name].optional:
                    shapes.append(None)
                    continue
                else:
                    known_names(feeds, self.inputs, "input")
                    others = ", ".join(n for n in feeds if feeds[n] is not None) or "nothing"
                    missing = "is None" if name in feeds else "is missing"
                    raise InputError(
                        f"{name} {missing}: expected {self.inputs[name]}; given: {others}"
                    )
                found += name in feeds
            else:
                found += 1
                if isinstance(given, onnxruntime.OrtValue):
                    shape = _shape_of_ort_value(self.inputs[name], given)
                    needs_binding = True
                else:
                    # dtype objects of NumPy's own types are single: `is` is the cheap test.
                    if not (
                        type(given) is np.ndarray
                        and given.dtype is dtype
                        and given.flags.c_contiguous
                    ):
                        given = as_array(self.inputs[name], given)
                    shape = given.shape
            arrays[name] = given
            shapes.append(shape)
        if found != len(feeds):
            known_names(feeds, self.inputs, "input")
        signature = tuple(shapes)
        if signature not in self._seen:
            given_shapes = zip(self.inputs, signature, strict=True)
            check_shapes(
                self.inputs,
                {name: shape for name, shape in given_shapes if shape is not None},
                self._fixed_dim,
            )
            if len(self._seen) >= REMEMBERED_SHAPES:
                self._seen.clear()
            self._seen.add(signature)
        return arrays, needs_binding

    def _wanted(self, outputs: object) -> list[str]:
        if isinstance(outputs, str):
            outputs = [outputs]
        listed = f"outputs of this file: {', '.join(self.outputs)}"
        if not isinstance(outputs, Iterable):
            raise InputError(
                f"outputs must be a list of names; received {shown(outputs)}; {listed}"
            )
        names = list(cast("Iterable[object]", outputs))
        for name in names:
            if not isinstance(name, str):
                raise InputError(f"outputs: {shown(name)} is no name; {listed}")
        strings = cast("list[str]", names)
        known_names(dict.fromkeys(strings), self.outputs, "output")
        if not names:
            raise InputError(f"outputs is empty; {listed}")
        return strings

    def _run_bound(
        self,
        session: onnxruntime.InferenceSession,
        names: list[str],
        feeds: Mapping[str, Any],
        ort_values: bool,
    ) -> list[Any]:
        """Run by IOBinding, the way in and out for OrtValues and bfloat16."""
        binding = session.io_binding()
        # The runtime reads an array's own memory: `values` keeps it until the run has ended.
        values = {name: _ort_value(given, self.inputs[name]) for name, given in feeds.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        kind, _, index = self.device.partition(":")
        if not ort_values and not self._bfloat16:
            for name in names:
                binding.bind_output(name)
            session.run_with_iobinding(binding)
            return [value.numpy() for value in binding.get_outputs()]
        if ort_values:
            for name in names:
                binding.bind_output(name, kind, int(index or 0))
            session.run_with_iobinding(binding)
            return list(binding.get_outputs())
        # OrtValue.numpy() refuses bfloat16: the outputs are written into arrays of ours.
        sizes: dict[str | int, int] = {}
        for name, value in values.items():
            sizes.update(zip(self.inputs[name].dims, value.shape(), strict=True))
        if "key" not in self.inputs and "dim" in sizes:
            sizes["value_dim"] = sizes["dim"]
        results: list[Array] = []
        for name in names:
            spec = self.outputs[name]
            shape = [dim if isinstance(dim, int) else sizes[dim] for dim in spec.dims]
            results.append(np.empty(shape, numpy_dtype(spec.dtype)))
            binding.bind_ortvalue_output(name, _ort_value(results[-1], spec))
        session.run_with_iobinding(binding)
        return results


def _ort_value(given: Any, spec: TensorSpec) -> onnxruntime.OrtValue:
    if isinstance(given, onnxruntime.OrtValue):
        return given
    if spec.dtype == "bfloat16":
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
            given.view(np.uint16), BFLOAT16
        )
    return onnxruntime.OrtValue.ortvalue_from_numpy(given)


def _shape_of_ort_value(spec: TensorSpec, value: onnxruntime.OrtValue) -> tuple[int, ...]:
    """Its shape; raises InputError unless it is a tensor of the spec's dtype."""
    received = value.data_type() if value.has_value() else "an empty OrtValue"
    if ORT_TYPES.get(received) != spec.dtype:
        raise InputError(
            f"{spec.name}: expected {spec.dtype}[{', '.join(str(dim) for dim in spec.dims)}]; "
            f"received an OrtValue of {received}. Make it from an array of {spec.dtype}"
        )
    return tuple(value.shape())
