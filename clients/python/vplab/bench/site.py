"""A deployment made ready for a load: what must be there before the clock runs, and taken away afterwards."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import safetensors.numpy

from vplab.bench.pictures import Picture, make_pictures
from vplab.bench.works import Called
from vplab.client import Client
from vplab.client.embedding.values import Encoder
from vplab.client.models import ModelReference, Provenance
from vplab.client.options import Area
from vplab.client.registry.values import BlobFile, Lineage, Manifest
from vplab.client.segmentation.values import PromptSetDraft, Reference, SegmentClass
from vplab.errors import InvalidInput, NotFound, VPLabError
from vplab.vision.prompts import ObjectPrompt

_SMALL_PX = 128
_CLASS = SegmentClass(1, "defect")


class Site:
    """The services with what was published for this run."""

    def __init__(self, client: Client, called: Called, *, is_own: bool) -> None:
        """is_own: whether the deployment was started for this run, and nothing in it is anybody's."""
        self.client = client
        self.called = called
        self.is_own = is_own
        self._id = f"bench-{uuid.uuid4().hex[:8]}"
        self._published: list[str] = []

    def software(self) -> Mapping[Area, object]:
        """Return what each reachable service says it is and serves."""
        found: dict[Area, object] = {}
        for area in self.called.addresses:
            try:
                info = self.client.replica(area).info()
            except VPLabError as error:  # an address that nobody needs may lead nowhere, and others tell less
                found[area] = {"unknown": error.message}
                continue
            models = [{"role": m.role, "name": m.model.name, "digest": m.model.digest, "device": m.device}
                      for m in info.served_models]  # fmt: skip
            found[area] = {"software": info.software, "models": models}
        return found

    def digests(self, pictures: Sequence[Picture]) -> list[str]:
        """Have pictures embedded; return their digests."""
        return [self._click(picture, "").image_digest for picture in pictures]

    def load(self, adapters: Sequence[str]) -> None:
        """Have adapters loaded, by a click with each. Raises NotFound for one that is not there."""
        (picture,) = make_pictures(1, _SMALL_PX, 1)
        for adapter in adapters:
            self._click(picture, adapter)

    def with_encoder(self) -> Called:
        """Return what is called, with an encoder for images: the one that was named, else one for mask decoding."""
        if self.called.encoder:
            return self.called
        offered = list(self.client.embedding.list_encoders())
        fitting = [encoder for encoder in offered if _is_for_masks(encoder)] or offered
        if not fitting:
            raise NotFound("the embedding service offers no encoder: name one with --encoder")
        chosen = max(fitting, key=lambda encoder: encoder.loaded)
        return replace(self.called, encoder=chosen.model.name)

    def with_segmenter_of(self, prompt_set: str) -> Called:
        """Return what is called, with the segmenter of a prompt set: its adapters and clicks are for that one."""
        return replace(self.called, segmenter=self.client.segmentation.get_prompt_set(prompt_set).segmenter.name)

    def prompt_set(self, references: Sequence[Picture]) -> str:
        """Publish a prompt set of generated references and return its name."""
        name = f"{self._id}-{len(references)}-references"
        draft = PromptSetDraft(
            name,
            [_CLASS],
            [Reference(picture.data, {_CLASS.class_id: picture.mask}) for picture in references],
            display_name="of vplab bench",
            segmenter=self.called.segmenter,
        )
        made = self.client.segmentation.create_prompt_set(draft)
        self._published.append(f"artifacts/{name}")
        return made.model.name

    def some_adapters(self, number: int) -> list[str]:
        """Return so many adapters that fit the segmenter.

        In a deployment of this run's own, copies of the segmenter's decoder stand in for adapters, and rows of zeros
        where it has a bank: what a call costs does not depend on the values of the weights.
        Raises InvalidInput where there are too few.
        """
        segmenter = self._click(make_pictures(1, _SMALL_PX, 1)[0], "").segmenter
        assert segmenter is not None, "a click's answer names its segmenter"
        if self.is_own:
            return self._stand_ins(segmenter, number)
        found = self._fitting(segmenter, number)
        if len(found) < number:
            raise InvalidInput(f"the registry has {len(found)} adapters for {segmenter.name}", field="--adapters")
        return found

    def close(self) -> list[str]:
        """Delete what was published; return the names of what could not be."""
        left = []
        for name in [] if self.is_own else self._published:
            try:
                self.client.registry.delete_artifact(name)
            except VPLabError:
                left.append(name)
        return left

    def _click(self, picture: Picture, adapter: str) -> Provenance:
        click = ObjectPrompt(np.array(picture.points_xy[:1], np.float32), np.ones(1, np.int64))
        answer = self.client.segmentation.predict_masks(
            picture.data, click, segmenter=self.called.segmenter, adapter=adapter
        )
        return answer.provenance

    def _fitting(self, segmenter: ModelReference, number: int) -> list[str]:
        found: list[str] = []
        for artifact in self.client.registry.list_artifacts(kind="adapter"):
            for version in self.client.registry.list_versions(artifact.name):
                made_for = version.manifest.made_from("segmenter")
                if made_for is not None and made_for.digest == segmenter.digest:
                    found.append(version.name)
                if len(found) == number:
                    return found
        return found

    def _stand_ins(self, segmenter: ModelReference, number: int) -> list[str]:
        base = self.client.registry.get_version(segmenter.name).manifest
        artifact_id = f"{self._id}-{len(self._published)}-{number}-adapters"
        artifact = self.client.registry.create_artifact(artifact_id, "adapter")
        self._published.append(artifact.name)
        lineage = (Lineage("segmenter", segmenter.name, segmenter.digest),)
        files = (*base.files, *self._row_files(base))
        return [
            self.client.registry.publish_version(
                artifact.name,
                Manifest(files, lineage, spec=base.spec, description=f"Stand-in {index} of vplab bench."),
            ).name
            for index in range(number)
        ]

    def _row_files(self, base: Manifest) -> list[BlobFile]:
        """Return what makes an adapter a row of its segmenter's bank, all zeros; nothing where there is no bank."""
        bank = base.spec.get("adapter_bank")
        if not bank:
            return []
        described = json.dumps({"adapter": bank["adapter"]}).encode()
        contents = {"adapter.json": described, "adapter.safetensors": safetensors.numpy.save({})}
        return [self.client.registry.upload_bytes(data, as_path=path) for path, data in contents.items()]


def _is_for_masks(encoder: Encoder) -> bool:
    return any(output.role == "image_embedding" for output in encoder.outputs)
