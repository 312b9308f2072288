"""``vplab demo``: the whole job on generated images, with the figures of how well it went."""

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from vplab.cli.agreement import compare, figures
from vplab.cli.connection import Where, connected
from vplab.cli.exit_codes import ExitCode
from vplab.cli.folder_run import FolderRun, mask_path
from vplab.cli.image_files import ImageFile
from vplab.cli.journal import Journal
from vplab.cli.parameters import JsonFile, where_of
from vplab.cli.pictures import Cell, contact_sheet, overlay, save_picture, write_whole
from vplab.cli.prompting import Clicks, propose, save_reference
from vplab.cli.running import run_async, verb
from vplab.cli.terminal import messages, results, write_json
from vplab.client import AsyncClient, SegmentClass
from vplab.client.segmentation.values import PromptSet
from vplab.errors import InvalidInput
from vplab.vision.label_images import label_png, read_labels
from vplab.vision.synthesis import DEFECTS, SURFACES, InspectionImage, synthesize_inspection_set

_PROMPT_SET = "demo"
_MAX_CLICKS = 6
_GOOD_IOU = 0.85
"""A person stops correcting a mask that fits this well."""


@dataclass(frozen=True, eq=False)
class _Taught:
    clicks: Clicks
    mask: NDArray[np.bool_]
    iou: float


@verb
def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where images, masks and the picture go.")] = Path(
        "vplab-demo"
    ),
    num_images: Annotated[int, typer.Option(min=2, max=64, help="How many images, the reference among them.")] = 9,
    size: Annotated[int, typer.Option(min=64, max=2048, help="Side of the images, in pixels.")] = 512,
    defect: Annotated[str, typer.Option(metavar="NAME", help=f"One of {', '.join(sorted(DEFECTS))}.")] = "patch",
    surface: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"One of {', '.join(sorted(SURFACES))}; drawn from the seed.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal images.")] = 0,
    json_file: JsonFile = None,
) -> ExitCode:
    """Generate inspection images, click on one, segment the others, and report how well that went.

    The images are generated with exact masks, so no data and no network is needed. The clicks stand for a person's: the
    middle of the defect first, then the middle of the largest mistake, until the mask fits.

    Example: vplab demo --out demo --seed 3
    """
    began = time.monotonic()
    images = synthesize_inspection_set(num_images, (size, size), defect, seed, surface=surface)
    files = _write_images(images, out)
    taught, prompt_set, journal = run_async(_work(where_of(context), images, files, out))
    worked_s = time.monotonic() - began
    done = [
        (image, file) for image, file in zip(images[1:], files[1:], strict=True) if journal.entries[file.key].is_done
    ]
    found = [read_labels(mask_path(out, journal.entries[file.key].name)) for _, file in done]
    agreement = compare(zip(found, (image.mask.astype(np.uint8) for image, _ in done), strict=True), [1])
    ious = [_iou(labels == 1, image.mask) for labels, (image, _) in zip(found, done, strict=True)]
    picture = out / "demo.jpg"
    save_picture(_picture(images[0], taught, [image for image, _ in done], found, ious), picture)
    summary: dict[str, Any] = {
        **figures(agreement),
        "reference_iou": taught.iou,
        "num_clicks": len(taught.clicks.points_xy),
        "num_images": len(done),
        "num_failed": len(images) - 1 - len(done),
        "seconds": round(worked_s, 3),
        "prompt_set": asdict(prompt_set.model),
        "segmenter": asdict(prompt_set.segmenter),
        "feature_encoder": asdict(prompt_set.feature_encoder),
        "seed": seed,
        "defect": defect,
        "size": size,
        "picture": str(picture),
    }
    _report(summary, files[1:], ious)
    write_json(json_file, summary)
    return ExitCode.PARTLY_FAILED if summary["num_failed"] else ExitCode.OK


async def _work(
    where: Where, images: list[InspectionImage], files: list[ImageFile], out: Path
) -> tuple[_Taught, PromptSet, Journal]:
    async with connected(where, ("segmentation", "registry")) as client:
        reference = files[0].path.read_bytes()
        with messages.status("clicking on the reference image"):
            taught = await _teach(client, reference, images[0].mask)
        classes = [SegmentClass(1, images[0].class_name)]
        prompt_set = await save_reference(client, reference, {1: taught.mask}, classes, _PROMPT_SET, extend=False)
        run = FolderRun(client, out, prompt_set.model.name)
        with tempfile.TemporaryDirectory() as folder, messages.status("segmenting the others"):
            journal = Journal.open(Path(folder) / "journal.jsonl", {})
            with journal:
                await run.run(files[1:], journal, lambda entry: None)
    return taught, prompt_set, journal


async def _teach(client: AsyncClient, image: bytes, truth: NDArray[np.bool_]) -> _Taught:
    """Click as a person would who knows what the defect is, and keep the mask that fits best."""
    foreground: list[tuple[float, float]] = []
    background: list[tuple[float, float]] = []
    best = _Taught(Clicks(), np.zeros_like(truth), 0.0)
    proposal, current = None, np.zeros_like(truth)
    for _ in range(_MAX_CLICKS):
        missed, wrong = truth & ~current, current & ~truth
        (missed_xy, missed_depth), (wrong_xy, wrong_depth) = _middle(missed), _middle(wrong)
        if missed_depth >= wrong_depth or not foreground:
            foreground.append(missed_xy)
        else:
            background.append(wrong_xy)
        clicks = Clicks(tuple(foreground), tuple(background))
        proposal = await propose(client, image, clicks, segmenter="", choice=None, earlier=proposal)
        current = proposal.mask.mask
        iou = _iou(current, truth)
        if iou > best.iou or not best.clicks.points_xy:
            best = _Taught(clicks, current, iou)
        if best.iou >= _GOOD_IOU:
            break
    if not best.mask.any():
        raise InvalidInput("no click gave a mask of the generated defect; try another --seed", field="--seed")
    return best


def _middle(region: NDArray[np.bool_]) -> tuple[tuple[float, float], float]:
    """Return the point (x, y) of a region that is farthest from its border, and how far that is in pixels."""
    depth = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return (float(column), float(row)), float(depth[row, column])


def _write_images(images: list[InspectionImage], out: Path) -> list[ImageFile]:
    files = []
    try:
        for index, image in enumerate(images):
            file = ImageFile(out / "input" / f"{index:02d}.png", f"{index:02d}.png")
            save_picture(image.image_rgb, file.path)
            write_whole(out / "truth" / file.path.name, label_png(image.mask.astype(np.uint8)))
            files.append(file)
    except OSError as error:
        raise InvalidInput(f"cannot write to {out}: {error.strerror or error}", field="--out") from error
    return files


def _picture(
    reference: InspectionImage,
    taught: _Taught,
    targets: list[InspectionImage],
    found: list[NDArray[np.uint8]],
    ious: list[float],
) -> NDArray[np.uint8]:
    """Each image as it is, and beside it with what was found; the reference with its clicks first."""
    clicks = taught.clicks
    drawn = overlay(reference.image_rgb, taught.mask.astype(np.uint8), clicks.points_xy, clicks.labels)
    num_clicks = len(clicks.points_xy)
    cells = [
        Cell(reference.image_rgb, "reference image"),
        Cell(drawn, f"{num_clicks} click{'s' if num_clicks > 1 else ''}, IoU {taught.iou:.2f}"),
    ]
    for number, (image, labels, iou) in enumerate(zip(targets, found, ious, strict=True), start=1):
        cells.append(Cell(image.image_rgb, f"image {number}"))
        cells.append(Cell(overlay(image.image_rgb, labels), f"found, IoU {iou:.2f}"))
    return contact_sheet(cells[:12], columns=4, cell_px=200)


def _report(summary: dict[str, Any], files: list[ImageFile], ious: list[float]) -> None:
    table = Table("image", "IoU", box=None, pad_edge=False)
    for file, iou in zip(files, ious, strict=False):
        table.add_row(file.key, f"{iou:.3f}")
    results.print(table)
    clicks = f"{summary['num_clicks']} click{'s' if summary['num_clicks'] > 1 else ''}"
    results.print(
        f"mIoU {'-' if summary['miou'] is None else format(summary['miou'], '.3f')} "
        f"over {summary['num_images']} generated images, taught with "
        f"{clicks} on one (IoU {summary['reference_iou']:.3f}), in {summary['seconds']:.1f} s"
    )
    results.print(
        f"made by {summary['segmenter']['name']} and {summary['feature_encoder']['name']}; see {summary['picture']}",
        markup=False,
    )


def _iou(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    union = int((found | truth).sum())
    return int((found & truth).sum()) / union if union else 1.0
