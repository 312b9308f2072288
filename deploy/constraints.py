"""Resolve the distribution with all its extras anew and rewrite constraints.txt.

Run in a virtual environment of the oldest supported Python: ``python deploy/constraints.py``. Only names and versions
are kept, so the file works with any index.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "deploy" / "constraints.txt"
HEADER = "# Made by deploy/constraints.py: the versions that the tests ran with. Use with `pip install -c`.\n"


def main() -> None:
    """Ask pip for a resolution of every extra and write it down."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        what = ["-e", f"{ROOT}[all,dev]"]
        flags = ["--dry-run", "--ignore-installed", "--quiet", "--report", report.name]
        subprocess.run([sys.executable, "-m", "pip", "install", *flags, *what], check=True)
        installed = json.loads(Path(report.name).read_text())["install"]
    pins = {item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in installed}
    pins.pop("vplab", None)
    CONSTRAINTS.write_text(HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items())))


if __name__ == "__main__":
    main()
