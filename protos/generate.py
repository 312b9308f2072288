"""Generate the Python stubs from the protos, or check that the committed ones are current.

Run as ``python protos/generate.py`` to write ``protos/generated``; with ``--check`` nothing is written and the exit
code is 1 when a stub differs, is missing or has no proto any more. The generator is pinned in pyproject.toml, because
its output changes with its version.
"""

import argparse
import filecmp
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
GENERATED = ROOT / "generated"


def generate(out: Path) -> None:
    """Write message, type and service stubs of every proto below ``out``."""
    protos = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "vplab").rglob("*.proto"))
    well_known = str(files("grpc_tools") / "_proto")
    flags = [f"--{kind}={out}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    if protoc.main(["protoc", f"--proto_path={ROOT}", f"--proto_path={well_known}", *flags, *protos]) != 0:
        sys.exit("protoc failed")
    for stub in out.rglob("*_pb2_grpc.py"):
        # A file without a service gets a stub with nothing in it, which only clutters the tree.
        if "class " not in stub.read_text():
            stub.unlink()


def differing(fresh: Path, committed: Path) -> list[str]:
    """Return the relative paths of stubs that differ, are missing or are left over."""
    names = {str(p.relative_to(root)) for root in (fresh, committed) for p in root.rglob("*_pb2*.py*") if p.is_file()}
    names = {name for name in names if "__pycache__" not in name}
    _, mismatched, missing = filecmp.cmpfiles(fresh, committed, names, shallow=False)
    return sorted(mismatched + missing)


def main() -> None:
    """Parse the arguments and generate or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when a committed stub is not current"
    )
    arguments = parser.parse_args()
    if not arguments.check:
        GENERATED.mkdir(exist_ok=True)
        generate(GENERATED)
        return
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        stale = differing(fresh, GENERATED)
    if stale:
        sys.exit("stubs are not current, run `python protos/generate.py`:\n  " + "\n  ".join(stale))


if __name__ == "__main__":
    main()
