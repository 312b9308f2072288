"""``vplab demo``: the whole job on generated images, with the figures of how well it went."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from vplab.cli.agreement import compare, figures
from vplab.cli.connection import Where, connected
from vplab.cli.demo_pictures import found_sheet, rounds_sheet
from vplab.cli.demo_rounds import (
    NEEDS_TRAINING,
    Correcting,
    DemoImage,
    Round,
    Segmented,
    can_tune,
    figures_of,
    iou,
    segment_files,
)
from vplab.cli.exit_codes import ExitCode
from vplab.cli.image_files import ImageFile
from vplab.cli.parameters import JsonFile, where_of
from vplab.cli.pictures import save_picture, write_whole
from vplab.cli.prompting import Clicks, propose, save_reference
from vplab.cli.running import run_async, verb
from vplab.cli.terminal import messages, results, write_json
from vplab.client import AsyncClient, SegmentClass
from vplab.client.options import Area
from vplab.client.segmentation.values import PromptSet
from vplab.errors import InvalidInput, Unimplemented
from vplab.vision.label_images import label_png
from vplab.vision.synthesis import DEFECTS, SURFACES, InspectionImage, synthesize_inspection_set

_PROMPT_SET = "demo"
_MAX_CLICKS = 6
_GOOD_IOU = 0.85
"""A person stops correcting a mask that fits this well."""


@verb
def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where images, masks and the pictures go.")] = Path(
        "vplab-demo"
    ),
    num_images: Annotated[int, typer.Option(min=2, max=64, help="The reference and the images to test with.")] = 9,
    rounds: Annotated[
        int, typer.Option(min=0, max=5, help="Rounds of correcting and tuning, where training is installed.")
    ] = 2,
    shots: Annotated[int, typer.Option(min=1, max=20, help="Images that are corrected in each round.")] = 5,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each tuning; else the method's.")] = None,
    size: Annotated[int, typer.Option(min=64, max=2048, help="Side of the images, in pixels.")] = 512,
    defect: Annotated[str, typer.Option(metavar="NAME", help=f"One of {', '.join(sorted(DEFECTS))}.")] = "patch",
    surface: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"One of {', '.join(sorted(SURFACES))}; drawn from the seed.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal images.")] = 0,
    json_file: JsonFile = None,
) -> ExitCode:
    """Generate inspection images, click on one, segment the others, correct a few, tune, and report how well it went.

    The images are generated with exact masks, so no data and no network is needed. The clicks stand for a person's: the
    middle of the defect first, then the middle of the largest mistake, until the mask fits. In each round a few further
    images are segmented and corrected, as the exact masks say, and tune an adapter; the images that the figures are of
    are never corrected.

    Example: vplab demo --out demo --seed 3
    """
    began = time.monotonic()
    where = where_of(context)
    is_tuned = rounds > 0 and can_tune(where)
    num_all = num_images + (rounds * shots if is_tuned else 0)
    images = _write_images(synthesize_inspection_set(num_all, (size, size), defect, seed, surface=surface), out)
    pools = [images[num_images + i * shots : num_images + (i + 1) * shots] for i in range(rounds if is_tuned else 0)]
    told = run_async(_work(where, images[:num_images], pools, out, seed, steps))
    if rounds > 0 and not is_tuned:
        told.note = NEEDS_TRAINING
    test = images[1:num_images]
    summary = _summary(told, test, time.monotonic() - began, out)
    summary |= {"seed": seed, "defect": defect, "size": size}
    save_picture(found_sheet(images[0], told.clicks, told.mask, told.iou, test, told.prompted), out / "demo.jpg")
    if told.rounds:
        save_picture(rounds_sheet(test, told.prompted, told.rounds), out / "before_after.jpg")
    _report(summary, told, test)
    write_json(json_file, summary)
    return ExitCode.PARTLY_FAILED if summary["num_failed"] else ExitCode.OK


@dataclass
class _Told:
    """What came of it."""

    clicks: Clicks
    mask: NDArray[np.bool_]
    """What the clicks gave on the reference image."""
    iou: float
    prompt_set: PromptSet
    prompted: Segmented
    """What prompting alone found."""
    seconds: float
    """Until then."""
    rounds: list[Round] = field(default_factory=list)
    note: str = ""
    """Why there was no tuning; empty where there was."""


async def _work(
    where: Where,
    images: Sequence[DemoImage],
    pools: Sequence[Sequence[DemoImage]],
    out: Path,
    seed: int,
    num_steps: int | None,
) -> _Told:
    began = time.monotonic()
    needs: list[Area] = ["segmentation", "registry"]
    if pools:
        needs.append("training")
    async with connected(where, needs) as client:
        reference = images[0].file.path.read_bytes()
        with messages.status("clicking on the reference image"):
            clicks, mask, fit = await _teach(client, reference, images[0].image.mask)
        classes = [SegmentClass(1, images[0].image.class_name)]
        prompt_set = await save_reference(client, reference, {1: mask}, classes, _PROMPT_SET, extend=False)
        with messages.status("segmenting the others"):
            prompted = await segment_files(client, images[1:], out, prompt_set.model.name)
        told = _Told(clicks, mask, fit, prompt_set, prompted, time.monotonic() - began)
        correcting = Correcting(client, out, prompt_set.model.name, images[1:], seed, num_steps)
        try:
            for number, pool in enumerate(pools, start=1):
                told.rounds.append(await correcting.run(pool, number))
        except Unimplemented as error:
            told.note = f"tuning was left out: {error.message}"
    return told


async def _teach(
    client: AsyncClient, image: bytes, truth: NDArray[np.bool_]
) -> tuple[Clicks, NDArray[np.bool_], float]:
    """Click as a person would who knows what the defect is; return the clicks, mask and IoU that fit best."""
    foreground: list[tuple[float, float]] = []
    background: list[tuple[float, float]] = []
    best = (Clicks(), np.zeros_like(truth), 0.0)
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
        fit = iou(current, truth)
        if fit > best[2] or not best[0].points_xy:
            best = (clicks, current, fit)
        if best[2] >= _GOOD_IOU:
            break
    if not best[1].any():
        raise InvalidInput("no click gave a mask of the generated defect; try another --seed", field="--seed")
    return best


def _middle(region: NDArray[np.bool_]) -> tuple[tuple[float, float], float]:
    """Return the point (x, y) of a region that is farthest from its border, and how far that is in pixels."""
    depth = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return (float(column), float(row)), float(depth[row, column])


def _write_images(images: Sequence[InspectionImage], out: Path) -> list[DemoImage]:
    written = []
    try:
        for index, image in enumerate(images):
            file = ImageFile(out / "input" / f"{index:02d}.png", f"{index:02d}.png")
            save_picture(image.image_rgb, file.path)
            write_whole(out / "truth" / file.path.name, label_png(image.mask.astype(np.uint8)))
            written.append(DemoImage(image, file))
    except OSError as error:
        raise InvalidInput(f"cannot write to {out}: {error.strerror or error}", field="--out") from error
    return written


def _summary(told: _Told, test: Sequence[DemoImage], seconds: float, out: Path) -> dict[str, Any]:
    found = told.prompted.labels
    done = [target for target in test if target.file.key in found]
    agreement = compare(((found[t.file.key], t.image.mask.astype(np.uint8)) for t in done), [1])
    return {
        **figures(agreement),
        "reference_iou": told.iou,
        "num_clicks": len(told.clicks.points_xy),
        "num_images": len(done),
        "num_failed": len(test) - len(done),
        "seconds": round(told.seconds, 3),
        "rounds": figures_of(told.rounds, test),
        "note": told.note,
        "total_seconds": round(seconds, 3),
        "prompt_set": asdict(told.prompt_set.model),
        "segmenter": asdict(told.prompt_set.segmenter),
        "feature_encoder": asdict(told.prompt_set.feature_encoder),
        "picture": str(out / "demo.jpg"),
    }


def _report(summary: dict[str, Any], told: _Told, test: Sequence[DemoImage]) -> None:
    steps = [told.prompted, *(item.tested for item in told.rounds)]
    tuned = [f"{item.num_corrected} corrected" for item in told.rounds]
    table = Table("image", *(["prompted", *tuned] if tuned else ["IoU"]), box=None, pad_edge=False)
    for target in test:
        labels = [step.labels.get(target.file.key) for step in steps]
        table.add_row(target.file.key, *(_cell(label, target.image.mask) for label in labels))
    results.print(table)
    clicks = f"{summary['num_clicks']} click{'s' if summary['num_clicks'] > 1 else ''}"
    results.print(
        f"mIoU {_number(summary['miou'])} "
        f"over {summary['num_images']} generated images, taught with "
        f"{clicks} on one (IoU {summary['reference_iou']:.3f}), in {summary['seconds']:.1f} s"
    )
    for item in summary["rounds"]:
        results.print(
            f"mIoU {_number(item['miou'])} with {item['adapter']['name']}, tuned on {item['num_corrected']} corrected "
            f"pseudolabels (the newest fitted {_number(item['pseudolabel_miou'])}), in {item['seconds']:.1f} s",
            markup=False,
        )
    if told.note:
        results.print(told.note, markup=False)
    pictures = f"{summary['picture']} and before_after.jpg beside it" if told.rounds else summary["picture"]
    results.print(
        f"made by {summary['segmenter']['name']} and {summary['feature_encoder']['name']}; see {pictures}", markup=False
    )


def _cell(labels: NDArray[np.uint8] | None, truth: NDArray[np.bool_]) -> str:
    return "failed" if labels is None else f"{iou(labels == 1, truth):.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
