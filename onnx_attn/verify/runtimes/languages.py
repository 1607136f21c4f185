"""Runtimes in C, C++, Java, Rust and Go: the programs of examples/, built on first use.

Each needs what its language needs, and all but Java the library of ONNX Runtime that this
environment has: what is missing is said by name.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from .environments import call, digest_of, made
from .programs import run_programs
from .runtime import Answer, ModelFacts, Report, RuntimeMissingError, Task, one_line

LIBRARY = "ORT_DYLIB_PATH"
INCLUDE = "ONNXRUNTIME_INCLUDE"
INCLUDE_FOLDERS = tuple(
    Path(prefix) / folder
    for folder in ("include/onnxruntime", "include")
    for prefix in ("/usr", "/usr/local", "/opt/homebrew")
)
# A wheel carries the programs here (pyproject.toml); a checkout has them in examples/.
IN_WHEEL = Path(__file__).with_name("programs")
IN_CHECKOUT = Path(__file__).parents[3] / "examples"


class _Language:
    """A program of examples/, built by its language's own tools."""

    name: str
    title: str
    folder: str
    files: tuple[str, ...]
    # Programs it needs, and how to get each.
    needs: ClassVar[dict[str, str]]
    wanted: str
    program: str = "attention"

    command: list[str]
    environment: dict[str, str]

    def start(self, install: bool, report: Report) -> str:
        sources = self.build(install, report)
        return self._version(sources, first_line([*self.command, "--version"], self.environment))

    def build(self, install: bool, report: Report) -> dict[str, Path]:
        """Build the program if it is not in the cache, set `command`; what it was built from.

        Raises RuntimeMissingError as `start`.
        """
        self.environment = dict(os.environ)
        sources = self.sources()
        for program, how in self.needs.items():
            if shutil.which(program) is None:
                raise RuntimeMissingError(f"{program} is not there: {how}")
        depends = self._depends()

        def make(folder: Path) -> None:
            for name, path in sources.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / name)
            self._build(folder)

        name = f"{self.folder}-{digest_of(sources, *depends)}"
        title = f"the {self.title} program"
        folder = made(name, title, self.wanted, install, report, make)
        self.command = self._run(folder)
        return sources

    def run(self, tasks: Sequence[Task]) -> Iterator[Answer]:
        return run_programs(self.command, self.environment, tasks)

    def limit(self, facts: ModelFacts) -> str | None:
        del facts
        return None

    def sources(self) -> dict[str, Path]:
        """The program's files by their names inside its folder."""
        for root in (IN_WHEEL, IN_CHECKOUT):
            found = sorted(
                path for pattern in self.files for path in (root / self.folder).glob(pattern)
            )
            if found:
                return {str(path.relative_to(root / self.folder)): path for path in found}
        raise RuntimeMissingError(
            f"the sources of the {self.title} program, examples/{self.folder}, are not in this "
            "installation: install onnx_attn from a checkout or its wheel"
        )

    def _depends(self) -> list[str]:
        """What the built program depends on beside its sources; finds what it needs to run."""
        library = native_library()
        self.environment[LIBRARY] = str(library)
        return []

    def _build(self, folder: Path) -> None:
        raise NotImplementedError

    def _run(self, folder: Path) -> list[str]:
        return [str(folder / self.program)]

    def _version(self, sources: dict[str, Path], said: str) -> str:
        """The version in the table's head, then, after commas, what else ran."""
        raise NotImplementedError


class C(_Language):
    """ONNX Runtime's C API, opened at run time."""

    name = "c"
    title = "C API"
    folder = "c"
    files = ("Makefile", "src/*.c", "src/*.h")
    needs: ClassVar[dict[str, str]] = {"cc": "install gcc or clang", "make": "install make"}
    wanted = "make"
    _include: Path

    def _depends(self) -> list[str]:
        self._include = header("onnxruntime_c_api.h")
        return [*super()._depends(), str(self._include)]

    def _build(self, folder: Path) -> None:
        call(["make", "--silent", f"{INCLUDE}={self._include}", "BUILD=."], folder)

    def _version(self, sources: dict[str, Path], said: str) -> str:
        del sources
        return f"{release(said)}, {compiler('cc')}"


class Cpp(_Language):
    """ONNX Runtime's C++ API, linked against its library."""

    name = "cpp"
    title = "C++ API"
    folder = "cpp"
    files = ("CMakeLists.txt", "src/*.cpp", "src/*.hpp")
    needs: ClassVar[dict[str, str]] = {"c++": "install g++ or clang", "cmake": "install cmake"}
    wanted = "cmake --build"
    program = "build/attention"
    _include: Path

    def _depends(self) -> list[str]:
        self._include = header("onnxruntime_cxx_api.h")
        super()._depends()
        # Linked: another version of the library, perhaps at the same path, is another program.
        library = Path(self.environment[LIBRARY])
        return [str(self._include), str(library), str(library.stat().st_size)]

    def _build(self, folder: Path) -> None:
        paths = [
            f"-D{INCLUDE}={self._include}",
            f"-DONNXRUNTIME_LIBRARY={self.environment[LIBRARY]}",
        ]
        call(["cmake", "-S", ".", "-B", "build", *paths], folder)
        call(["cmake", "--build", "build", "--target", "attention"], folder)

    def _version(self, sources: dict[str, Path], said: str) -> str:
        del sources
        return f"{release(said)}, {compiler('c++')}"


class Java(_Language):
    """ONNX Runtime's jar, which brings its own native library."""

    name = "java"
    title = "Java"
    folder = "java"
    files = ("pom.xml", "src/**/*.java")
    needs: ClassVar[dict[str, str]] = {
        "javac": "install a JDK, 17 or later",
        "java": "install a JDK, 17 or later",
        "mvn": "install Maven",
    }
    wanted = "mvn package"

    def _depends(self) -> list[str]:
        return []

    def _build(self, folder: Path) -> None:
        call(["mvn", "--quiet", "--batch-mode", "package"], folder)

    def _run(self, folder: Path) -> list[str]:
        return ["java", "-jar", str(folder / "target/attention.jar")]

    def _version(self, sources: dict[str, Path], said: str) -> str:
        del sources
        words = first_line(["java", "--version"], self.environment).split()
        return f"{release(said)}, Java {words[1] if len(words) > 1 else 'of unknown version'}"

    def limit(self, facts: ModelFacts) -> str | None:
        return "refuses what is fed to optional inputs" if facts.optional_inputs else None


class Rust(_Language):
    """The crate ort."""

    name = "rust"
    title = "Rust ort"
    folder = "rust"
    files = ("Cargo.toml", "Cargo.lock", "src/*.rs")
    needs: ClassVar[dict[str, str]] = {
        "cargo": "install Rust, 1.92 or later (rustup.rs)",
        "cc": "install gcc or clang, which rustc links with",
    }
    wanted = "cargo build"

    def _build(self, folder: Path) -> None:
        call(["cargo", "build", "--quiet", "--locked", "--target-dir", "target"], folder)
        (folder / "target/debug/attention").rename(folder / self.program)
        shutil.rmtree(folder / "target")  # what the compiler left is a hundred times the program

    def _version(self, sources: dict[str, Path], said: str) -> str:
        lock = tomllib.loads(sources["Cargo.lock"].read_text())
        ort = next(each["version"] for each in lock["package"] if each["name"] == "ort")
        rustc = first_line(["rustc", "--version"], self.environment).split()
        return f"{ort}, ONNX Runtime {release(said)}, {' '.join(rustc[:2])}"


class Go(_Language):
    """The module onnxruntime_go."""

    name = "go"
    title = "Go onnxruntime_go"
    folder = "go"
    files = ("go.mod", "go.sum", "*.go")
    needs: ClassVar[dict[str, str]] = {
        "go": "install Go, 1.19 or later",
        "cc": "install gcc or clang, which cgo needs",
    }
    wanted = "go build"

    def _build(self, folder: Path) -> None:
        call(["go", "build", "-o", self.program, "."], folder)

    def _version(self, sources: dict[str, Path], said: str) -> str:
        found = re.search(r"onnxruntime_go v(\S+)", sources["go.mod"].read_text())
        module = found[1] if found else "of unknown version"
        # "go version go1.26.8 linux/amd64"
        go = first_line(["go", "version"], self.environment).split()[2].removeprefix("go")
        return f"{module}, ONNX Runtime {release(said)}, Go {go}"


def native_library() -> Path:
    """ONNX Runtime's library: ORT_DYLIB_PATH, or that in the installed wheel.

    Raises RuntimeMissingError if there is none.
    """
    if given := os.environ.get(LIBRARY):
        if not Path(given).is_file():
            raise RuntimeMissingError(f"{LIBRARY}={given} is no file")
        return Path(given)
    import onnxruntime

    pattern = {"darwin": "libonnxruntime.*dylib", "win32": "onnxruntime.dll"}.get(
        sys.platform, "libonnxruntime.so*"
    )
    folder = Path(onnxruntime.__file__).parent / "capi"
    for library in sorted(folder.glob(pattern)):
        return library
    raise RuntimeMissingError(
        f"ONNX Runtime's library is not in {folder}: set {LIBRARY} to its path"
    )


def header(name: str) -> Path:
    """The folder of a header of ONNX Runtime: ONNXRUNTIME_INCLUDE, or where systems keep it.

    Raises RuntimeMissingError if it is not there.
    """
    given = os.environ.get(INCLUDE)
    for folder in [Path(given).resolve()] if given else INCLUDE_FOLDERS:
        if (folder / name).is_file():
            return folder
    where = f"not in {INCLUDE}={given}" if given else "not there"
    raise RuntimeMissingError(
        f"{name} is {where}: apt-get install libonnxruntime-dev (Debian 13), or run "
        f"examples/cpp/headers.sh FOLDER and set {INCLUDE} to that folder"
    )


def first_line(command: Sequence[str], environment: dict[str, str]) -> str:
    """What a program says of its version; raises RuntimeMissingError if it cannot."""
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeMissingError(f"{Path(command[0]).name} failed: {one_line(error)}") from error
    if done.returncode or not done.stdout.strip():
        said = one_line((done.stderr or done.stdout)[-400:])
        raise RuntimeMissingError(f"'{' '.join(command)}' failed: {said}")
    return done.stdout.strip().splitlines()[0]


def release(said: str) -> str:
    """The release in "ONNX Runtime 1.31.1"."""
    return said.removeprefix("ONNX Runtime ")


def compiler(name: str) -> str:
    """Name and version of a C or C++ compiler, as in "gcc 12.2.0"."""
    words = first_line([name, "--version"], dict(os.environ)).split()
    # "cc (Debian 12.2.0-14) 12.2.0", "Apple clang version 15.0.0 (clang-1500.1.0)"
    numbers = [word for word in words if re.fullmatch(r"\d+\.\d+(\.\d+)?", word)]
    kind = "clang" if "clang" in words else "gcc"
    return f"{kind} {numbers[0] if numbers else 'of unknown version'}"
