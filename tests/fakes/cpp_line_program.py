"""A line bundle's program in C++, built as the bundle's README says.

Needs cmake, a compiler, the headers of OpenCV and nlohmann-json, and ONNXRUNTIME_DIR: a release of ONNX Runtime, or its
headers alone (``.ci/onnxruntime_headers FOLDER``), which the wheel's library is then linked with.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import onnxruntime
import pytest

from vplab.training import line_bundle

SOURCE = Path(line_bundle.__file__).parent / "cpp"


def build_line_program(folder: Path) -> Path:
    """Build the program below a folder; skip the test, or fail it with CI=true, where something is missing."""
    given = Path(os.environ.get("ONNXRUNTIME_DIR", "none"))
    if not (given / "include").is_dir():
        _miss("ONNXRUNTIME_DIR names no folder with include/")
    if shutil.which("cmake") is None:
        _miss("there is no cmake")
    runtime = given.resolve() if (given / "lib").is_dir() else _with_library_of_wheel(given, folder / "onnxruntime")
    command = ["cmake", "-S", SOURCE, "-B", folder / "build", f"-DONNXRUNTIME_DIR={runtime}"]
    configured = subprocess.run(command, capture_output=True, text=True)
    if configured.returncode != 0:
        _miss(f"cmake does not find all it needs: {configured.stderr}")
    built = subprocess.run(["cmake", "--build", folder / "build"], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "warning" not in built.stdout + built.stderr
    return folder / "build" / "segment"


def _with_library_of_wheel(headers: Path, folder: Path) -> Path:
    (folder / "lib").mkdir(parents=True)
    (folder / "include").symlink_to((headers / "include").resolve())
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(library)
    return folder


def _miss(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
