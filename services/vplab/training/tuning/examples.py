"""From embedded views to training examples: masks in the segmenter's frame, their pieces, and the matcher's proposals.

The proposals of an image come from the other images as references, as in serving, where a target is never its own
reference; a single image refers to itself.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.errors import InvalidInput
from vplab.training.tuning.values import ClassProposals, EmbeddedView, TuningExample
from vplab.vision.colour_evidence import ColourModel
from vplab.vision.matching import MATCHERS, ClassBank, ClassReference, MatchOptions, TargetPatches, build_class_bank
from vplab.vision.matching.grids import pixels_on_grid
from vplab.vision.pipeline.segment import similarity_on_grid
from vplab.vision.preprocessing import FrameTransform
from vplab.vision.specs import SegmenterSpec

MAX_REFERENCES = 5
"""Other images that an image's proposals come from; the cost of a bank grows with the square of its images."""
_MIN_SHARED = 2 * MAX_REFERENCES
"""Images from which on neighbours share one bank, of the images after them."""
_MAX_GROWTH = 2


def build_examples(
    views: Sequence[EmbeddedView],
    class_ids: Sequence[int],
    segmenter: SegmenterSpec,
    matcher: str = "softmatch",
    num_threads: int = 1,
) -> list[TuningExample]:
    """Prepare views for training, in their order. num_threads: of the matching; the result does not depend on it.

    Raises InvalidInput where there is no view, no mask of any class, an embedding or a mask of another size than the
    segmenter or the view asks for, a class that the job does not have, or an image without its original view.
    """
    _check(views, class_ids, segmenter)
    originals = [view for view in views if view.is_original]
    proposals = {c: _class_proposals(views, originals, c, segmenter, matcher, num_threads) for c in class_ids}
    return [
        _example(view, class_ids, {c: p for c in class_ids if (p := proposals[c][i]) is not None}, segmenter)
        for i, view in enumerate(views)
    ]


def _check(views: Sequence[EmbeddedView], class_ids: Sequence[int], segmenter: SegmenterSpec) -> None:
    if not views:
        raise InvalidInput("tuning needs at least one image", field="images")
    if not class_ids or len(set(class_ids)) != len(class_ids):
        raise InvalidInput(f"the class ids {list(class_ids)} are empty or not distinct", field="classes")
    for view in views:
        field = f"images[{view.image_index}]"
        if view.embedding.shape != segmenter.embedding_shape:
            message = f"the embedding is {view.embedding.shape}, the segmenter takes {segmenter.embedding_shape}"
            raise InvalidInput(message, field=field)
        for class_id, mask in view.masks.items():
            if class_id not in class_ids:
                raise InvalidInput(f"class {class_id} is not one of the job's", field=f"{field}.masks")
            if mask.shape != view.transform.original_hw:
                size = f"{mask.shape[::-1]} pixels, the image {view.transform.original_hw[::-1]}"
                message = f"the mask of class {class_id} is {size}"
                raise InvalidInput(message, field=f"{field}.masks")
    if not any(mask.any() for view in views for mask in view.masks.values()):
        raise InvalidInput("no mask has a single pixel of any class", field="images")
    with_original = {view.image_index for view in views if view.is_original}
    lacking = {view.image_index for view in views} - with_original
    if lacking:
        raise InvalidInput(f"image {min(lacking)} comes without its original view", field=f"images[{min(lacking)}]")


def _example(
    view: EmbeddedView,
    class_ids: Sequence[int],
    proposals: Mapping[int, ClassProposals],
    segmenter: SegmenterSpec,
) -> TuningExample:
    empty = np.zeros(view.transform.original_hw, np.bool_)
    masks = {c: mask_in_frame(view.masks.get(c, empty), view.transform) for c in class_ids}
    return TuningExample(
        image_index=view.image_index,
        is_original=view.is_original,
        embedding=view.embedding,
        transform=view.transform,
        masks=masks,
        segments={c: pieces_in_frame(view.masks.get(c, empty), mask, view.transform) for c, mask in masks.items()},
        proposals=proposals,
        early_features=view.early_features,
        colours=ColourModel.of(view.colours, view.transform, segmenter),
    )


def mask_in_frame(mask: NDArray[np.bool_], transform: FrameTransform) -> NDArray[np.bool_]:
    """Bring a mask (H, W) bool to the segmenter's input frame, padding included, so that it keeps its area.

    Of the pixels it touches those of largest coverage are taken, as many as the area asks for: a threshold of one half
    would erase what is thinner than a pixel there.
    """
    frame = np.zeros(transform.padded_hw, np.bool_)
    height, width = transform.input_hw
    shrinks = height <= mask.shape[0] and width <= mask.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    share = cv2.resize(mask.astype(np.float32), (width, height), interpolation=interpolation)
    wanted = round(float(share.sum(dtype=np.float64)))
    if mask.any():
        wanted = max(wanted, 1)
        threshold = np.partition(share.reshape(-1), share.size - wanted)[share.size - wanted]
        frame[:height, :width] = share >= max(threshold, 1e-3)
    return frame


def pieces_in_frame(mask: NDArray[np.bool_], frame: NDArray[np.bool_], transform: FrameTransform) -> NDArray[np.uint16]:
    """Return the ids of a mask's pieces in the input frame, (S, S) from 1 on.

    mask: (H, W) bool, whose pieces they are, so that neighbours which touch only in the smaller frame stay apart, as
    for the people who mark them. frame: (S, S) bool, the same mask there.
    """
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    height, width = transform.input_hw
    small = cv2.resize(labels.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
    found = np.zeros(frame.shape, np.float32)
    found[:height, :width] = small
    for _ in range(_MAX_GROWTH):  # where the nearest pixel of the mask's size is background: the id beside it
        found = np.where(found > 0, found, cv2.dilate(found, np.ones((3, 3), np.uint8)))
    found[frame & (found == 0)] = 1
    return np.where(frame, np.minimum(found, np.iinfo(np.uint16).max), 0).astype(np.uint16)


def _class_proposals(
    views: Sequence[EmbeddedView],
    originals: Sequence[EmbeddedView],
    class_id: int,
    segmenter: SegmenterSpec,
    matcher: str,
    num_threads: int,
) -> list[ClassProposals | None]:
    showing = [v for v in originals if v.patches is not None and class_id in v.masks and v.masks[class_id].any()]
    showing.sort(key=lambda v: v.image_index)
    # Views with the same references share a bank, and a thread.
    groups: dict[tuple[int, ...], tuple[list[EmbeddedView], list[int]]] = {}
    for index, view in enumerate(views):
        references = _references_of(view.image_index, showing)
        key = tuple(reference.image_index for reference in references)
        groups.setdefault(key, (references, []))[1].append(index)

    def propose(group: tuple[list[EmbeddedView], list[int]]) -> dict[int, ClassProposals | None]:
        references, members = group
        bank = _bank(references, class_id)
        return {i: None if bank is None else _propose(bank, views[i], segmenter, matcher) for i in members}

    found: dict[int, ClassProposals | None] = {}
    with ThreadPoolExecutor(num_threads) as threads:
        for some in threads.map(propose, groups.values()):
            found |= some
    return [found[index] for index in range(len(views))]


def _references_of(image_index: int, showing: Sequence[EmbeddedView]) -> list[EmbeddedView]:
    """Return other images that show the class, or the image itself where no other does.

    showing: by image_index. Each image gets the references after it, round and round, so that all serve equally often;
    of many images, groups of neighbours get those after the group.
    """
    others = [v for v in showing if v.image_index != image_index]
    first = image_index
    if len(others) >= _MIN_SHARED:
        position = sum(v.image_index < image_index for v in showing)
        last_of_group = min(position // MAX_REFERENCES * MAX_REFERENCES + MAX_REFERENCES, len(showing)) - 1
        first = max(image_index, showing[last_of_group].image_index)
    others.sort(key=lambda v: (v.image_index <= first, v.image_index))
    return others[:MAX_REFERENCES] or list(showing)


def _bank(references: Sequence[EmbeddedView], class_id: int) -> ClassBank | None:
    found = [
        ClassReference(view.patches, view.masks[class_id], view.image_index)
        for view in references
        if view.patches is not None
    ]
    return build_class_bank(found) if found else None


def _propose(bank: ClassBank, view: EmbeddedView, segmenter: SegmenterSpec, matcher: str) -> ClassProposals | None:
    if view.patches is None:
        return None
    target = TargetPatches.of([view.patches])
    # Present or not, there shall be proposals: those on images without the class are what to reject.
    match = MATCHERS[matcher].match(bank, target, MatchOptions(presence_threshold=-1.0))
    similarity = similarity_on_grid(target, match, 0, view.transform, segmenter.low_res_hw)
    pixel_odds = None
    if match.pixel_odds and view.colours is not None:
        frame_hw = view.colours.shape[1], view.colours.shape[2]
        odds = pixels_on_grid(match.pixel_odds[0], view.patches, view.transform, frame_hw)
        pixel_odds = odds.astype(np.float16)
    return ClassProposals(
        points_xy=view.transform.points_to_input(match.points_xy),
        background_xy=view.transform.points_to_input(match.background_xy[0]),
        similarity=similarity.astype(np.float16),
        group_share=bank.group_share,
        pixel_odds=pixel_odds,
    )
