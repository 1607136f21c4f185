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


# Files whose bodies read constants of the graph around them.
_BODIES = ("auto*", "dense masks*", "tiled*", "fused*")

LIMITS: tuple[Limit, ...] = (
    *(
        Limit(
            tool,
            _BODIES,
            "Nodes in a graph must be topologically sorted",
            "Our bodies read constants of the graph around them, which it renames or drops.",
        )
        for tool in ("compose.add_prefix", "compose: merged twice", "extract_model")
    ),
    *(
        Limit(
            tool,
            ("auto causal", "auto masks causal"),
            "Incompatible dimensions",
            "A branch of ours that is never taken does not fit the sizes fixed here.",
        )
        for tool in ("compose: behind a fixed model", "make_dynamic_shape_fixed")
    ),
    Limit(
        "quant_pre_process",
        ("auto*", "dense masks*", "tiled", "tiled masks*", "fused masks"),
        "AssertionError",
        "Its symbolic shape inference fails in bodies: give skip_symbolic_shape=True.",
    ),
    Limit(
        "quantize_static, QDQ",
        ("dense causal",),
        "numbers are off",
        "Its 8-bit range of the scores has to hold the -1e9 of hidden keys: keep that Add out.",
    ),
    Limit(
        "float16, onnxconverter-common",
        ("auto masks causal",),
        "TypeInferenceError",
        "It leaves Cast(to=FLOAT) as it is, though its output becomes float16.",
        "https://github.com/microsoft/onnxconverter-common/issues/320",
    ),
    Limit(
        "quant_pre_process",
        ("tiled causal",),
        "no end within",
        "Its symbolic shape inference does not end: give skip_symbolic_shape=True.",
    ),
    Limit(
        "OpenVINO",
        ("auto*", "tiled*", "fused masks"),
        "Conversion failed for Scan",
        'Its converter refuses the Scan of our walk: export with schedule="dense".',
    ),
)
