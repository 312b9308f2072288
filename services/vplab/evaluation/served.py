"""Our own methods, through the services: what is measured is what is served."""

import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vplab.client import Client, ObjectPrompt, PromptSetDraft, Reference, SegmentClass, SegmentOptions
from vplab.client.models import ModelReference, Provenance
from vplab.client.segmentation.values import MatcherName, Prediction
from vplab.errors import Cancelled, InvalidInput, NotFound, ResourceExhausted, Unavailable
from vplab.evaluation.values import BoolArray, LabelArray, LabelledImage, RgbArray
from vplab.vision.simulated_clicks import spread_clicks

NUM_REFERENCE_CLICKS = 4
"""Clicks that make the reference of zero shots."""
MAX_REFERENCES = 64
"""Of a prompt set, as the contract says."""
NUM_IN_FLIGHT = 4
_TIMEOUT_S = 600.0
"""Nobody waits for a single answer here, and a large model on a busy CPU is slow."""
_PATIENCE_S = 60.0
_PAUSE_S = (0.5, 5.0)

Answer = TypeVar("Answer")


@dataclass
class Services:
    """The services and what is remembered of earlier answers."""

    client: Client
    encoded: Callable[[str], bytes]
    """Name of an image to its file; asked for at every call."""
    segmenter: str = ""
    """Version or alias name; empty is the server's default."""
    feature_encoder: str = ""
    on_model: Callable[[str, str, str], None] = lambda role, name, digest: None
    """Told the role, name and digest of each model that answered."""
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    """Names what this run publishes; one that goes on after a kill finds its things by it."""
    _digests: dict[str, str] = field(default_factory=dict)
    _prompt_sets: dict[tuple[object, ...], str] = field(default_factory=dict)
    _told: set[tuple[str, str]] = field(default_factory=set)

    @property
    def prompt_set_id(self) -> str:
        """One artifact for each run; its versions are the references of numbers of shots and seeds."""
        return self.artifact_id("references")

    def artifact_id(self, what: str) -> str:
        """Return what the run publishes something under; deleted by ``forget``."""
        return f"evaluation-{self.run_id}-{what}"

    def request_id(self, *said: object) -> str:
        """Return a UUID that is the same for the same words in the same run."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.run_id} {said}"))

    def predict_masks(
        self, name: str, prompts: Sequence[ObjectPrompt], *, adapter: str = "", multimask: bool = False
    ) -> Prediction:
        """Return the masks of objects of one image; its file is sent only if its embedding is not there."""

        prediction = patiently(
            lambda: self.client.segmentation.predict_masks(
                self.encoded(name),
                prompts,
                segmenter=self.segmenter,
                adapter=adapter,
                multimask=multimask,
                include_low_res_logits=True,
                known_digest=self._digests.get(name),
                timeout_s=_TIMEOUT_S,
            )
        )
        self._remember(name, prediction.provenance)
        return prediction

    def prompt_set_of(self, shots: Sequence[LabelledImage], class_ids: Sequence[int]) -> str:
        """Publish the shots as references, once for all matchers, and return the version's name."""
        key = tuple((shot.name, hashlib.sha256(shot.labels.tobytes()).hexdigest()) for shot in shots)
        if key not in self._prompt_sets:
            references = []
            for shot in shots:
                masks = {class_id: shot.mask_of(class_id) for class_id in class_ids}
                masks = {class_id: mask for class_id, mask in masks.items() if mask.any()}
                if masks:
                    references.append(Reference(self.encoded(shot.name), masks))
            missing = [i for i in class_ids if not any(i in reference.masks for reference in references)]
            if missing:
                raise InvalidInput(f"the reference shows nothing of class {', '.join(map(str, missing))}")
            draft = PromptSetDraft(
                self.prompt_set_id,
                [SegmentClass(class_id, f"class-{class_id}") for class_id in class_ids],
                references,
                segmenter=self.segmenter,
                feature_encoder=self.feature_encoder,
            )
            request_id = self.request_id("references", class_ids, key)
            create = self.client.segmentation.create_prompt_set
            made = patiently(lambda: create(draft, request_id=request_id, timeout_s=_TIMEOUT_S))
            self._tell("segmenter", made.segmenter)
            self._tell("feature_encoder", made.feature_encoder)
            self._prompt_sets[key] = made.model.name
        return self._prompt_sets[key]

    def segment(self, name: str, prompt_set: str, matcher: MatcherName, seed: int, adapter: str = "") -> LabelArray:
        """Return the label image of one image."""
        found = patiently(
            lambda: self.client.segmentation.segment_image(
                self.encoded(name),
                prompt_set,
                adapter=adapter,
                options=SegmentOptions(matcher=matcher, seed=seed),
                known_digest=self._digests.get(name),
                timeout_s=_TIMEOUT_S,
            )
        )
        self._remember(name, found.provenance)
        return found.label_image()

    def propose(self, labelled: LabelledImage) -> LabelledImage:
        """Return the image with the labels that the segmenter makes of clicks on it; nobody corrects them."""
        labels = np.zeros_like(labelled.labels)
        for class_id in np.unique(labelled.labels[labelled.labels > 0]).tolist():
            points = spread_clicks(labelled.mask_of(class_id), NUM_REFERENCE_CLICKS)
            prompt = ObjectPrompt(points, np.ones(len(points), np.int64))
            prediction = self.predict_masks(labelled.name, [prompt], multimask=len(points) == 1)
            masks = prediction.objects[0]
            labels[max(masks, key=lambda found: found.predicted_iou).mask] = class_id
        return LabelledImage(labelled.name, labelled.image_rgb, labels)

    def forget(self, *artifact_ids: str) -> None:
        """Delete the prompt sets that this run published, and other artifacts that are there."""
        for artifact_id in (*([self.prompt_set_id] if self._prompt_sets else ()), *artifact_ids):
            try:
                self.client.registry.delete_artifact(f"artifacts/{artifact_id}")
            except NotFound:
                continue

    def _remember(self, name: str, provenance: Provenance) -> None:
        if provenance.image_digest:
            self._digests[name] = provenance.image_digest
        self._tell("segmenter", provenance.segmenter)
        self._tell("image_encoder", provenance.image_encoder)
        self._tell("feature_encoder", provenance.feature_encoder)

    def _tell(self, role: str, model: ModelReference | None) -> None:
        if model is not None and (role, model.digest) not in self._told:
            self.on_model(role, model.name, model.digest)
            self._told.add((role, model.digest))


@dataclass(frozen=True)
class ServedMatcher:
    """A matcher of the segmentation service."""

    name: str
    matcher: MatcherName
    services: Services
    min_shots: int = 0
    num_in_flight: int = NUM_IN_FLIGHT

    def fit(self, shots: Sequence[LabelledImage], class_ids: Sequence[int], seed: int) -> "ServedPredictor":
        """Publish the shots as a prompt set."""
        return ServedPredictor(self.services, self.services.prompt_set_of(shots, class_ids), self.matcher, seed)


@dataclass(frozen=True)
class ServedPredictor:
    """One published prompt set."""

    services: Services
    prompt_set: str
    matcher: MatcherName
    seed: int
    adapter: str = ""
    """Version name; empty matches with the segmenter as it is."""

    def predict(self, image_rgb: RgbArray, name: str) -> LabelArray:
        """Return the label image."""
        return self.services.segment(name, self.prompt_set, self.matcher, self.seed, self.adapter)


@dataclass(frozen=True)
class ServedClicks:
    """PredictMasks, each answer refined from the logits of the one before, as ``vplab prompt`` does."""

    name: str
    services: Services
    adapter: str = ""
    """Version name; empty is the segmenter as it is."""
    takes_clicks: bool = True
    num_in_flight: int = NUM_IN_FLIGHT

    def open(self, image_rgb: RgbArray, name: str) -> "ServedSession":
        """Begin with one object."""
        return ServedSession(self.services, name, self.adapter)


@dataclass
class ServedSession:
    """One object; keeps the logits of the last answer."""

    services: Services
    image: str
    adapter: str = ""
    _logits: NDArray[np.float32] | None = None

    def predict(
        self,
        points_xy: NDArray[np.float32],
        point_labels: NDArray[np.int64],
        box_xyxy: NDArray[np.float32] | None,
        previous: BoolArray | None,
    ) -> BoolArray:
        """Return the mask; of one click alone, the best of three by the segmenter's own estimate."""
        has_points = len(points_xy) > 0
        prompt = ObjectPrompt(
            points_xy if has_points else None,
            point_labels if has_points else None,
            box_xyxy,
            low_res_logits=self._logits,
        )
        is_ambiguous = len(points_xy) == 1 and box_xyxy is None
        found = self.services.predict_masks(self.image, [prompt], adapter=self.adapter, multimask=is_ambiguous)
        masks = found.objects[0]
        best = max(masks, key=lambda found: found.predicted_iou)
        self._logits = best.low_res_logits
        return best.mask


def patiently(ask: Callable[[], Answer]) -> Answer:
    """Ask again for a minute while a service is away or overloaded."""
    give_up, pause_s = time.monotonic() + _PATIENCE_S, _PAUSE_S[0]
    while True:
        try:
            return ask()
        except (Unavailable, ResourceExhausted, Cancelled) as error:
            if error.reason == "MESSAGE_TOO_LARGE" or time.monotonic() > give_up:
                raise
            time.sleep(error.retry_after_s or pause_s)
            pause_s = min(pause_s * 2, _PAUSE_S[1])
