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


LIMITS: tuple[Limit, ...] = ()
