"""The main job on real images, as a user does it: one image prompted, all others segmented, compared with the truth.

``python tests/bench/main_job.py --out OUT`` runs ``vplab prompt`` and ``vplab segment`` on image sets below VPLAB_DATA,
writes OUT/main_job.json (a set that is run again takes the place of its rows), and with ``--readme`` the table between
the README's ``main job`` marks. Two rows a set: the reference prompted by clicks, and by its true mask, which leaves
only the mistakes of matching and decoding.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.vision.label_images import read_labels

ROOT = Path(__file__).resolve().parents[2]
NUM_CLICKS = 4
# Once, at the start: commits that others make meanwhile are not what runs here. Services that run already may be older.
COMMIT = subprocess.run(
    ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
).stdout.strip()


@dataclass(frozen=True)
class ImageSet:
    """A folder with ``images`` and ``masks``, and the class to look for."""

    name: str
    value: int | None
    """Value of the class in the masks; None where any value but 0 is the class."""
    thing: str


SETS = (
    ImageSet("polypgen", None, "polyp"),
    ImageSet("neu_steel", 2, "patches"),
    ImageSet("crackforest", None, "crack"),
    ImageSet("cxr_covid", 1, "class 1"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("VPLAB_DATA", ROOT.parent / "shared" / "data"))
    )
    parser.add_argument("--sets", nargs="*", default=[s.name for s in SETS])
    parser.add_argument("--readme", action="store_true", help="write the table into the README")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    # A new home each time: production stays at the version it has, so an older home would measure its older models.
    home = arguments.out.absolute() / "home"
    shutil.rmtree(home, ignore_errors=True)
    os.environ["VPLAB_HOME"] = str(home)
    report_path = arguments.out / "main_job.json"
    rows = json.loads(report_path.read_text())["rows"] if report_path.exists() else []
    for image_set in SETS:
        if image_set.name in arguments.sets:
            rows = [row for row in rows if row["set"] != image_set.name]
            rows += run_set(image_set, arguments.data, arguments.out)
            report_path.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    table = table_of(rows)
    print(table)
    if arguments.readme:
        write_between(ROOT / "README.md", "main job", table)


def run_set(image_set: ImageSet, data: Path, out: Path) -> list[dict[str, Any]]:
    """Prompt one image of a set and segment the others, by clicks and by the true mask."""
    folder = data / image_set.name
    truths = {path.stem: path for path in sorted((folder / "masks").glob("*.png"))}
    images = {path.stem: path for path in sorted((folder / "images").iterdir()) if path.stem in truths}
    reference = choose_reference({stem: truth_of(truths[stem], image_set.value) for stem in images})
    others = [str(path) for stem, path in images.items() if stem != reference]
    clicks = [
        part for x, y in choose_clicks(truth_of(truths[reference], image_set.value)) for part in ("--point", f"{x},{y}")
    ]
    given = ["--mask", str(truths[reference])]
    if image_set.value is not None:
        given += ["--mask-value", str(image_set.value)]
    class_id = str(image_set.value or 1)
    rows = []
    for way, prompt in (("clicks", clicks), ("true mask", given)):
        name = f"{image_set.name.replace('_', '-')}-{way.replace(' ', '-')}"
        place = out / name
        vplab("prompt", str(images[reference]), *prompt, "--save", name, "--class-id", class_id,
              "--picture", str(place / "prompt.png"), "--json", str(place / "prompt.json"))  # fmt: skip
        began = time.monotonic()
        binary = ["--truth-is-binary"] if image_set.value is None else []
        vplab("segment", name, *others, "--out", str(place), "--restart", "--truth", str(folder / "masks"), *binary,
              "--json", str(place / "segment.json"))  # fmt: skip
        prompted, segmented = (json.loads((place / f"{verb}.json").read_text()) for verb in ("prompt", "segment"))
        (agreement,) = segmented["agreement"]["classes"]
        found = int(prompted["area_px"])
        rows.append(
            {
                "set": image_set.name,
                "class": image_set.thing,
                "prompt": way if way != "clicks" else f"{len(clicks) // 2} clicks",
                "reference": reference,
                "reference_area_px": found,
                "num_images": segmented["num_done"],
                "num_failed": segmented["num_failed"],
                **agreement,
                "wall_s": round(time.monotonic() - began, 1),
                "commit": COMMIT,
                "machine": f"{os.cpu_count()} CPU cores",
                "models": prompted["provenance"]
                and "{name} ({digest:.12})".format(**prompted["provenance"]["segmenter"]),
            }
        )
    return rows


def choose_reference(truths: dict[str, NDArray[np.bool_]]) -> str:
    """Return the image whose share of the class is the median among those that hold it: neither easy nor odd."""
    shares = sorted((float(mask.mean()), stem) for stem, mask in truths.items() if mask.any())
    return shares[len(shares) // 2][1]


def choose_clicks(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return points well inside the mask: the deepest of each of its largest pieces, then the deepest elsewhere."""
    left = mask.copy()
    radius = max(3, round(np.sqrt(mask.sum()) / 4))
    clicks = []
    while left.any() and len(clicks) < NUM_CLICKS:
        depth = cv2.distanceTransform(np.pad(left, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
        clicks.append((int(column), int(row)))
        around = np.ones(mask.shape, np.uint8)
        cv2.circle(around, (int(column), int(row)), radius, 0, -1)
        left &= around.astype(bool)
    return clicks


def truth_of(path: Path, value: int | None) -> NDArray[np.bool_]:
    """Return the class's mask of a label image."""
    labels = read_labels(path)
    return labels > 0 if value is None else labels == value


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    lines = [
        "| images | class | reference prompted by | mIoU | pooled IoU | images | missed | false alarms | seconds |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = (
            row["set"],
            row["class"],
            row["prompt"],
            f"{row['miou']:.3f}",
            f"{row['pooled_iou']:.3f}",
            row["num_images"],
            row["num_missed"],
            row["num_false_alarms"],
            f"{row['wall_s']:.0f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    models = sorted({row["models"] for row in rows if row["models"]})
    made = sorted({(row["commit"], row["machine"]) for row in rows})
    where = "; ".join(f"commit {commit}, {machine}" for commit, machine in made)
    lines += ["", f"Made by {', '.join(models)}; {where}."]
    return "\n".join(lines)


def write_between(path: Path, mark: str, text: str) -> None:
    """Put a text between ``<!-- mark -->`` and ``<!-- end mark -->`` of a file."""
    begin, end = f"<!-- {mark} -->", f"<!-- end {mark} -->"
    before, found, rest = path.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise SystemExit(f"{path} has no marks {begin} and {end}")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def vplab(*arguments: str) -> None:
    """Run a command; its failure is ours, unless only some images failed."""
    code = subprocess.run([sys.executable, "-m", "vplab.cli.main", *arguments]).returncode
    if code not in (0, 1):
        raise SystemExit(f"vplab {' '.join(arguments[:2])} ended with code {code}")


if __name__ == "__main__":
    main()
