"""The proof: the original and the new model give the same numbers, or the site to blame."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from ..errors import InputError, ModelError, OnnxAttnError
from .normal import Source
from .runs import RunError, Runner
from .samples import Sample, Sampler

# Batch and length of made inputs: beyond one block, below, decoding. The first that the original
# runs count; positions are bounded by tables.
SIZES = ((2, 300), (3, 33), (2, 7), (1, 1))
SHORTER = ((2, 190), (2, 128), (2, 64), (2, 24), (1, 12))
# For models that bake the batch of their export in.
LAST_RESORT = tuple(
    (batch, length) for batch in (1, 2, 3, 4) for length in (4, 5, 8, 10, 12, 13, 16, 20, 32, 64)
)
# Seconds of runs after which no further sizes are tried.
PATIENCE = 240.0

# A model may turn the rounding of its own weights into more than the limit. The limit cannot then
# be met by anything that adds in another order, and a few times that rounding is allowed instead;
# but limits below LEAST_LIMIT, which rounding alone exceeds, are taken at their word.
ROUNDING, ALLOWED, LEAST_LIMIT = 2.0**-24, 4.0, 1e-5

Build = Callable[[Sequence[str]], onnx.ModelProto]


@dataclass
class Proof:
    """What was compared.

    difference: the largest of all, relative to the largest magnitude of its output; samples: what
    was run; failed: what the original itself does not run, with the runtime's words; unstable:
    where the original's own outputs change by more than the limit when its weights change by half
    a unit in the last place, and by how much.
    """

    difference: float = 0.0
    samples: list[str] = field(default_factory=list[str])
    failed: list[str] = field(default_factory=list[str])
    unstable: dict[str, float] = field(default_factory=dict[str, float])

    def __str__(self) -> str:
        words = f"{len(self.samples)} runs, largest difference {self.difference:.2g}"
        if self.unstable:
            words += (
                f"; rounding its weights moves the original itself by "
                f"{max(self.unstable.values()):.2g} on {len(self.unstable)} of them"
            )
        return words + (
            f"; the original does not run: {'; '.join(self.failed)}" if self.failed else ""
        )


def difference(old: Any, new: Any) -> float:
    """The largest difference of two outputs, relative to the old one's largest magnitude.

    NaN against NaN and equal infinities are equal; anything else against them differs by inf.
    """
    old, new = np.asarray(old), np.asarray(new)
    if old.shape != new.shape or old.dtype != new.dtype:
        return float("inf")
    if old.dtype.kind not in "fc":
        return 0.0 if bool((old == new).all()) else float("inf")
    old, new = old.astype(np.float64), new.astype(np.float64)
    finite = np.isfinite(old)
    if not np.array_equal(old[~finite], new[~finite], equal_nan=True):
        return float("inf")
    if not np.isfinite(new[finite]).all():
        return float("inf")
    largest = float(np.abs(old[finite]).max(initial=0.0))
    apart = float(np.abs(old[finite] - new[finite]).max(initial=0.0))
    return apart / largest if largest else apart and float("inf")


class Prover:
    """Compares rewritten models with one original."""

    def __init__(
        self,
        source: Source,
        sampler: Sampler,
        inputs: Mapping[str, Any] | None,
        at: Mapping[str, int] | None,
    ) -> None:
        """Runs the original. Raises ModelError where it runs on nothing, InputError for feeds."""
        self.source = source
        self.proof = Proof()
        self.original = Runner(source.proto, source.folder, source.where)
        self.sampler = sampler
        self.samples: list[tuple[Sample, list[Any]]] = []
        self.length = 0
        self.rounded: Runner | None = None
        if inputs is not None:
            self.original.check(inputs)
            given = {name: np.asarray(array) for name, array in inputs.items()}
            sample = Sample("the inputs given", given)
            try:
                self.samples.append((sample, self.original(given)))
            except RunError as error:
                raise InputError(f"inputs: the original does not run on them: {error}") from error
        self._make(at)
        self._check_repeatable()
        if not self.samples:
            words = self.proof.failed[0] if self.proof.failed else "no inputs could be made"
            raise ModelError(
                f"{source.where} does not run as it is, so nothing can be proven: {words}. "
                "Give inputs that it runs on"
            )

    def _check_repeatable(self) -> None:
        """Raises ModelError for a model of random operators, of which nothing can be proven."""
        for sample, outputs in self.samples[:2]:
            again = self.original(sample.feeds)
            if any(difference(a, b) != 0 for a, b in zip(outputs, again, strict=True)):
                raise ModelError(
                    f"{self.source.where} gives other numbers each time it runs, so nothing can be "
                    "proven: export it for inference, without Dropout in training mode"
                )

    def _make(self, at: Mapping[str, int] | None) -> None:
        begin = time.monotonic()
        if at:
            self._try(*SIZES[1], at, all_masks=False)
        for batch, length in SIZES:
            self._try(batch, length, None)
            if time.monotonic() - begin > PATIENCE:
                break
        if self.length < SIZES[0][1]:
            for batch, length in SHORTER:
                if length > self.length and self._try(batch, length, None):
                    break
        if not self.samples:
            failed = list(self.proof.failed)
            for batch, length in LAST_RESORT:
                if self._try(batch, length, None):
                    break
            self.proof.failed = failed

    def _try(
        self, batch: int, length: int, at: Mapping[str, int] | None, all_masks: bool = True
    ) -> bool:
        """Run the original at one size; whether it ran."""
        for count, sample in enumerate(self.sampler.samples(batch, length, at)):
            if count and not all_masks:
                break
            if any(sample.words == known.words for known, _ in self.samples):
                continue
            try:
                outputs = self.original(sample.feeds)
            except RunError as error:
                self.proof.failed.append(f"{sample.words} ({str(error)[:200]})")
                if count == 0:
                    return False
                continue
            self.samples.append((sample, outputs))
        self.length = max(self.length, length)
        return True

    def prove(self, build: Build, names: Sequence[str], limit: float) -> Proof:
        """Compare the model with `names` rewritten. Raises OnnxAttnError, naming the site."""
        found = self._worst(build(names), limit)
        if found is None:
            return self.proof
        sample, apart = found
        blame = self._blame(build, list(names), sample, limit)
        raise OnnxAttnError(
            f"{self.source.where}: with {blame} rewritten an output differs by {apart:.2g} of its "
            f"largest magnitude, more than {limit:g}, at {sample.words}. Nothing was written"
        )

    def _worst(self, model: onnx.ModelProto, limit: float) -> tuple[Sample, float] | None:
        """The first sample beyond the limit; notes the largest difference of the others."""
        runner = Runner(model, self.source.folder, "the rewritten model")
        for sample, outputs in self.samples:
            apart = self._apart(runner, sample, outputs)
            if not self._agree(sample, outputs, apart, limit):
                return sample, apart
            self.proof.difference = max(self.proof.difference, apart)
            if sample.words not in self.proof.samples:
                self.proof.samples.append(sample.words)
        return None

    def _agree(self, sample: Sample, outputs: list[Any], apart: float, limit: float) -> bool:
        """Whether a difference is within the limit, or within what rounding the weights makes."""
        if apart <= limit:
            return True
        if limit < LEAST_LIMIT or not np.isfinite(apart) or self.source.folder is not None:
            return False
        if self.rounded is None:
            self.rounded = Runner(_rounded(self.source.proto), None, "the rounded model")
        noise = self._apart(self.rounded, sample, outputs)
        if noise <= limit or not apart <= ALLOWED * noise or not np.isfinite(noise):
            return False
        self.proof.unstable[sample.words] = noise
        return True

    def _apart(self, runner: Runner, sample: Sample, outputs: list[Any]) -> float:
        try:
            new = runner(sample.feeds)
        except RunError:
            return float("inf")
        return max((difference(a, b) for a, b in zip(outputs, new, strict=True)), default=0.0)

    def _blame(self, build: Build, names: list[str], sample: Sample, limit: float) -> str:
        """One site that alone, or with those before it, makes the difference: by halving."""
        outputs = next(outputs for known, outputs in self.samples if known is sample)

        def differs(some: list[str]) -> bool:
            runner = Runner(build(some), self.source.folder, "the rewritten model")
            apart = self._apart(runner, sample, outputs)
            return not self._agree(sample, outputs, apart, limit)

        low, high = 0, len(names)  # names[:low] agree, names[:high] differ
        while high - low > 1:
            middle = (low + high) // 2
            if differs(names[:middle]):
                high = middle
            else:
                low = middle
        return f"site {names[high - 1]!r}"


def _rounded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its float32 weights moved by about half a unit in the last place."""
    random = np.random.default_rng(0)
    moved = onnx.ModelProto()
    moved.CopyFrom(proto)
    for tensor in moved.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        weights = onnx.numpy_helper.to_array(tensor)
        if weights.size > 16 and np.isfinite(weights).all():
            weights = weights * (1 + ROUNDING * random.standard_normal(weights.shape))
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights.astype(np.float32), tensor.name))
    return moved
