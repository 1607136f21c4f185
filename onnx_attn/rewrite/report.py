"""What a rewrite found, proved and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from .proof import Proof


@dataclass
class SiteReport:
    """One Softmax of the model.

    name: the Softmax node's; rewritten: whether the walk is in its place; reason: why not; mask:
    what is added to its scores or hides them, in words (None where it was not read).
    """

    name: str
    rewritten: bool
    reason: str | None = None
    mask: str | None = None

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "rewritten": self.rewritten,
            "reason": self.reason,
            "mask": self.mask,
        }


@dataclass
class Result:
    """A rewritten model, or why there is none.

    model: None where no site was rewritten; sites: every Softmax of the model; proof: None where
    there was nothing to prove; max_difference: the limit that it was held to; before, after: what
    is known of the two files; at: the sizes of the race; notes: what else is worth knowing.
    """

    model: onnx.ModelProto | None
    sites: list[SiteReport]
    max_difference: float
    proof: Proof | None = None
    before: dict[str, Any] = field(default_factory=dict[str, Any])
    after: dict[str, Any] | None = None
    at: Mapping[str, int] | None = None
    notes: list[str] = field(default_factory=list[str])

    @property
    def rewritten(self) -> int:
        """How many sites were rewritten."""
        return sum(site.rewritten for site in self.sites)

    def report(self) -> dict[str, Any]:
        """The report as JSON: what `onnx-attn rewrite --report` writes."""
        proof = self.proof
        return {
            "sites": [site.report() for site in self.sites],
            "max_difference": self.max_difference,
            "difference": None if proof is None else proof.difference,
            "proven_on": [] if proof is None else proof.samples,
            "original_moves_by": {} if proof is None else proof.unstable,
            "original_fails_on": [] if proof is None else proof.failed,
            "at": None if self.at is None else dict(self.at),
            "before": self.before,
            "after": self.after,
            "notes": self.notes,
        }
