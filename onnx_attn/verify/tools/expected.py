"""The one place where a "no" is expected: what it says, and why it is the tool's limit."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Limit:
    """A "no" that is known.

    `files` are patterns of file names ("*" is every file), `says` is a part of what the tool
    says: another error is another "no". `why` is the reason in one line, `issue` the address of
    a public issue if there is one.
    """

    tool: str
    files: tuple[str, ...]
    says: str
    why: str
    issue: str | None = None

    def covers(self, tool: str, file: str) -> bool:
        """Whether it is about this cell."""
        return tool == self.tool and any(fnmatchcase(file, pattern) for pattern in self.files)


LIMITS: tuple[Limit, ...] = (
    Limit(
        "quant_pre_process",
        ("auto*", "dense masks*", "tiled", "tiled masks*", "fused masks"),
        "AssertionError",
        "Its symbolic shape inference loses the types of bodies: give skip_symbolic_shape=True.",
        "https://github.com/microsoft/onnxruntime/pull/21330",
    ),
    Limit(
        "quantize_static, QDQ",
        ("dense causal",),
        "numbers are off",
        "Its 8-bit range of the scores has to hold the -1e9 of hidden keys: keep that Add out.",
    ),
    Limit(
        "OpenVINO",
        ("auto*", "tiled*", "fused masks"),
        "Conversion failed for Scan",
        'Its converter refuses the Scan of our walk: export with schedule="dense".',
    ),
)
