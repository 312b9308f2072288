"""Segment an image with this bundle: ``python segment.py IMAGE --out FOLDER``. Needs numpy, OpenCV and onnxruntime."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Before anything that may be installed: what is in the bundle belongs to its models.
    sys.path.insert(0, str(Path(__file__).resolve().parent))

    from line_program import main  # type: ignore[import-not-found]  # it is there in a bundle

    sys.exit(main())
