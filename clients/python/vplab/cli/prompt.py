"""``vplab prompt``: clicks or a box on a reference image become a mask, and the mask becomes a prompt set."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from vplab.cli.connection import Where, connected
from vplab.cli.field_flags import PROMPT, told_by_flags
from vplab.cli.model_names import model_name
from vplab.cli.parameters import JsonFile, where_of
from vplab.cli.pictures import overlay, save_picture
from vplab.cli.prompting import Clicks, Proposal, propose, save_reference
from vplab.cli.running import run_async, verb
from vplab.cli.terminal import messages, results, write_json
from vplab.cli.typed_values import parse_box, parse_point
from vplab.client import SegmentClass
from vplab.client.segmentation.values import PromptSet
from vplab.errors import InvalidInput
from vplab.vision.images import decode_image
from vplab.vision.label_images import read_labels


@verb
@told_by_flags(PROMPT)
def prompt(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(help="The reference image.")],
    point: Annotated[
        list[str] | None, typer.Option(metavar="X,Y", help="Click on the object; repeat for more.")
    ] = None,
    background: Annotated[
        list[str] | None, typer.Option(metavar="X,Y", help="Click beside the object; repeat for more.")
    ] = None,
    box: Annotated[str | None, typer.Option(metavar="X0,Y0,X1,Y1", help="Box around the object.")] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A mask you have already, instead of clicks: what is not 0.")
    ] = None,
    mask_value: Annotated[
        int | None, typer.Option(min=1, max=255, help="Only this value of the --mask file is the object.")
    ] = None,
    save: Annotated[str | None, typer.Option(metavar="ID", help="Save the mask as this prompt set.")] = None,
    add: Annotated[bool, typer.Option("--add", help="Add to the prompt set instead of beginning it anew.")] = False,
    class_id: Annotated[int, typer.Option(min=1, max=255, help="Value of the object in label images.")] = 1,
    class_name: Annotated[str, typer.Option(help="What the object is called; else what it was, or the set's id.")] = "",
    choose: Annotated[
        int | None, typer.Option(min=0, help="Which of three masks of an ambiguous click; else the best.")
    ] = None,
    segmenter: Annotated[str, typer.Option(metavar="NAME", help="Segmenter; else the server's default.")] = "",
    feature_encoder: Annotated[
        str, typer.Option(metavar="NAME", help="Encoder whose features are matched; else the server's default.")
    ] = "",
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to draw the mask; IMAGE-prompt.png unless given.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Click on the object in one image, look at the mask, and save it as a prompt set. Pixels are x then y.

    Example: vplab prompt parts/017.jpg --point 412,230 --background 60,60 --save scratches
    """
    clicks = Clicks(
        [parse_point(text) for text in point or []],
        [parse_point(text) for text in background or []],
        None if box is None else parse_box(box),
    )
    if add and save is None:
        raise InvalidInput("--add needs --save, which names the prompt set", field="--add")
    try:
        data = image.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {image}: {error.strerror or error}", field="image") from error
    pixels = decode_image(data)
    given = None if mask is None else _given_mask(mask, mask_value, pixels.shape[:2])
    if given is not None and (clicks.points_xy or clicks.box_xyxy):
        raise InvalidInput("give a mask or clicks, not both", field="--mask")

    async def work(where: Where) -> tuple[NDArray[np.bool_], Proposal | None, PromptSet | None]:
        async with connected(where, ("segmentation", "registry")) as client:
            base = await model_name(client, segmenter, "segmenter", "--segmenter")
            encoder = await model_name(client, feature_encoder, "encoder", "--feature-encoder")
            proposal, found = None, given
            if found is None:
                proposal = await propose(client, data, clicks, segmenter=base, choice=choose)
                found = proposal.mask.mask
            stored = None
            if save is not None:
                if not found.any():
                    raise InvalidInput("the mask is empty: click elsewhere, or draw a box", field="--point")
                classes = [SegmentClass(class_id, class_name)]
                stored = await save_reference(
                    client,
                    data,
                    {class_id: found},
                    classes,
                    save,
                    extend=add,
                    segmenter=base,
                    feature_encoder=encoder,
                )
            return found, proposal, stored

    found, proposal, stored = run_async(work(where_of(context)))
    picture = picture or Path(f"{image.stem}-prompt.png")
    labels = np.where(found, class_id, 0).astype(np.uint8)
    try:
        save_picture(overlay(pixels, labels, clicks.points_xy, clicks.labels, clicks.box_xyxy), picture)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot write {picture}: {error}", field="--picture") from error
    _report(found, proposal, stored, picture)
    write_json(json_file, _figures(image, found, proposal, stored, picture))


def _given_mask(path: Path, value: int | None, size_hw: tuple[int, ...]) -> NDArray[np.bool_]:
    labels = read_labels(path)
    if labels.shape != size_hw:
        message = f"{path} is {labels.shape[1]}x{labels.shape[0]}, the image {size_hw[1]}x{size_hw[0]}"
        raise InvalidInput(message, field="--mask")
    found: NDArray[np.bool_] = labels > 0 if value is None else labels == value
    if not found.any():
        raise InvalidInput(f"{path} marks nothing", field="--mask")
    return found


def _report(found: NDArray[np.bool_], proposal: Proposal | None, stored: PromptSet | None, picture: Path) -> None:
    share = found.mean() * 100
    quality = "" if proposal is None else f", predicted IoU {proposal.mask.predicted_iou:.2f}"
    results.print(f"mask of {int(found.sum()):,} pixels ({share:.1f} % of the image){quality}")
    if proposal is not None and len(proposal.prediction.objects[0]) > 1:
        others = [f"{i}: {int(m.mask.sum()):,} px" for i, m in enumerate(proposal.prediction.objects[0])]
        messages.print(f"mask {proposal.index} of {', '.join(others)}; --choose takes another", style="dim")
    results.print(f"drawn in {picture}", markup=False)
    if stored is not None:
        num = len(stored.references)
        results.print(f"saved as {stored.model.name} with {num} reference image{'s' if num > 1 else ''}", markup=False)


def _figures(
    image: Path, found: NDArray[np.bool_], proposal: Proposal | None, stored: PromptSet | None, picture: Path
) -> dict[str, Any]:
    return {
        "image": str(image),
        "picture": str(picture),
        "area_px": int(found.sum()),
        "area_share": float(found.mean()),
        "predicted_iou": None if proposal is None else proposal.mask.predicted_iou,
        "chosen_mask": None if proposal is None else proposal.index,
        "provenance": None if proposal is None else asdict(proposal.prediction.provenance),
        "prompt_set": None if stored is None else asdict(stored.model),
        "num_references": None if stored is None else len(stored.references),
    }
