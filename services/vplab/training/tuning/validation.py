"""The IoU on images that are not trained on: by box, by click, and by the matcher's proposals, as serving asks."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vplab.training.tuning.batches import batches
from vplab.training.tuning.grid_masks import mask_iou
from vplab.training.tuning.ports import TunableDecoder
from vplab.training.tuning.prompting import (
    DrawnPrompt,
    Kind,
    central_pixel,
    input_tokens,
    nearest_piece,
    proposal_tokens,
    tight_box,
)
from vplab.training.tuning.refining import best_plane, refined_prompts
from vplab.training.tuning.values import TuningExample, TuningMetrics, TuningPreview
from vplab.vision.final_masks import final_mask
from vplab.vision.masks import upsample_logits
from vplab.vision.pipeline.decoding import Candidate
from vplab.vision.pipeline.grouping import group_by_overlap
from vplab.vision.pipeline.segment import PIXEL_WEIGHT, SIMILARITY_WEIGHT
from vplab.vision.preprocessing import FrameTransform
from vplab.vision.prompts import BOX_MAX, BOX_MIN, FOREGROUND, PADDING, ObjectPrompt
from vplab.vision.specs import SegmenterSpec

MAX_PIECES = 3
"""Largest pieces of a class that are clicked and boxed, each by itself."""
MAX_PROPOSALS = 10
"""Proposals of a class on an image, spread over the list from best to worst; serving asks up to 40."""
SIMILARITY_DOUBT = 1e-3
"""As in serving, where it keeps the similarity map's odds finite."""
CHUNK = 4
"""Prompts decoded together; what they need of the grid stays in a core's cache."""
MAX_PREVIEWS = 4

Logits = NDArray[np.float32]
Similarity = NDArray[np.floating]
_Answer = tuple[Logits, float]
"""Logits (h, w) and the predicted IoU."""


@torch.no_grad()
def validate(
    decoder: TunableDecoder, examples: Sequence[TuningExample], segmenter: SegmenterSpec, device: str = "cpu"
) -> tuple[TuningMetrics, tuple[TuningPreview, ...]]:
    """Measure on the examples, which are original views; deterministic, a few seconds at most on a CPU.

    A mean over images of a class, then over classes, so that a rare class counts as much as a frequent one.
    """
    prompts = [p for i, e in enumerate(examples) for p in _prompts(i, e, segmenter)]
    answers = _answer(decoder, prompts, examples, segmenter, device)
    ious: dict[Kind, dict[int, list[float]]] = {k: defaultdict(list) for k in ("box", "point")}
    for prompt, answer in zip(prompts, answers, strict=True):
        if prompt.kind != "proposal" and answer is not None:
            found = _final(answer[0], prompt, examples[prompt.example], segmenter)
            ious[prompt.kind][prompt.class_id].append(mask_iou(found, prompt.target))
        elif prompt.kind != "proposal":
            ious[prompt.kind][prompt.class_id].append(0.0)
    proposed: dict[int, list[float]] = defaultdict(list)
    rejected: list[bool] = []
    previews: list[TuningPreview] = []
    for index, example in enumerate(examples):
        for class_id, mask in example.masks.items():
            mine = [
                (p, a)
                for p, a in zip(prompts, answers, strict=True)
                if p.kind == "proposal" and (p.example, p.class_id) == (index, class_id)
            ]
            if not mine:
                continue
            rejected += [a is None or a[1] < 0.5 for p, a in mine if p.is_false]
            union = _union([p for p, _ in mine], [a for _, a in mine], example, class_id)
            if mask.any():
                found = upsample_logits(union[None], _whole_frame(example.transform))[0] > 0
                proposed[class_id].append(mask_iou(found, mask))
                if len(previews) < MAX_PREVIEWS:
                    full = upsample_logits(union[None], example.transform)[0] > 0
                    previews.append(TuningPreview(example.image_index, class_id, full))
    metrics = TuningMetrics(
        box_iou=_mean(ious["box"]) or 0.0,
        point_iou=_mean(ious["point"]) or 0.0,
        proposal_iou=_mean(proposed),
        rejected=float(np.mean(rejected)) if rejected else None,
    )
    return metrics, tuple(previews)


def _prompts(index: int, example: TuningExample, segmenter: SegmenterSpec) -> list[DrawnPrompt]:
    found = []
    for class_id, mask in example.masks.items():
        if mask.any():
            found += _pieces(index, example, class_id, segmenter)
        proposals = example.proposals.get(class_id)
        if proposals is None or not len(proposals.points_xy):
            continue
        count = min(MAX_PROPOSALS, len(proposals.points_xy))
        for chosen in np.linspace(0, len(proposals.points_xy) - 1, count).round().astype(int):
            piece = nearest_piece(example.segments[class_id], proposals.points_xy[chosen])
            target = example.segments[class_id] == piece if piece else np.zeros_like(mask)
            tokens = proposal_tokens(proposals, int(chosen), segmenter)
            found.append(DrawnPrompt("proposal", index, class_id, tokens, np.asarray(target)))
    return found


def _pieces(index: int, example: TuningExample, class_id: int, segmenter: SegmenterSpec) -> list[DrawnPrompt]:
    """Box and click the largest pieces, since people and the evaluation mark one object, not all of a class."""
    segments = example.segments[class_id]
    areas = np.bincount(segments.reshape(-1))
    areas[0] = 0
    found = []
    for piece in np.argsort(-areas, kind="stable")[:MAX_PIECES]:
        if areas[piece]:
            target = np.asarray(segments == piece)
            box = input_tokens(tight_box(target), np.array([BOX_MIN, BOX_MAX], np.float32), None, segmenter)
            coords = np.array([central_pixel(target), (0, 0)], np.float32)
            click = input_tokens(coords, np.array([FOREGROUND, PADDING], np.float32), None, segmenter)
            found.append(DrawnPrompt("box", index, class_id, box, target))
            found.append(DrawnPrompt("point", index, class_id, click, target))
    return found


def _answer(
    decoder: TunableDecoder,
    prompts: Sequence[DrawnPrompt],
    examples: Sequence[TuningExample],
    segmenter: SegmenterSpec,
    device: str,
) -> list[_Answer | None]:
    """Answer as serving does: a box by the single mask, a click by the surest plane, proposals in two passes."""
    answers: list[_Answer | None] = [None] * len(prompts)
    second: list[tuple[int, DrawnPrompt]] = []
    for members, batch in batches(prompts, examples, segmenter, device, CHUNK):
        logits, ious = (t.float().cpu().numpy() for t in batch.decode(decoder))
        chosen = [prompts[i] for i in members]
        similarities = [_similarity(p, examples, segmenter) for p in chosen]
        refined = refined_prompts(chosen, logits, ious, similarities, segmenter)
        for row, (position, prompt) in enumerate(zip(members, chosen, strict=True)):
            plane = _plane(prompt, logits[row], ious[row], similarities[row], segmenter)
            if plane is None:
                continue
            answers[position] = (logits[row, plane] - np.float32(segmenter.mask_threshold), float(ious[row, plane]))
            again = refined[row]
            if prompt.kind == "proposal" and segmenter.refines and again is not None:
                second.append((position, again))
    for members, batch in batches([p for _, p in second], examples, segmenter, device, CHUNK):
        logits, ious = (t.float().cpu().numpy() for t in batch.decode(decoder))
        for row, member in enumerate(members):
            position, prompt = second[member]
            mask, iou = logits[row, 0] - np.float32(segmenter.mask_threshold), float(ious[row, 0])
            old, similarity = answers[position], _similarity(prompt, examples, segmenter)
            assert old is not None, "what is refined was answered"
            if (mask > 0).any() and _score((mask, iou), similarity) >= _score(old, similarity):
                answers[position] = (mask, iou)
    return answers


def _plane(
    prompt: DrawnPrompt,
    logits: NDArray[np.float32],
    ious: NDArray[np.float32],
    similarity: NDArray[np.floating],
    segmenter: SegmenterSpec,
) -> int | None:
    if prompt.kind == "box" or segmenter.num_planes == 1:
        return 0
    if prompt.kind == "point":
        return 1 + int(ious[1:].argmax())
    plane = best_plane(logits[1:] - np.float32(segmenter.mask_threshold), ious[1:], similarity)
    return None if plane is None else 1 + plane


def _similarity(
    prompt: DrawnPrompt, examples: Sequence[TuningExample], segmenter: SegmenterSpec
) -> NDArray[np.floating]:
    if prompt.kind != "proposal":
        return np.ones(segmenter.low_res_hw, np.float32)
    return examples[prompt.example].proposals[prompt.class_id].similarity.astype(np.float32)


def _score(answer: _Answer, similarity: NDArray[np.floating]) -> float:
    return float(similarity[answer[0] > 0].mean()) * min(max(answer[1], 0.0), 1.0)


def _final(logits: Logits, prompt: DrawnPrompt, example: TuningExample, segmenter: SegmenterSpec) -> NDArray[np.bool_]:
    """Return the mask (S, S) that serving makes of an answer to a box or a click, in the frame of the input.

    logits: (h, w), the threshold taken off.
    """
    is_box = prompt.kind == "box"
    said = ObjectPrompt(box_xyxy=prompt.tokens.coords.reshape(4)) if is_box else ObjectPrompt()
    decoded = logits + np.float32(segmenter.mask_threshold)
    return final_mask(decoded, said, _whole_frame(example.transform), segmenter, example.colours)


def _whole_frame(transform: FrameTransform) -> FrameTransform:
    """Return the transform of an image that is the padded frame itself."""
    return FrameTransform(transform.padded_hw, transform.padded_hw, transform.padded_hw)


def _union(
    prompts: Sequence[DrawnPrompt], answers: Sequence[_Answer | None], example: TuningExample, class_id: int
) -> Logits:
    """Put the proposals' masks together as serving does; the logits (h, w) of their union."""
    similarity = example.proposals[class_id].similarity.astype(np.float32)
    candidates = []
    for prompt, answer in zip(prompts, answers, strict=True):
        if answer is not None and (answer[0] > 0).any():
            x, y = prompt.tokens.coords[0].tolist()
            inside = float(similarity[answer[0] > 0].mean())
            candidates.append(Candidate(*answer, inside, prompt.tokens, (x, y)))
    groups = group_by_overlap(candidates)
    best = max((group.members[0].score for group in groups), default=0.0)
    least = example.proposals[class_id].group_share * best
    odds = np.clip(similarity, SIMILARITY_DOUBT, 1 - SIMILARITY_DOUBT)
    weighed = np.asarray(SIMILARITY_WEIGHT * np.log(odds / (1 - odds)), np.float32)
    kept = [group.logits + weighed for group in groups if group.members[0].score >= least]
    if not kept:
        return np.full(similarity.shape, -1, np.float32)
    sharp = kept if example.colours is None else [example.colours.sharpen(logits) for logits in kept]
    union = np.asarray(np.max(sharp, axis=0), np.float32)
    pixel_odds = example.proposals[class_id].pixel_odds
    if pixel_odds is not None and pixel_odds.shape == union.shape:
        union += np.float32(PIXEL_WEIGHT) * pixel_odds
    return union


def _mean(by_class: dict[int, list[float]]) -> float | None:
    return float(np.mean([np.mean(v) for v in by_class.values()])) if by_class else None
