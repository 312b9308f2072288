"""From clicks on a reference image to a prompt set."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vplab.client import AsyncClient, ObjectPrompt, PromptSetDraft, Reference, SegmentClass
from vplab.client.segmentation.values import PredictedMask, Prediction, PromptSet
from vplab.errors import InvalidInput, NotFound


@dataclass(frozen=True)
class Clicks:
    """What a person pointed at, in pixels of the oriented image."""

    foreground_xy: Sequence[tuple[float, float]] = ()
    background_xy: Sequence[tuple[float, float]] = ()
    box_xyxy: tuple[float, float, float, float] | None = None

    @property
    def points_xy(self) -> list[tuple[float, float]]:
        """All points, foreground first."""
        return [*self.foreground_xy, *self.background_xy]

    @property
    def labels(self) -> list[int]:
        """1 for each foreground point, 0 for each background point."""
        return [1] * len(self.foreground_xy) + [0] * len(self.background_xy)

    @property
    def is_ambiguous(self) -> bool:
        """Whether a part, an object or a group may be meant: one click alone does not say."""
        return self.box_xyxy is None and len(self.points_xy) == 1

    def prompt(self, low_res_logits: NDArray[np.float32] | None = None) -> ObjectPrompt:
        """Return the prompt of one object, refining an earlier answer if its logits are given."""
        points = self.points_xy
        return ObjectPrompt(
            points_xy=np.array(points, np.float32) if points else None,
            point_labels=np.array(self.labels, np.int64) if points else None,
            box_xyxy=None if self.box_xyxy is None else np.array(self.box_xyxy, np.float32),
            low_res_logits=low_res_logits,
        )


@dataclass(frozen=True, eq=False)
class Proposal:
    """The mask that clicks gave, and where it came from."""

    mask: PredictedMask
    index: int
    """Which of the proposed masks it is."""
    prediction: Prediction


async def propose(
    client: AsyncClient,
    image: bytes,
    clicks: Clicks,
    *,
    segmenter: str,
    choice: int | None,
    earlier: Proposal | None = None,
) -> Proposal:
    """Return the mask of one object: the best of three where the clicks are ambiguous, or the one chosen.

    earlier: what fewer clicks on this image gave; it is handed back to be refined, as in SAM's interactive scheme.
    Raises InvalidInput for no clicks at all, or a choice that does not exist.
    """
    if not clicks.points_xy and clicks.box_xyxy is None:
        raise InvalidInput("click on the object with --point X,Y or enclose it with --box X0,Y0,X1,Y1", field="--point")
    prediction = await client.segmentation.predict_masks(
        image,
        clicks.prompt(None if earlier is None else earlier.mask.low_res_logits),
        segmenter=segmenter,
        multimask=clicks.is_ambiguous or choice is not None,
        include_low_res_logits=True,
        known_digest=None if earlier is None else earlier.prediction.provenance.image_digest,
    )
    masks = prediction.objects[0]
    if choice is not None and not 0 <= choice < len(masks):
        raise InvalidInput(f"there are masks 0 to {len(masks) - 1}", field="--choose")
    index = choice if choice is not None else int(np.argmax([mask.predicted_iou for mask in masks]))
    return Proposal(masks[index], index, prediction)


async def save_reference(
    client: AsyncClient,
    image: bytes,
    masks: dict[int, NDArray[np.bool_]],
    classes: Sequence[SegmentClass],
    prompt_set_id: str,
    *,
    extend: bool,
    segmenter: str = "",
    feature_encoder: str = "",
) -> PromptSet:
    """Publish a prompt set with this reference; with ``extend`` beside the references of the set's newest version.

    A mask of the same class on the same image takes the place of the earlier one. A class without a name keeps the one
    it had, or is called like the set. Raises NotFound when there is nothing to extend, InvalidInput for what is
    refused by the service.
    """
    references = [Reference(image, masks)]
    merged = {item.class_id: item for item in classes}
    kept: dict[str, Any] = {"segmenter": segmenter, "feature_encoder": feature_encoder}
    if extend:
        try:
            earlier = await client.segmentation.get_prompt_set(f"artifacts/{prompt_set_id}")
        except NotFound as error:
            raise NotFound(f"there is no prompt set {prompt_set_id} to add to: leave --add out") from error
        named = {class_id: item for class_id, item in merged.items() if item.display_name}
        merged = merged | {item.class_id: item for item in earlier.classes} | named
        references = await _with_earlier(client, image, masks, earlier)
        kept = {
            "segmenter": segmenter or earlier.segmenter.name,
            "feature_encoder": feature_encoder or earlier.feature_encoder.name,
            "options": earlier.options,
        }
    named_classes = [SegmentClass(i, merged[i].display_name or prompt_set_id) for i in sorted(merged)]
    draft = PromptSetDraft(prompt_set_id, named_classes, references, prompt_set_id, **kept)
    return await client.segmentation.create_prompt_set(draft)


async def _with_earlier(
    client: AsyncClient, image: bytes, masks: dict[int, NDArray[np.bool_]], earlier: PromptSet
) -> list[Reference]:
    digest = hashlib.sha256(image).hexdigest()
    references = []
    for stored in earlier.references:
        if stored.image_digest == digest:
            masks = {**stored.masks, **masks}
        else:
            references.append(Reference(await client.registry.read_blob(stored.image_digest), stored.masks))
    return [*references, Reference(image, masks)]
